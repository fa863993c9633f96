"""Laws of what guidance does to the prediction: where it acts, where not, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import le

import torch

from autolora_eval.guidance.laws.declaration import Window
from autolora_eval.guidance.laws.subject import (
    DIFFERENT,
    EDGES,
    LawBrokenError,
    NotApplicableError,
    Subject,
    distance,
    first_difference,
    is_number,
    told,
)


def guidance_acts(subject: Subject) -> None:
    """At the given parameters the prediction differs from the unguided one at some step."""
    subject.require_acting()
    predictions = [step.prediction for step in subject.guided]
    if first_difference(predictions, subject.unguided, DIFFERENT) is None:
        raise LawBrokenError(
            f"at every step the prediction is the {_unguided(subject)}: it guides nothing. Check "
            "that forward uses all predictions; or give parameters at which it acts."
        )


def every_scale_acts(subject: Subject) -> None:
    """Each parameter that is named as a scale changes the prediction at some step."""
    if not subject.acting:
        raise NotApplicableError("no numeric parameter is named '…_scale', and none is declared")
    if subject.full.get("enabled") is False:
        raise NotApplicableError(subject.rests)
    idle = [name for name in subject.acting if _changes_nothing(subject, name)]
    if idle:
        name = idle[0]
        value = subject.full[name]
        raise LawBrokenError(
            f"{_listed(idle)} changes nothing: {value} and {value + 1} give the same predictions "
            f"at all {len(subject.guided)} steps. Use it in forward, and check that what it weighs "
            "(a perturbed pass) is really perturbed; or name those that act in "
            "LawDeclaration(acting=…)."
        )


def neutral_parameters_change_nothing(subject: Subject) -> None:
    """At the neutral parameters the prediction is the unguided one."""
    if subject.neutral is None:
        raise NotApplicableError(
            "its neutral parameters are not known. State them: LawDeclaration(neutral={…})"
            + (f"; its scales are {_listed(subject.scales)}" if subject.scales else "")
        )
    subject.require_acting()
    step = first_difference(subject.predictions(**subject.neutral), subject.unguided)
    if step is not None:
        raise LawBrokenError(
            f"at {told(subject.neutral)} the prediction is not the {_unguided(subject)} (step "
            f"{step}). Let forward return it there; or state the parameters that are neutral in "
            "LawDeclaration(neutral={…})."
        )


def nothing_changes_outside_its_window(subject: Subject) -> None:
    """It acts at the steps ⌊start · N⌋ ≤ step < ⌊stop · N⌋, and at no other."""
    subject.require_acting()
    if subject.stated.windows is not None and not subject.windows:
        raise NotApplicableError("LawDeclaration(windows=()) says that it has no window")
    if not subject.windows:
        raise NotApplicableError(
            "it has no parameters start and stop. Has it a window by other names? "
            "LawDeclaration(windows=(Window(…),))"
        )
    for window in subject.windows:
        # At a stop of 1 the last step is inside.
        for stop in (EDGES[1], 1.0):
            _keeps(subject, window, {window.start: EDGES[0], window.stop: stop})


def _keeps(subject: Subject, window: Window, edges: Mapping[str, float]) -> None:
    if window.outside is None:
        outside: Sequence[torch.Tensor] = subject.unguided
    else:
        outside = subject.predictions(**edges, **window.outside)
    predictions = subject.predictions(**edges)
    acts = [distance(a, b) > DIFFERENT for a, b in zip(predictions, outside, strict=True)]
    count = len(predictions)
    first, last = (int(edge * count) for edge in edges.values())
    against = "" if window.outside is None else f", beside {told(window.outside)},"
    if not any(acts):
        raise LawBrokenError(
            f"with {told(edges)}{against} it acts at none of {count} steps, where it should from "
            f"step {first} to {last - 1}. Do the two parameters reach the test of the step?"
        )
    inside = [first <= step < last for step in range(count)]
    if acts == inside or (window.may_rest and all(map(le, acts, inside))):
        return
    raise LawBrokenError(
        f"with {told(edges)} of {count} steps{against} it acts at "
        f"{[step for step in range(count) if acts[step]]}, where it should at "
        f"{list(range(first, last))}. {_way_to_keep(window, rests=all(map(le, acts, inside)))}"
    )


def _way_to_keep(window: Window, *, rests: bool) -> str:
    elsewhere = "unguided" if window.outside is None else "otherwise guided"
    test = (
        f"Test `int({window.start} * N) <= step < int({window.stop} * N)`, and return the "
        f"{elsewhere} prediction elsewhere."
    )
    if not rests:
        return test
    return f"{test} If it is meant to rest there, declare Window(…, may_rest=True)."


def nothing_changes_when_disabled(subject: Subject) -> None:
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
            raise LawBrokenError(
                f"{how} the prediction of step {step} is not the {_unguided(subject)}. Test "
                "`self._enabled` where you test the window, and hand `enabled` on to "
                "super().__init__."
            )


def linear_parameters_are_linear(subject: Subject) -> None:
    """The prediction is an affine function of each parameter that is declared linear."""
    names = [name for name in subject.stated.linear if is_number(subject.full.get(name))]
    if not names:
        raise NotApplicableError("it claims none: LawDeclaration(linear=('guidance_scale',))")
    for name in names:
        value = subject.full[name]
        low, middle, high = (subject.predictions(**{name: value + d}) for d in (0, 1, 2))
        halfway = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        step = first_difference(middle, halfway)
        if step is not None:
            raise LawBrokenError(
                f"it claims to be linear in {name}, and the prediction at {name}={value + 1} is "
                f"not halfway between those at {value} and {value + 2} (step {step}). "
                "Mend forward, or leave the name out of LawDeclaration(linear=…)."
            )


def linear_in_predictions(subject: Subject) -> None:
    """The result is a linear function of the predictions, if that is declared."""
    if not subject.stated.linear_in_predictions:
        raise NotApplicableError(
            "it does not claim to be: LawDeclaration(linear_in_predictions=True)"
        )
    steps, others = subject.guided, subject.guided_elsewhere
    a, b = 2.0, -0.5

    def mixed(number: int, name: str, batch: object) -> torch.Tensor:
        return a * steps[number].parts[name] + b * others[number].parts[name]

    made = [step.prediction for step in subject.drive(subject.build(), predict=mixed)]
    expected = [a * x.prediction + b * y.prediction for x, y in zip(steps, others, strict=True)]
    step = first_difference(made, expected)
    if step is not None:
        raise LawBrokenError(
            f"it claims to be linear in the predictions, and G(2p − q/2) is not 2 G(p) − G(q)/2 "
            f"(step {step}). Mend forward, or declare linear_in_predictions=False."
        )


def _changes_nothing(subject: Subject, name: str) -> bool:
    changed = subject.predictions(**{name: subject.full[name] + 1})
    predictions = [step.prediction for step in subject.guided]
    return first_difference(changed, predictions, DIFFERENT) is None


def _unguided(subject: Subject) -> str:
    cfg = subject.stated.unguided == "cfg"
    return "classifier-free guided one" if cfg else "conditional one"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
