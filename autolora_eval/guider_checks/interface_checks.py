"""Checks of the guider's interface: the denoising loop, the denoiser, its state and its config."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from diffusers.guiders import BaseGuidance

from autolora_eval.guider_checks.denoising_loop import (
    EQUAL,
    ProtocolError,
    block_state_batches,
    distance,
    first_difference,
    ignores_denoiser,
    iter_steps,
    prediction_name,
    random_predictions,
    replay,
    same_json,
    tensors_equal,
)
from autolora_eval.guider_checks.harness import GuiderUnderTest
from autolora_eval.guider_checks.runner import CheckFailedError, CheckSkippedError, check
from autolora_eval.guider_checks.tiny_models import SIDE, ModelInputs

_HOW_TO_RESET = "Reset its state in prepare_inputs when `self._step == 0`, active or not."


class _InjectedError(Exception):
    """Raised by a denoiser call that a check lets fail."""


@check()
def check_completes_image(guider: GuiderUnderTest) -> None:
    """It completes all steps of an image, and every output is finite."""
    for changes, where in guider.param_variants:
        try:
            steps = guider.steps(**changes)
        except ProtocolError as error:
            raise CheckFailedError(f"{error}{where}") from error
        except Exception as error:
            if not changes:
                raise
            message = f"it raised {type(error).__name__}: {error!s:.200}{where}"
            raise CheckFailedError(message) from error
        for index, step in enumerate(steps):
            if not step.output.isfinite().all():
                raise CheckFailedError(
                    f"at step {index}{where} the output has infinite values or NaN. Does it divide "
                    "by something that can be zero?"
                )
    try:
        (step,) = guider.run(guider.build(), ModelInputs.random(3, steps=1))
        failure = "" if step.output.isfinite().all() else "the output is infinite or NaN"
    except Exception as error:
        failure = f"{type(error).__name__}: {error!s:.160}"
    if failure:
        raise CheckFailedError(
            f"an image of one step fails: {failure}. Does it divide by N - 1? Use max(N - 1, 1)."
        )


@check(requires=("check_completes_image",))
def check_runs_in_pipeline(guider: GuiderUnderTest) -> None:
    """The pipeline's own denoising loop completes with it, and the latents are finite."""
    if getattr(guider.build(), "_internal_dict", None) is None:
        raise CheckFailedError(
            "it has no config for pipelines: decorate its __init__ with @register_to_config."
        )
    if not guider.sampled.latents.isfinite().all():
        raise CheckFailedError(
            "the latents of the pipeline have infinite values or NaN: its outputs grow from step "
            "to step. Is the output on the scale of the predictions?"
        )


@check(requires=("check_output_shape",))
def check_denoiser_restored(guider: GuiderUnderTest) -> None:
    """After every `cleanup_models`, hooks, LoRA, layers and weights are as before."""
    if ignores_denoiser(guider.cls):
        return
    for changes, where in guider.param_variants:
        left: list[str] = []

        def look(index: int, name: str, left: list[str] = left) -> None:
            if not left:
                words = guider.model.describe_changes()
                left.extend(f"{what} after '{name}' of step {index}" for what in words)

        guider.run(guider.build(**changes), after_cleanup=look)
        if left:
            raise CheckFailedError(
                f"it leaves {'; '.join(left[:2])}{where}. Undo in cleanup_models, under the same "
                "condition, what prepare_models does. What is left affects all later images."
            )


@check(requires=("check_denoiser_restored",))
def check_denoiser_restored_after_error(guider: GuiderUnderTest) -> None:
    """If a denoiser call fails, `cleanup_models` still restores the denoiser."""
    if ignores_denoiser(guider.cls):
        return
    for index, step in enumerate(guider.guided):
        for name in step.predictions:
            left = _left_after_error(guider, index, name)
            if left:
                raise CheckFailedError(
                    f"if the denoiser call for '{name}' of step {index} fails, cleanup_models "
                    f"leaves {'; '.join(left[:2])}. It must undo what is there, whether or not the "
                    "call completed."
                )


def _left_after_error(guider: GuiderUnderTest, failing_step: int, failing_name: str) -> list[str]:
    known = replay(guider.guided, torch.Tensor.clone)

    def predict(index: int, name: str, batch: object) -> torch.Tensor:
        if (index, name) == (failing_step, failing_name):
            raise _InjectedError
        return known(index, name, batch)

    fresh = guider.build()
    with guider.restored(guider.inputs):
        with suppress(_InjectedError):
            list(iter_steps(fresh, guider.model, guider.inputs, predict))
        fresh.cleanup_models(guider.model.denoiser)
        return guider.model.describe_changes()


@check(requires=("check_deterministic", "check_runs_in_pipeline"))
def check_no_state_between_images(guider: GuiderUnderTest) -> None:
    """After a complete or an aborted image, the next image is that of a fresh guider."""
    for changes, where in guider.param_variants:
        _check_reuse(guider, changes, where)
    _check_two_instances(guider)
    second = guider.sample(guider.sampled.guider)
    if distance(second.latents, guider.sampled.latents) > EQUAL:
        raise CheckFailedError(
            "in the pipeline, the same prompts and seeds give different latents the second time. "
            f"{_HOW_TO_RESET}"
        )


def _check_reuse(guider: GuiderUnderTest, changes: Mapping[str, Any], where: str) -> None:
    fresh = guider.outputs_of(guider.build(**changes), inputs=guider.other_inputs)
    same_size = {"predict": replay(guider.steps(**changes), torch.Tensor.clone)}
    rows, steps, width = 3, 7, 12
    other_size = {
        "inputs": ModelInputs.random(3, rows=rows, steps=steps, width=width),
        "predict": random_predictions((rows, 4, SIDE, width)),
    }
    for before, what in (
        (same_size, "another image"),
        ({**same_size, "stop_after": 3}, "an aborted image"),
        (other_size, f"images of {steps} steps and another size"),
    ):
        used = guider.build(**changes)
        guider.run(used, **before)
        step = first_difference(guider.outputs_of(used, inputs=guider.other_inputs), fresh)
        if step is not None:
            raise CheckFailedError(
                f"after {what} its output is not that of a fresh guider (step {step}{where}). "
                f"{_HOW_TO_RESET}"
            )


def _check_two_instances(guider: GuiderUnderTest) -> None:
    """Run two guiders on one image each, in alternating steps."""
    model, first = guider.model, replay(guider.guided, torch.Tensor.clone)
    with guider.restored(guider.inputs), guider.restored(guider.other_inputs):
        turns = zip(
            iter_steps(guider.build(), model, guider.inputs, first),
            iter_steps(guider.build(), model, guider.other_inputs),
            strict=True,
        )
        outputs = [step.output for _, step in turns]
    step = first_difference(outputs, [step.output for step in guider.guided_elsewhere])
    if step is not None:
        raise CheckFailedError(
            "while another instance of its class makes an image, its output differs (step "
            f"{step}). Keep state on the instance, not on the class or in the module."
        )


@check(requires=("check_runs_in_pipeline",))
def check_nfe(guider: GuiderUnderTest) -> None:
    """`num_conditions` and a declared `nfe_per_step` are the function evaluations of each step."""
    for changes, where in guider.param_variants:
        _check_nfe_of_steps(guider, changes, where)
    nfe, expected = guider.sampled.nfe, sum(guider.sampled.num_conditions)
    if nfe != expected:
        raise CheckFailedError(
            f"the pipeline called the denoiser {nfe} times, but num_conditions adds up to "
            f"{expected}. It must not change within a step."
        )


def _check_nfe_of_steps(guider: GuiderUnderTest, changes: Mapping[str, Any], where: str) -> None:
    steps = guider.steps(**changes)
    for index, step in enumerate(steps):
        if step.nfe != step.num_conditions:
            raise CheckFailedError(
                f"at step {index}{where} num_conditions is {step.num_conditions}, but the denoiser "
                f"was called {step.nfe} times. Request each prediction in prepare_inputs and count "
                "it in num_conditions: a hidden call makes the cost in tables wrong."
            )
        if guider.spec.nfe_per_step is not None:
            params = {**guider.all_params, **changes}
            declared = guider.spec.nfe_per_step(params, index, len(steps))
            if declared != step.nfe:
                raise CheckFailedError(
                    f"GuiderSpec.nfe_per_step returns {declared} for step {index} of {len(steps)}"
                    f"{where}, but there were {step.nfe} evaluations. Correct the declaration."
                )


@check(requires=("check_output_shape",))
def check_num_conditions_before_first_step(guider: GuiderUnderTest) -> None:
    """Before the first step `num_conditions` is 2 or more if a step needs the negative prompt."""
    needing = [n for n, step in enumerate(guider.guided) if False in step.is_conditional.values()]
    if not needing:
        raise CheckSkippedError("no prediction at these parameters uses the negative prompt")
    try:
        before = guider.build().num_conditions
    except TypeError as error:
        raise CheckFailedError(
            f"before the first step num_conditions fails: {error}. SDXL's pipeline reads it then: "
            "while `self._step is None`, return the largest number that any step needs."
        ) from error
    if before < 2:
        raise CheckFailedError(
            f"before the first step num_conditions is {before}, but step {needing[0]} needs the "
            "negative prompt. SDXL's pipeline encodes it only for 2 or more: while `self._step is "
            "None`, return the largest number that any step needs."
        )


@check(requires=("check_output_shape",))
def check_is_conditional(guider: GuiderUnderTest) -> None:
    """While a batch is prepared, `is_conditional` says whether it has the prompts' embeddings."""
    answers: dict[tuple[int, str], bool] = {}
    fresh, known = guider.build(), replay(guider.guided, torch.Tensor.clone)

    def predict(index: int, name: str, batch: object) -> torch.Tensor:
        answers[index, name] = bool(fresh.is_conditional)
        return known(index, name, batch)

    try:
        steps = guider.run(fresh, predict=predict)
    except (AttributeError, NotImplementedError) as error:
        raise CheckFailedError(
            f"is_conditional fails: {type(error).__name__}: {error}. ControlNet pipelines and "
            "guiders with hooks read it: `return self._count_prepared == 1`."
        ) from error
    for (index, name), answer in answers.items():
        expected = steps[index].is_conditional[name]
        if expected is not None and answer != expected:
            raise CheckFailedError(
                f"at step {index}, while '{name}' is prepared, is_conditional is {answer}, but the "
                f"batch has the embeddings of the {'prompts' if expected else 'negative prompt'}. "
                "Call super().prepare_models(denoiser), which counts, and test "
                "self._count_prepared."
            )


@check(requires=("check_output_shape",))
def check_block_state_inputs(guider: GuiderUnderTest) -> None:
    """`prepare_inputs_from_block_state` makes the same batches as `prepare_inputs`."""
    fresh, steps = guider.build(), guider.guided
    index = next((n for n, step in enumerate(steps) if step.num_conditions > 1), 0)
    fields = guider.model.fields(guider.inputs, index)
    timestep = guider.inputs.timesteps[index]
    fresh.set_state(step=index, num_inference_steps=len(steps), timestep=timestep)
    batches = fresh.prepare_inputs(fields)
    try:
        others = block_state_batches(fresh, fields)
    except NotImplementedError as error:
        raise CheckSkippedError(
            "it has no prepare_inputs_from_block_state, so it cannot guide Wan, Z-Image or LTX"
        ) from error
    if list(map(prediction_name, batches)) != list(map(prediction_name, others)) or not all(
        tensors_equal(getattr(a, field), getattr(b, field))
        for a, b in zip(batches, others, strict=True)
        for field in fields
    ):
        raise CheckFailedError(
            "prepare_inputs_from_block_state makes other batches than prepare_inputs from the same "
            "fields. Wan, Z-Image and LTX call it instead: keep both the same."
        )


@check(requires=("check_deterministic", "check_runs_in_pipeline"))
def check_new_roundtrip(guider: GuiderUnderTest) -> None:
    """`new()` copies all parameters, and `new(name=value)` changes one of them."""
    changes = _unusual_params(guider)
    original = guider.build(**changes)
    _require_config(guider, original, {**guider.all_params, **changes})
    _require_same_output(guider, original.new(), "new()")
    for name, value in _alternative_values(guider).items():
        changed, kept = original.new(**{name: value}), guider.build(**{name: value}).new()
        for copied, how in ((changed, f"new({name}={value})"), (kept, f"new() of {name}={value}")):
            if copied.config.get(name) != value:
                raise CheckFailedError(
                    f"{how} has {name}={copied.config.get(name)}. {_name_all(guider)}Decorate "
                    "__init__ with @register_to_config, do not change its arguments, and pass each "
                    f"on by name, super().__init__({name}={name})."
                )
    used = guider.build()
    before = dict(used.config)
    guider.run(used)
    for name in (n for n in before if not same_json(before[n], used.config.get(n))):
        raise CheckFailedError(
            f"making an image changes its config: {name}={before[name]} became "
            f"{used.config.get(name)}. Keep what changes in attributes of its own."
        )


@check(requires=("check_new_roundtrip",))
def check_save_load_roundtrip(guider: GuiderUnderTest) -> None:
    """`save_pretrained` and `from_pretrained` give a guider with the same parameters."""
    saved = guider.build(**_unusual_params(guider))
    with tempfile.TemporaryDirectory() as folder:
        try:
            saved.save_pretrained(folder)
            loaded = guider.cls.from_pretrained(folder)
        except Exception as error:
            raise CheckFailedError(
                f"it cannot be saved and loaded: {type(error).__name__}: {error!s:.160}. Use "
                "numbers, strings, lists and maps as parameters, or objects with a to_dict."
            ) from error
    configs = saved.config, loaded.config
    lost = [n for n in guider.signature if not same_json(*(config.get(n) for config in configs))]
    if lost:
        before, after = (config.get(lost[0]) for config in configs)
        raise CheckFailedError(
            f"saving and loading changes {', '.join(lost)}: {before} became {after}."
        )
    _require_same_output(guider, loaded, "save_pretrained and from_pretrained")


def _alternative_values(guider: GuiderUnderTest) -> dict[str, Any]:
    """Return another value of each number and flag that the constructor accepts by itself."""
    names = [n for n in guider.signature if isinstance(guider.all_params.get(n), int | float)]
    others = {name: guider.alternative_value(name) for name in names}
    return {name: value for name, value in others.items() if value is not None}


def _unusual_params(guider: GuiderUnderTest) -> dict[str, Any]:
    """Return values of scales and intervals that are not the defaults, so that a lost one shows."""
    others = _alternative_values(guider)
    scales = {name: others[name] for name in guider.required_effect if name in others}
    candidates = ({**guider.interval_params, **scales}, scales)
    return next((params for params in candidates if guider.builds(**params)), {})


def _require_config(
    guider: GuiderUnderTest, made: BaseGuidance, expected: Mapping[str, Any]
) -> None:
    config = made.config
    missing = [name for name in guider.signature if name not in config]
    if missing:
        raise CheckFailedError(
            f"its config lacks {', '.join(missing)}, so new() sets the default. Decorate __init__ "
            "with @register_to_config."
        )
    known = [name for name in guider.signature if name in expected]
    wrong = [name for name in known if not same_json(config[name], expected[name])]
    if wrong:
        name = wrong[0]
        raise CheckFailedError(
            f"its config has {name}={config[name]}, but it was made with {expected[name]}. "
            "Decorate its own __init__ with @register_to_config, not only its parent's."
        )


def _require_same_output(guider: GuiderUnderTest, copied: BaseGuidance, how: str) -> None:
    expected = guider.outputs(**_unusual_params(guider))
    step = first_difference(guider.outputs_of(copied), expected)
    if step is not None:
        raise CheckFailedError(
            f"after {how} the output differs (step {step}). {_name_all(guider)}Keep all parameters "
            "in its config, and pass them on by name, `super().__init__(start=start)`: diffusers "
            "takes a positional argument for a default, which new() leaves out."
        )


def _name_all(guider: GuiderUnderTest) -> str:
    kinds = [p.kind for p in inspect.signature(guider.cls.__init__).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return ""
    return "Name every parameter in its __init__: diffusers' new() drops those of `**kwargs`. "
