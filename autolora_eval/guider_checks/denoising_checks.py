"""Laws of the denoising loop: passes, hooks, and what a guider tells the pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.guiders import BaseGuidance

from autolora_eval.guidance.denoiser_state import restored
from autolora_eval.guider_checks.denoising_loop import (
    ProtocolError,
    Watch,
    alike,
    block_state_batches,
    denoised,
    drive,
    is_blind,
    part_name,
    recorded,
)
from autolora_eval.guider_checks.guider_under_test import (
    CheckFailedError,
    CheckSkippedError,
    GuiderUnderTest,
)
from autolora_eval.guider_checks.tiny_models import ModelInputs


class _PassFailedError(Exception):
    """What the laws make a denoiser pass fail with."""


def check_completes_image(subject: GuiderUnderTest) -> None:
    """It goes through all steps of an image, and every prediction is finite."""
    for changes, where in subject.settings:
        try:
            steps = subject.steps(**changes)
        except ProtocolError as error:
            raise CheckFailedError(f"{error}{where}") from error
        except Exception as error:
            if not changes:
                raise
            message = f"it raised {type(error).__name__}: {error!s:.200}{where}"
            raise CheckFailedError(message) from error
        for number, step in enumerate(steps):
            if not step.prediction.isfinite().all():
                raise CheckFailedError(
                    f"at step {number}{where} the prediction has infinite values or NaN. Is it "
                    "divided by something that can be zero?"
                )
    _completes_one_step(subject)


def _completes_one_step(subject: GuiderUnderTest) -> None:
    try:
        step = subject.drive(subject.build(), ModelInputs.random(3, steps=1))[0]
        failed = "" if step.prediction.isfinite().all() else "the prediction is infinite or NaN"
    except Exception as error:
        failed = f"{type(error).__name__}: {error!s:.160}"
    if failed:
        raise CheckFailedError(
            f"an image of one step fails: {failed}. Is it divided by N - 1? Take max(N - 1, 1)."
        )


def check_runs_in_pipeline(subject: GuiderUnderTest) -> None:
    """The pipeline's own denoising loop completes with it, and the latents are finite."""
    if getattr(subject.build(), "_internal_dict", None) is None:
        raise CheckFailedError(
            "it has no config, which pipelines ask for. Decorate its __init__ with "
            "@register_to_config."
        )
    if not subject.sampled.latents.isfinite().all():
        raise CheckFailedError(
            "the latents of the pipeline have infinite values or NaN: predictions grow from step "
            "to step. Is the result on the predictions' scale?"
        )


def check_nfe(subject: GuiderUnderTest) -> None:
    """`num_conditions` at each step, and a declared cost, are the denoiser passes really made."""
    for changes, where in subject.settings:
        _declares(subject, changes, where)
    announced, calls = sum(subject.sampled.announced), subject.sampled.calls
    if calls != announced:
        raise CheckFailedError(
            f"in the pipeline the denoiser was called {calls} times, where num_conditions adds up "
            f"to {announced}. Let it not change within a step."
        )


def _declares(subject: GuiderUnderTest, changes: Mapping[str, Any], where: str) -> None:
    steps = subject.steps(**changes)
    for number, step in enumerate(steps):
        if step.calls != step.announced:
            raise CheckFailedError(
                f"at step {number}{where} num_conditions says {step.announced}, and the denoiser "
                f"was called {step.calls} times. Ask for every pass by prepare_inputs, and count "
                "it in num_conditions: a hidden pass makes the cost in every table wrong."
            )
        if subject.stated.nfe_per_step is not None:
            declared = subject.stated.nfe_per_step({**subject.full, **changes}, number, len(steps))
            if declared != step.calls:
                raise CheckFailedError(
                    f"GuiderSpec.passes says {declared} at step {number} of {len(steps)}"
                    f"{where}, and {step.calls} were made. Correct the declaration."
                )


def check_num_conditions_before_first_step(subject: GuiderUnderTest) -> None:
    """Before the first step `num_conditions` is at least 2 if any pass needs the null prompt."""
    needing = [n for n, step in enumerate(subject.guided) if False in step.conditional.values()]
    if not needing:
        raise CheckSkippedError("none of its passes at these parameters uses the null prompt")
    try:
        before = subject.build().num_conditions
    except TypeError as error:
        raise CheckFailedError(
            f"before the first step num_conditions fails: {error}. SDXL's pipeline asks then: "
            "return the most that any step needs while `self._step is None`."
        ) from error
    if before < 2:
        raise CheckFailedError(
            f"before the first step num_conditions is {before}, and step {needing[0]} needs the "
            "null prompt. SDXL's pipeline asks then, and encodes it only for 2 or more: count the "
            "most that any step needs while `self._step is None`."
        )


def check_is_conditional(subject: GuiderUnderTest) -> None:
    """While a pass is prepared, `is_conditional` says whether it has the prompts' embeddings."""
    told: dict[tuple[int, str], bool] = {}
    guider = subject.build()

    def ask(number: int, name: str, batch: Any) -> None:  # noqa: ANN401
        told[number, name] = bool(guider.is_conditional)

    predict = recorded(subject.guided, lambda part: part)
    try:
        steps = subject.drive(guider, predict=predict, watch=Watch(prepared=ask))
    except (AttributeError, NotImplementedError) as error:
        raise CheckFailedError(
            f"is_conditional fails: {type(error).__name__}: {error}. ControlNet pipelines and "
            "guiders that set hooks read it: `return self._count_prepared == 1`."
        ) from error
    for (number, name), answer in told.items():
        right = steps[number].conditional[name]
        if right is not None and answer != right:
            raise CheckFailedError(
                f"at step {number}, while '{name}' is prepared, is_conditional is {answer}, and "
                f"the pass has the embeddings of the {'prompts' if right else 'null prompt'}. Call "
                "super().prepare_models(denoiser), which counts, and test self._count_prepared."
            )


def check_denoiser_restored(subject: GuiderUnderTest) -> None:
    """After every `cleanup_models`, hooks, LoRA, layers and weights are as they were."""
    for changes, where in subject.settings:
        found = _left(subject, subject.build(**changes))
        if found:
            raise CheckFailedError(
                f"it leaves {_some(found)}{where}. Undo in cleanup_models, under the same "
                "condition, what prepare_models does: what is left acts on all images after it."
            )


def _left(subject: GuiderUnderTest, guider: BaseGuidance) -> list[str]:
    """Return what is not as it was after the first clean-up that leaves something."""
    found: list[str] = []
    with restored(subject.model.denoiser, weights=True) as state:

        def look(number: int, name: str, batch: Any) -> None:  # noqa: ANN401
            if not found:
                left = state.differences()
                found.extend(f"{what} after '{name}' of step {number}" for what in left)

        drive(guider, subject.model, subject.inputs, watch=Watch(cleaned=look))
    return found


def check_denoiser_restored_after_error(subject: GuiderUnderTest) -> None:
    """If a pass fails, `cleanup_models` still leaves the denoiser as it was."""
    for number, name in _passes_that_differ(subject):
        left = _left_after_failure(subject, number, name)
        if left:
            raise CheckFailedError(
                f"when pass '{name}' of step {number} fails, cleanup_models leaves {_some(left)}. "
                "Let cleanup_models undo what is there, whether or not the pass came to its end."
            )


def _passes_that_differ(subject: GuiderUnderTest) -> list[tuple[int, str]]:
    """Return the busiest step's passes, and the first of each that finds the denoiser otherwise."""
    guider, found = subject.build(), dict[tuple[str, ...], tuple[int, str]]()
    busiest = max(range(len(subject.guided)), key=lambda n: subject.guided[n].announced)

    def look(number: int, name: str, batch: Any) -> None:  # noqa: ANN401
        found.setdefault((name, *subject.model.pristine.differences()), (number, name))

    if not is_blind(guider):
        predict = recorded(subject.guided, lambda part: part)
        subject.drive(guider, predict=predict, watch=Watch(prepared=look))
    passes = [(busiest, name) for name in subject.guided[busiest].parts]
    return list(dict.fromkeys(passes + list(found.values())))


def _left_after_failure(
    subject: GuiderUnderTest, failing_step: int, failing_part: str
) -> list[str]:
    """Return what is not as it was after a pass failed in its last layer."""
    denoiser, fails = subject.model.denoiser, [False]

    def arm(number: int, name: str, batch: Any) -> None:  # noqa: ANN401
        fails[0] = (number, name) == (failing_step, failing_part)

    def fail(*_: object) -> None:
        if fails[0]:
            raise _PassFailedError

    guider = subject.build()
    handle = list(denoiser.children())[-1].register_forward_pre_hook(fail)
    try:
        with restored(denoiser, weights=True) as state:
            try:
                predict = denoised(guider, subject.model, subject.inputs, remember=False)
                watch = Watch(prepared=arm)
                drive(guider, subject.model, subject.inputs, predict=predict, watch=watch)
            except _PassFailedError:
                guider.cleanup_models(denoiser)
            return state.differences()
    finally:
        handle.remove()


def check_block_state_inputs(subject: GuiderUnderTest) -> None:
    """`prepare_inputs_from_block_state` makes the batches that `prepare_inputs` makes."""
    guider = subject.build()
    number = next((n for n, s in enumerate(subject.guided) if s.announced > 1), 0)
    fields = subject.model.fields(subject.inputs, number)
    steps = len(subject.guided)
    guider.set_state(
        step=number, num_inference_steps=steps, timestep=subject.inputs.timesteps[number]
    )
    batches = guider.prepare_inputs(fields)
    try:
        others = block_state_batches(guider, fields)
    except NotImplementedError as error:
        raise CheckSkippedError(
            "it has no prepare_inputs_from_block_state: it cannot guide Wan, Z-Image or LTX"
        ) from error
    same = [part_name(b) for b in batches] == [part_name(b) for b in others] and all(
        alike(getattr(a, key), getattr(b, key))
        for a, b in zip(batches, others, strict=True)
        for key in fields
    )
    if not same:
        raise CheckFailedError(
            "prepare_inputs_from_block_state makes other batches than prepare_inputs does of the "
            "same fields. Wan, Z-Image and LTX call it instead: keep the two alike."
        )


def _some(found: list[str]) -> str:
    more = f" (and {len(found) - 2} more)" if len(found) > 2 else ""
    return "; ".join(found[:2]) + more
