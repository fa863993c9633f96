"""Laws of what guidance does to the prediction: where it acts, where not, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import le
from typing import Any

import torch

from autolora_eval.guidance.spec import ActiveInterval
from autolora_eval.guider_checks.guider_under_test import (
    DIFFERENT,
    EDGES,
    EQUAL,
    CheckFailedError,
    CheckSkippedError,
    GuiderUnderTest,
    distance,
    first_difference,
    is_number,
    told,
)

_OF_CFG = (
    " Or, if CFG is to be off too, leave out baseline_prediction and declare the interval of a "
    "part: identity_params={…}, active_intervals=(ActiveInterval(disable_params={…}),)."
)


def check_guidance_has_effect(subject: GuiderUnderTest) -> None:
    """At the given parameters the prediction differs from the unguided one at some step."""
    subject.require_acting()
    predictions = [step.prediction for step in subject.guided]
    if first_difference(predictions, subject.unguided, DIFFERENT) is None:
        raise CheckFailedError(
            f"at every step the prediction is the {_unguided(subject)}: it guides nothing. Check "
            "that forward uses all predictions; or give parameters at which it acts."
        )


def check_scales_have_effect(subject: GuiderUnderTest) -> None:
    """Each parameter that is named as a scale changes the prediction at some step."""
    if not subject.acting:
        raise CheckSkippedError("no numeric parameter is named '…_scale', and none is declared")
    if subject.full.get("enabled") is False:
        raise CheckSkippedError(subject.rests)
    others = {name: subject.other(name) for name in subject.acting}
    tried = {name: value for name, value in others.items() if value is not None}
    if not tried:
        raise CheckSkippedError(f"the constructor takes no other value of {_listed(list(others))}")
    idle = [name for name, value in tried.items() if _changes_nothing(subject, {name: value})]
    if idle:
        name = idle[0]
        raise CheckFailedError(
            f"{_listed(idle)} changes nothing: {subject.full[name]} and {tried[name]} give the "
            f"same predictions at all {len(subject.guided)} steps. Use it in forward, and check "
            "that what it weighs (a perturbed pass) is really perturbed; or name those that act in "
            "GuiderSpec(required_effect=…)."
        )


def check_identity_params(subject: GuiderUnderTest) -> None:
    """At the neutral parameters the prediction is the unguided one."""
    if subject.neutral is None:
        raise CheckSkippedError(
            "its neutral parameters are not known. State them: GuiderSpec(identity_params={…})"
            + (f"; its scales are {_listed(subject.scales)}" if subject.scales else "")
        )
    subject.require_acting()
    step = first_difference(subject.predictions(**subject.neutral), subject.unguided)
    if step is not None:
        raise CheckFailedError(
            f"at {told(subject.neutral)} the prediction is not the {_unguided(subject)} (step "
            f"{step}). Let forward return it there; or state the parameters that are neutral in "
            "GuiderSpec(identity_params={…})."
        )


def check_active_intervals(subject: GuiderUnderTest) -> None:
    """It acts at the steps ⌊start · N⌋ ≤ step < ⌊stop · N⌋, and at no other."""
    subject.require_acting()
    if subject.stated.active_intervals is not None and not subject.windows:
        raise CheckSkippedError("GuiderSpec(active_intervals=()) says that it has no window")
    if not subject.windows:
        raise CheckSkippedError(
            "it has no parameters start and stop. Has it a window by other names? "
            "GuiderSpec(active_intervals=(ActiveInterval(…),))"
        )
    for window in subject.windows:
        # At a stop of 1 the last step is inside.
        for stop in (EDGES[1], 1.0):
            _keeps(subject, window, {window.start: EDGES[0], window.stop: stop})


def _keeps(subject: GuiderUnderTest, window: ActiveInterval, edges: Mapping[str, float]) -> None:
    if window.disable_params is None:
        outside: Sequence[torch.Tensor] = subject.unguided
    else:
        outside = subject.predictions(**edges, **window.disable_params)
    predictions = subject.predictions(**edges)
    acts = [distance(a, b) > DIFFERENT for a, b in zip(predictions, outside, strict=True)]
    count = len(predictions)
    first, last = (int(edge * count) for edge in edges.values())
    against = "" if window.disable_params is None else f", beside {told(window.disable_params)},"
    if not any(acts):
        raise CheckFailedError(
            f"with {told(edges)}{against} it acts at none of {count} steps, where it should from "
            f"step {first} to {last - 1}. Do the two parameters reach the test of the step?"
        )
    inside = [first <= step < last for step in range(count)]
    if acts == inside or (window.allow_inactive_steps and all(map(le, acts, inside))):
        return
    raise CheckFailedError(
        f"with {told(edges)} of {count} steps{against} it acts at "
        f"{[step for step in range(count) if acts[step]]}, where it should at "
        f"{list(range(first, last))}. {_way_to_keep(window, rests=all(map(le, acts, inside)))}"
    )


def _way_to_keep(window: ActiveInterval, *, rests: bool) -> str:
    elsewhere = "unguided" if window.disable_params is None else "otherwise guided"
    test = (
        f"Test `int({window.start} * N) <= step < int({window.stop} * N)`, and return the "
        f"{elsewhere} prediction elsewhere."
    )
    if not rests:
        return test
    return f"{test} Or declare ActiveInterval(…, allow_inactive_steps=True)."


def check_disabled(subject: GuiderUnderTest) -> None:
    """After `disable()`, or with `enabled=False`, every prediction is the unguided one."""
    subject.require_acting()
    disabled = {"after disable()": subject.build()}
    disabled["after disable()"].disable()
    if "enabled" in subject.signature:
        disabled["with enabled=False"] = subject.build(enabled=False)
    for how, guider in disabled.items():
        predictions = [step.prediction for step in subject.drive(guider)]
        step = first_difference(predictions, subject.unguided)
        if step is not None:
            raise CheckFailedError(
                f"{how} the prediction of step {step} is not the {_unguided(subject)}. Test "
                "`self._enabled` where you test the window, and hand `enabled` on to "
                f"super().__init__.{_OF_CFG if subject.stated.baseline_prediction == 'cfg' else ''}"
            )


def check_linear_params(subject: GuiderUnderTest) -> None:
    """The prediction is an affine function of each parameter that is declared linear."""
    names = [name for name in subject.stated.linear_params if is_number(subject.full.get(name))]
    if not names:
        raise CheckSkippedError("it claims none: GuiderSpec(linear_params=('guidance_scale',))")
    points = {name: _points(subject, name) for name in names}
    if not any(points.values()):
        raise CheckSkippedError(f"the constructor takes no other values of {_listed(names)}")
    for name, tried in points.items():
        for value in tried[2:]:
            _extrapolates(subject, name, tried[0], tried[1], value)


def _points(subject: GuiderUnderTest, name: str) -> list[float]:
    """Return the given value, another, and those at which a line through the two is tested."""
    value, other = subject.full[name], subject.other(name)
    if other is None:
        return []
    between = 2 * other - value if isinstance(value, int) else (value + other) / 2
    further = [one for one in (between, 10 * value) if one not in (value, other)]
    found = [one for one in further if subject.builds(**{name: one})]
    return [value, other, *found] if found else []


def _extrapolates(subject: GuiderUnderTest, name: str, a: float, b: float, value: float) -> None:
    at_a, at_b, made = (subject.predictions(**{name: x}) for x in (a, b, value))
    part = (value - a) / (b - a)
    expected = [x + part * (y - x) for x, y in zip(at_a, at_b, strict=True)]
    tolerance = EQUAL * max(1.0, abs(part) / 4)  # which multiplies the rounding of y − x
    step = first_difference(made, expected, tolerance)
    if step is not None:
        raise CheckFailedError(
            f"it claims to be linear in {name}, and the prediction at {name}={value} is not on the "
            f"line through those at {a} and {b} (step {step}). Mend forward, or leave the name "
            "out of GuiderSpec(linear_params=…)."
        )


def check_linear_in_predictions(subject: GuiderUnderTest) -> None:
    """The result is a linear function of the predictions, if that is declared."""
    if not subject.stated.linear_in_predictions:
        raise CheckSkippedError("it does not claim to be: GuiderSpec(linear_in_predictions=True)")
    steps, others = subject.guided, subject.guided_elsewhere
    a, b = 2.0, -0.5

    def mixed(number: int, name: str, batch: object) -> torch.Tensor:
        return a * steps[number].parts[name] + b * others[number].parts[name]

    made = [step.prediction for step in subject.drive(subject.build(), predict=mixed)]
    expected = [a * x.prediction + b * y.prediction for x, y in zip(steps, others, strict=True)]
    step = first_difference(made, expected)
    if step is not None:
        raise CheckFailedError(
            f"it claims to be linear in the predictions, and G(2p − q/2) is not 2 G(p) − G(q)/2 "
            f"(step {step}). Mend forward, or declare linear_in_predictions=False."
        )


def _changes_nothing(subject: GuiderUnderTest, changes: Mapping[str, Any]) -> bool:
    changed = subject.predictions(**changes)
    predictions = [step.prediction for step in subject.guided]
    return first_difference(changed, predictions, DIFFERENT) is None


def _unguided(subject: GuiderUnderTest) -> str:
    cfg = subject.stated.baseline_prediction == "cfg"
    return "classifier-free guided one" if cfg else "conditional one"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
