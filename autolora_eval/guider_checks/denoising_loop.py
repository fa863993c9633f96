"""A guider taken through the steps of one image, as the pipelines do it.

With `tiny.py` this is all of the laws that touches diffusers' guider interface, which is
experimental.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from zlib import crc32

import torch
from diffusers.guiders import BaseGuidance
from diffusers.utils import logging as diffusers_logging

from autolora_eval.guider_checks.tiny_models import ModelInputs, TinyModel, embeddings_of

Parts = dict[str, torch.Tensor]
Predict = Callable[[int, str, Any], torch.Tensor]


class ProtocolError(Exception):
    """A guider broke the way in which the pipelines use it: what it did, what to do."""


@dataclass
class Step:
    """What happened at one denoising step.

    Attributes:
        announced: `num_conditions` before the step's predictions.
        parts: the predictions that the guider asked for, by its names for them.
        conditional: by the same names, whether the batch had the prompts' embeddings (True), the
            null prompt's (False) or others (None).
        calls: denoiser passes really made, the guider's own included.
        prediction: what it made of them.
    """

    announced: int
    parts: Parts = field(default_factory=dict)
    conditional: dict[str, bool | None] = field(default_factory=dict)
    calls: int = 0
    prediction: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Watch:
    """What is looked at on the way: each is called with the guider's step, part and batch.

    Attributes:
        prepared: after `prepare_models`.
        cleaned: after `cleanup_models`.
    """

    prepared: Predict | Callable[[int, str, Any], object] = lambda step, name, batch: None
    cleaned: Predict | Callable[[int, str, Any], object] = lambda step, name, batch: None


def drive(
    guider: BaseGuidance,
    model: TinyModel,
    inputs: ModelInputs,
    *,
    predict: Predict | None = None,
    watch: Watch | None = None,
    stop_after: int | None = None,
) -> list[Step]:
    """Take a guider through all steps of one batch of images.

    x_t is given at every step rather than computed from the guidance before it, so that a
    difference at one step is not handed on to the next.

    Args:
        guider: is used as it is, with whatever state it has.
        model: its denoiser makes the predictions and is prepared and cleaned up by the guider.
        inputs: of the denoiser.
        predict: (step, part, batch) → a prediction in place of the denoiser's.
        watch: what is looked at on the way.
        stop_after: leave off after so many steps.

    Raises:
        ProtocolError: the guider announces another number of predictions than it prepares, or
            returns something else than a `GuiderOutput`.
    """
    steps = stepped(guider, model, inputs, predict=predict, watch=watch)
    return list(islice(steps, stop_after))


def stepped(
    guider: BaseGuidance,
    model: TinyModel,
    inputs: ModelInputs,
    *,
    predict: Predict | None = None,
    watch: Watch | None = None,
) -> Iterator[Step]:
    """Do as `drive`, a step each time that one is asked for."""
    made = predict or denoised(guider, model, inputs)
    for number in range(len(inputs.latents)):
        with torch.no_grad():
            step = _step(guider, model, inputs, number, made, watch or Watch())
        yield step


def _step(
    guider: BaseGuidance,
    model: TinyModel,
    inputs: ModelInputs,
    number: int,
    made: Predict,
    watch: Watch,
) -> Step:
    total, timestep = len(inputs.latents), inputs.timesteps[number]
    guider.set_state(step=number, num_inference_steps=total, timestep=timestep)
    step = Step(announced=guider.num_conditions)
    before = model.calls[0]
    batches = guider.prepare_inputs(model.fields(inputs, number))
    for batch in batches:
        name = part_name(batch)
        guider.prepare_models(model.denoiser)
        watch.prepared(number, name, batch)
        step.conditional[name] = _conditional(batch, inputs)
        batch.noise_pred = made(number, name, batch)
        # A copy, which a guider that works in place cannot reach.
        step.parts[name] = batch.noise_pred.clone()
        guider.cleanup_models(model.denoiser)
        watch.cleaned(number, name, batch)
    _refuse_other_number(step, len(batches), number)
    step.prediction = _prediction(guider(batches))
    step.calls = model.calls[0] - before
    return step


def denoised(
    guider: BaseGuidance, model: TinyModel, inputs: ModelInputs, *, remember: bool = True
) -> Predict:
    """Return a `predict` that asks the denoiser.

    A prediction follows from the step, the batch and the denoiser as the guider has set it. One
    of the prompts' own fields, or of the null prompt's, is made once and kept with the inputs, if
    plain values such as the LoRA's switch are all that is set; unless every pass is to be made
    (`remember=False`).
    """
    blind = is_blind(guider)

    def predict(number: int, name: str, batch: Any) -> torch.Tensor:  # noqa: ANN401
        which = _all_of(batch, model.fields(inputs, number)) if remember else None
        settings = frozenset[str]() if blind else None
        if which is not None and not blind:
            settings = model.pristine.settings()
        if which is None or settings is None:
            return model.call(model.denoiser, batch, inputs, number)
        key = (number, which, settings)
        if key in inputs.known:
            model.calls[0] += 1
        else:
            inputs.known[key] = model.call(model.denoiser, batch, inputs, number)
        return inputs.known[key].clone()

    return predict


def is_blind(guider: BaseGuidance) -> bool:
    """Tell whether a guider never sees the denoiser: it overrides nothing that is given it."""
    return all(
        getattr(type(guider), name) is getattr(BaseGuidance, name)
        for name in ("prepare_models", "cleanup_models")
    )


def part_name(batch: Any) -> str:  # noqa: ANN401
    """Return the guider's name for the prediction that a prepared batch is for."""
    return str(getattr(batch, BaseGuidance._identifier_key))


def recorded(steps: Sequence[Step], change: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    """Return a `predict` that hands out the predictions of an earlier drive, each changed."""
    return lambda number, name, batch: change(_part(steps[number].parts, name, number).clone())


def normal(shape: tuple[int, ...]) -> Predict:
    """Return a `predict` of normal numbers, the same each time for a step and a part."""
    made: dict[tuple[int, str], torch.Tensor] = {}

    def predict(number: int, name: str, batch: Any) -> torch.Tensor:  # noqa: ANN401
        key = number, name
        if key not in made:
            generator = torch.Generator().manual_seed(crc32(f"{number} {name}".encode()))
            made[key] = torch.randn(shape, generator=generator)
        return made[key].clone()

    return predict


def _part(parts: Mapping[str, torch.Tensor], name: str, number: int) -> torch.Tensor:
    if name not in parts:
        raise ProtocolError(
            f"at step {number} it asks for '{name}', and on the same step of another run of the "
            f"same inputs it did not ({', '.join(parts)}). Let parameters and step alone decide."
        )
    return parts[name]


def _refuse_other_number(step: Step, batches: int, number: int) -> None:
    if step.announced != batches:
        raise ProtocolError(
            f"at step {number} num_conditions says {step.announced}, and prepare_inputs returned "
            f"{batches} batches. Let num_conditions return the number of batches of this step."
        )
    if len(step.parts) != batches:
        raise ProtocolError(
            f"at step {number} two batches have one name ({', '.join(step.parts)}). Give each its "
            "own of `_input_predictions`."
        )


def _prediction(output: Any) -> torch.Tensor:  # noqa: ANN401
    prediction = getattr(output, "pred", None)
    if not isinstance(prediction, torch.Tensor):
        got = f"a {type(output).__name__}" + ("" if prediction is None else " without a tensor")
        raise ProtocolError(
            f"forward returned {got}. Return GuiderOutput(pred=…, pred_cond=…, pred_uncond=…)."
        )
    first: torch.Tensor = output[0]
    if first is not prediction:
        raise ProtocolError(
            "the pipelines take output[0], and that of forward is not its `pred`. Return "
            "GuiderOutput(pred=…, pred_cond=…, pred_uncond=…), or let `pred` be the first field."
        )
    return first


def _all_of(batch: Any, fields: Mapping[str, Any]) -> bool | None:  # noqa: ANN401
    """Tell whether all that a batch holds is the prompts' (True) or the null prompt's (False)."""
    for answer, index in ((True, 0), (False, 1)):
        if all(alike(getattr(batch, name, None), pair[index]) for name, pair in fields.items()):
            return answer
    return None


def alike(a: Any, b: Any) -> bool:  # noqa: ANN401
    """Tell whether two fields of a batch are the same tensor, or equal ones."""
    if a is b:
        return True
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return tensors and a.shape == b.shape and bool(torch.equal(a, b))


def _conditional(batch: Any, inputs: ModelInputs) -> bool | None:  # noqa: ANN401
    embeddings = embeddings_of(batch)
    for answer, known in zip((True, False), inputs.prompt, strict=True):
        if embeddings.shape == known.shape and torch.equal(embeddings, known):
            return answer
    return None


def block_state_batches(guider: BaseGuidance, fields: Mapping[str, Any]) -> list[Any]:
    """Return what `prepare_inputs_from_block_state` makes of the fields of `prepare_inputs`.

    Raises:
        NotImplementedError: the guider has no such method of its own.
    """
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    values: dict[str, Any] = {}
    names: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, tuple):
            names[name] = (name, f"negative_{name}")
            values[name], values[f"negative_{name}"] = value
        else:
            names[name], values[name] = name, value
    return list(guider.prepare_inputs_from_block_state(BlockState(**values), names))


@contextmanager
def silence() -> Iterator[None]:
    """Keep diffusers' log off the screen: it warns at each guider, and prints each error thrice."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL + 1)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
