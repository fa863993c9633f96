"""Checks of the prediction: shape, dtype, device, batch, and what guidance does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import le

import torch

from autolora_eval._devices import restored_generators
from autolora_eval.guidance.method import ActiveInterval
from autolora_eval.guider_checks.denoising_loop import (
    DIFFERENT,
    EQUAL,
    Predict,
    Step,
    denoiser_predictions,
    distance,
    first_difference,
    format_params,
    generator_states,
    ignores_denoiser,
    iter_steps,
    random_predictions,
    replay,
    reshaped,
)
from autolora_eval.guider_checks.harness import INTERVAL, GuiderUnderTest
from autolora_eval.guider_checks.runner import CheckFailedError, CheckSkippedError, check

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REAL_SHAPE = (2, 4, 128, 128)  # Latents of two images of 1024 × 1024.
# A guider may round this often, each time by half the dtype's epsilon of the largest value.
_ROUNDINGS = 12
_HOW_TO_LIMIT_A_PART = (
    " If CFG is to be off too, leave out baseline_prediction and declare the interval of a part: "
    "identity_params={…}, active_intervals=(ActiveInterval(disable_params={…}),)."
)


@check(requires=("check_completes_image",))
def check_output_shape(guider: GuiderUnderTest) -> None:
    """The output has the predictions' shape, for square and other images and any batch size."""
    for shape in ((2, 4, 8, 8), (1, 4, 8, 12), (3, 4, 12, 8)):
        for index, step, where in _replayed(guider, partial(reshaped, shape=shape)):
            if step.output.shape != shape:
                raise CheckFailedError(
                    f"predictions of shape {list(shape)} became an output of shape "
                    f"{list(step.output.shape)} at step {index}{where}. Return [B, C, H, W] as it "
                    "came in; use keepdim=True in reductions."
                )


@check(requires=("check_output_shape",))
def check_output_dtype(guider: GuiderUnderTest) -> None:
    """float32, bfloat16 and float16 predictions give a finite output of the same dtype."""
    for dtype in _DTYPES:
        for index, step, where in _replayed(guider, partial(torch.Tensor.to, dtype=dtype)):
            if step.output.dtype != dtype:
                raise CheckFailedError(
                    f"{_short(dtype)} predictions became {_short(step.output.dtype)} at step "
                    f"{index}{where}. If you compute in float32, return "
                    "`result.to(pred_cond.dtype)`."
                )
            if not step.output.isfinite().all():
                raise CheckFailedError(
                    f"{_short(dtype)} predictions became infinite or NaN at step {index}{where}. "
                    "Compute norms and exponentials in float32."
                )
    for dtype in _DTYPES[1:]:
        _compare_with_float32(guider, dtype)


def _compare_with_float32(guider: GuiderUnderTest, dtype: torch.dtype) -> None:
    # At a real size a sum of squares leaves the range of float16.
    noise, tolerance = random_predictions(_REAL_SHAPE), _ROUNDINGS * torch.finfo(dtype).eps / 2
    low = guider.outputs_of(guider.build(), predict=lambda *which: noise(*which).to(dtype))
    full = guider.outputs_of(guider.build(), predict=lambda *which: noise(*which).to(dtype).float())
    gaps = [distance(a, b) for a, b in zip(low, full, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    if gaps[worst] > tolerance:
        raise CheckFailedError(
            f"for {_short(dtype)} predictions of a real size, {list(_REAL_SHAPE)}, the output "
            f"differs by {gaps[worst]:.1%} from that in float32 (step {worst}); rounding explains "
            f"{tolerance:.1%}. Compute norms, sums and exponentials in float32."
        )


@check(requires=("check_output_shape",))
def check_output_device(guider: GuiderUnderTest) -> None:
    """The output is on the device of the predictions."""
    device = "mps" if torch.backends.mps.is_available() else "meta"
    # torch's `meta` device, used without an accelerator, refuses to mix with the CPU as well.
    device = "cuda" if torch.cuda.is_available() else device
    try:
        steps = list(_replayed(guider, lambda prediction: prediction.to(device)))
    except (NotImplementedError, RuntimeError) as error:
        message = str(error).splitlines()[0]
        if device == "meta" and (isinstance(error, NotImplementedError) or ".item()" in message):
            raise CheckSkippedError(
                "there is no accelerator here, and it does not run on torch's meta device: "
                f"{message:.120}"
            ) from error
        raise CheckFailedError(
            f"with predictions on {device} it failed: {message:.160}. Create tensors with "
            "`device=pred_cond.device`."
        ) from error
    for index, step, where in steps:
        if step.output.device.type != device:
            raise CheckFailedError(
                f"predictions on {device} gave an output on {step.output.device} at step {index}"
                f"{where}. Create tensors with `device=pred_cond.device`."
            )


@check(requires=("check_output_shape",))
def check_inputs_not_modified(guider: GuiderUnderTest) -> None:
    """Predictions, latents and embeddings are not changed in place."""
    given: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def predict(index: int, name: str, batch: object) -> torch.Tensor:
        kept = guider.guided[index].predictions[name]
        given.append((f"prediction '{name}' of step {index}", kept.clone(), kept))
        return given[-1][1]

    with guider.restored(guider.inputs):
        list(iter_steps(guider.build(), guider.model, guider.inputs, predict))
        inputs_changed = guider.inputs.restore()
    changed = [name for name, prediction, kept in given if distance(prediction, kept) > 0]
    if changed or inputs_changed:
        what = changed[0] if changed else "the latents or a prompt's embeddings"
        raise CheckFailedError(
            f"it changes {what} in place. Work on a copy: `x = x + …` instead of `x += …`."
        )


@check(requires=("check_denoiser_restored", "check_inputs_not_modified"))
def check_deterministic(guider: GuiderUnderTest) -> None:
    """The same inputs give the same bits, and the global random generators are not used."""
    again = guider.build()
    # A hook that a guider sets on the denoiser may draw random numbers, so the second run makes
    # all predictions again.
    predict = denoiser_predictions(
        again, guider.model, guider.inputs, cached=ignores_denoiser(guider.cls)
    )
    with restored_generators():
        torch.manual_seed(torch.initial_seed() % 2**31 + 1)
        before = generator_states()
        outputs = guider.outputs_of(again, predict=predict)
        moved = [name for name, state in generator_states().items() if state != before[name]]
    for index, (first, second) in enumerate(zip(guider.outputs(), outputs, strict=True)):
        if not torch.equal(first, second):
            raise CheckFailedError(
                f"two runs on the same inputs differ at step {index}. Draw no random numbers, or "
                "draw them from a torch.Generator that is seeded at step 0. Do not read a clock, "
                "and keep no state on the class or the denoiser."
            )
    if moved:
        raise CheckFailedError(
            f"it draws from {moved[0]}'s global random generator, or seeds it. That changes later "
            "draws, such as the next image's noise. Use your own torch.Generator."
        )


@check(requires=("check_deterministic",))
def check_batch_independence(guider: GuiderUnderTest) -> None:
    """An image does not depend on the other images of its batch, nor on its position."""
    noise = random_predictions(_REAL_SHAPE)
    # What a guider sets on the denoiser, or puts in place of the embeddings, must not mix images
    # either, so that the denoiser is called.
    keeps = all(None not in step.is_conditional.values() for step in guider.guided)
    known = keeps and ignores_denoiser(guider.cls)
    replayed = replay(guider.guided, torch.Tensor.clone) if known else None
    large = guider.outputs_of(guider.build(), predict=noise)
    for order, how in (([1], "alone"), ([1, 0], "at another position")):
        inputs = guider.inputs.rows(order)
        for batch, predict in ((large, noise), (guider.outputs(), replayed)):
            rows = predict and _rows_of(predict, order)
            outputs = guider.outputs_of(guider.build(), inputs=inputs, predict=rows)
            step = first_difference(outputs, [output[order] for output in batch])
            if step is not None:
                raise CheckFailedError(
                    f"an image made {how} differs from the same image in a batch (step {step}). "
                    "Reduce over all dimensions but the first, `dim=tuple(range(1, pred.ndim))`, "
                    "and draw noise for one image, [1, C, H, W], and use it for all."
                )


def _rows_of(predict: Predict, order: list[int]) -> Predict:
    return lambda index, name, batch: predict(index, name, batch)[order]


@check(requires=("check_deterministic",))
def check_guidance_has_effect(guider: GuiderUnderTest) -> None:
    """At the given parameters the output differs from the baseline prediction at some step."""
    _require_active(guider)
    if first_difference(guider.outputs(), guider.baseline, DIFFERENT) is None:
        raise CheckFailedError(
            f"at every step the output is the {_baseline(guider)}: guidance has no effect. Check "
            "that forward uses all predictions, or give parameters at which it acts."
        )


@check(requires=("check_guidance_has_effect",))
def check_scales_have_effect(guider: GuiderUnderTest) -> None:
    """Each parameter whose name ends in `_scale` changes the output at some step."""
    if not guider.required_effect:
        raise CheckSkippedError(
            "no numeric parameter ends in '_scale', and required_effect names none"
        )
    if guider.all_params.get("enabled") is False:
        raise CheckSkippedError(guider.inactive_reason)
    others = {name: guider.alternative_value(name) for name in guider.required_effect}
    values = {name: value for name, value in others.items() if value is not None}
    if not values:
        raise CheckSkippedError(f"the constructor accepts no other value of {', '.join(others)}")
    plain = guider.outputs()
    changed = {name: guider.outputs(**{name: value}) for name, value in values.items()}
    same = [n for n, found in changed.items() if first_difference(found, plain, DIFFERENT) is None]
    if same:
        name = same[0]
        raise CheckFailedError(
            f"{', '.join(same)} changes nothing: {guider.all_params[name]} and {values[name]} give "
            f"the same output at all {len(guider.guided)} steps. Use it in forward, and check that "
            "the prediction that it weighs is really perturbed; or list the parameters that have "
            "an effect in GuiderSpec(required_effect=…)."
        )


@check(requires=("check_guidance_has_effect",))
def check_identity_params(guider: GuiderUnderTest) -> None:
    """At the identity parameters the output is the baseline prediction."""
    if guider.identity_params is None:
        raise CheckSkippedError(
            "its identity parameters are not known: declare GuiderSpec(identity_params={…})"
            + (f"; its scales are {', '.join(guider.scales)}" if guider.scales else "")
        )
    _require_active(guider)
    step = first_difference(guider.outputs(**guider.identity_params), guider.baseline)
    if step is not None:
        raise CheckFailedError(
            f"at {format_params(guider.identity_params)} the output is not the "
            f"{_baseline(guider)} (step {step}). Return that prediction there, or declare the "
            "right parameters in GuiderSpec(identity_params={…})."
        )


@check(requires=("check_guidance_has_effect",))
def check_active_intervals(guider: GuiderUnderTest) -> None:
    """It acts at the steps ⌊start · N⌋ ≤ step < ⌊stop · N⌋, and at no other step."""
    _require_active(guider)
    if guider.spec.active_intervals is not None and not guider.active_intervals:
        raise CheckSkippedError("GuiderSpec(active_intervals=()) says that it has no interval")
    if not guider.active_intervals:
        raise CheckSkippedError(
            "it has no parameters start and stop. If its interval has other parameters, declare "
            "GuiderSpec(active_intervals=(ActiveInterval(…),))"
        )
    for interval in guider.active_intervals:
        # With a stop of 1 the last step is inside.
        for stop in (INTERVAL[1], 1.0):
            _check_interval(guider, interval, {interval.start: INTERVAL[0], interval.stop: stop})


def _check_interval(
    guider: GuiderUnderTest, interval: ActiveInterval, edges: Mapping[str, float]
) -> None:
    outside, against = guider.baseline, ""
    if interval.disable_params is not None:
        outside = guider.outputs(**edges, **interval.disable_params)
        against = f", compared with {format_params(interval.disable_params)},"
    pairs = zip(guider.outputs(**edges), outside, strict=True)
    active = [distance(a, b) > DIFFERENT for a, b in pairs]
    count = len(active)
    first, last = (int(edge * count) for edge in edges.values())
    if not any(active):
        raise CheckFailedError(
            f"with {format_params(edges)}{against} it acts at none of {count} steps; expected "
            f"steps {first} to {last - 1}. Are both parameters used in the test of the step?"
        )
    expected = [first <= step < last for step in range(count)]
    only_too_few = all(map(le, active, expected))
    if active == expected or (interval.allow_inactive_steps and only_too_few):
        return
    raise CheckFailedError(
        f"with {format_params(edges)} of {count} steps{against} it acts at "
        f"{[step for step in range(count) if active[step]]}; expected {list(range(first, last))}. "
        f"Test `int({interval.start} * N) <= step < int({interval.stop} * N)`, and return the "
        f"{'baseline' if interval.disable_params is None else 'otherwise guided'} prediction "
        "at the other steps."
        + (" Or declare ActiveInterval(…, allow_inactive_steps=True)." if only_too_few else "")
    )


@check(requires=("check_guidance_has_effect",))
def check_disabled(guider: GuiderUnderTest) -> None:
    """After `disable()`, or with `enabled=False`, every output is the baseline prediction."""
    _require_active(guider)
    disabled = {"after disable()": guider.build()}
    disabled["after disable()"].disable()
    if "enabled" in guider.signature:
        disabled["with enabled=False"] = guider.build(enabled=False)
    for how, one in disabled.items():
        step = first_difference(guider.outputs_of(one), guider.baseline)
        if step is not None:
            raise CheckFailedError(
                f"{how} the output of step {step} is not the {_baseline(guider)}. Test "
                "`self._enabled` with the interval, and pass `enabled` to super().__init__."
                + (_HOW_TO_LIMIT_A_PART if guider.spec.baseline_prediction == "cfg" else "")
            )


@check(requires=("check_scales_have_effect",))
def check_linear_params(guider: GuiderUnderTest) -> None:
    """The output is an affine function of each parameter that is declared linear."""
    names = guider.numeric(guider.spec.linear_params)
    if not names:
        raise CheckSkippedError(
            "no parameter is declared linear, as by GuiderSpec(linear_params=('guidance_scale',))"
        )
    points = {name: _points(guider, name) for name in names}
    if not any(points.values()):
        raise CheckSkippedError(f"the constructor accepts no other values of {', '.join(names)}")
    for name, (a, b, *others) in ((n, v) for n, v in points.items() if v):
        for value in others:
            _check_on_line(guider, name, a, b, value)


def _points(guider: GuiderUnderTest, name: str) -> list[float]:
    """Return two values that define a line, followed by values at which to test it."""
    value, other = guider.all_params[name], guider.alternative_value(name)
    if other is None:
        return []
    between = 2 * other - value if isinstance(value, int) else (value + other) / 2
    further = [one for one in (between, 10 * value) if one not in (value, other)]
    accepted = [one for one in further if guider.builds(**{name: one})]
    return [value, other, *accepted] if accepted else []


def _check_on_line(guider: GuiderUnderTest, name: str, a: float, b: float, value: float) -> None:
    at_a, at_b, outputs = (guider.outputs(**{name: x}) for x in (a, b, value))
    weight = (value - a) / (b - a)
    expected = [x + weight * (y - x) for x, y in zip(at_a, at_b, strict=True)]
    # Extrapolation multiplies the rounding error of y − x.
    step = first_difference(outputs, expected, EQUAL * max(1.0, abs(weight) / 4))
    if step is not None:
        raise CheckFailedError(
            f"it is declared linear in {name}, but the output at {name}={value} is not on the line "
            f"through those at {a} and {b} (step {step}). Fix forward, or remove the name from "
            "GuiderSpec(linear_params=…)."
        )


@check(requires=("check_guidance_has_effect",))
def check_linear_in_predictions(guider: GuiderUnderTest) -> None:
    """The output is a linear function of the predictions, if that is declared."""
    if not guider.spec.linear_in_predictions:
        raise CheckSkippedError(
            "linearity is not declared. To test it, set GuiderSpec(linear_in_predictions=True)"
        )
    steps, others = guider.guided, guider.guided_elsewhere
    a, b = 2.0, -0.5

    def mixed(index: int, name: str, batch: object) -> torch.Tensor:
        return a * steps[index].predictions[name] + b * others[index].predictions[name]

    outputs = guider.outputs_of(guider.build(), predict=mixed)
    expected = [a * x.output + b * y.output for x, y in zip(steps, others, strict=True)]
    step = first_difference(outputs, expected)
    if step is not None:
        raise CheckFailedError(
            f"it is declared linear in the predictions, but G(2p − q/2) is not 2 G(p) − G(q)/2 "
            f"(step {step}). Fix forward, or declare linear_in_predictions=False."
        )


def _replayed(
    guider: GuiderUnderTest, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[int, Step, str]]:
    """Run fresh guiders on changed copies of known predictions: index, step, words for it."""
    for changes, where in guider.param_variants:
        predict = replay(guider.steps(**changes), change)
        for index, step in enumerate(guider.run(guider.build(**changes), predict=predict)):
            yield index, step, where


def _require_active(guider: GuiderUnderTest) -> None:
    if guider.inactive_reason:
        raise CheckSkippedError(guider.inactive_reason)


def _baseline(guider: GuiderUnderTest) -> str:
    cfg = guider.spec.baseline_prediction == "cfg"
    return "prediction of classifier-free guidance" if cfg else "conditional prediction"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
