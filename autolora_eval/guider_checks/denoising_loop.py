"""The denoising loop of the checks. It drives a guider as diffusers' pipelines do.

With `tiny_models` this is the only part of the checks that uses diffusers' guider interface, which
is experimental.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from diffusers.utils import logging as diffusers_logging

from autolora_eval.guider_checks.tiny_models import ModelInputs, TinyModel, prompt_embeddings

Predict = Callable[[int, str, Any], torch.Tensor]
"""(step, name of the prediction, prepared batch) → the prediction, [B, C, H, W]."""


class ProtocolError(Exception):
    """A guider does not follow the protocol between pipelines and guiders, so its check fails."""


@dataclass
class Step:
    """What happened at one denoising step.

    Attributes:
        num_conditions: `num_conditions` of the guider before the predictions are made.
        predictions: The predictions that the guider asked for, by its names for them.
        is_conditional: By the same names, whether the batch had the embeddings of the prompts
            (`True`), of the negative prompt (`False`), or others (`None`).
        nfe: Function evaluations, including those that the guider made itself.
        output: The guided prediction.
    """

    num_conditions: int
    predictions: dict[str, torch.Tensor] = field(default_factory=dict)
    is_conditional: dict[str, bool | None] = field(default_factory=dict)
    nfe: int = 0
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def iter_steps(
    guider: BaseGuidance,
    model: TinyModel,
    inputs: ModelInputs,
    predict: Predict | None = None,
    after_cleanup: Callable[[int, str], object] = lambda step, name: None,
) -> Iterator[Step]:
    """Yield the denoising steps of one batch of images.

    The latents of every step are given, not computed from the guidance before. So a difference at
    one step does not spread to the next ones.

    Args:
        guider: Used with the state that it has.
        model: Its denoiser makes the predictions; the guider prepares it and cleans it up.
        inputs: Latents, timesteps and embeddings.
        predict: Replaces the denoiser. Defaults to `denoiser_predictions`.
        after_cleanup: Called with step and name of each prediction after `cleanup_models`.

    Raises:
        ProtocolError: if the number of prepared batches is not `num_conditions`, or the guider
            does not return a `GuiderOutput`.
    """
    predict = predict or denoiser_predictions(guider, model, inputs)
    for index in range(len(inputs.latents)):
        with torch.no_grad():
            step = _run_step(guider, model, inputs, index, predict, after_cleanup)
        yield step


def _run_step(
    guider: BaseGuidance,
    model: TinyModel,
    inputs: ModelInputs,
    index: int,
    predict: Predict,
    after_cleanup: Callable[[int, str], object],
) -> Step:
    guider.set_state(
        step=index, num_inference_steps=len(inputs.latents), timestep=inputs.timesteps[index]
    )
    step, nfe_before = Step(guider.num_conditions), model.nfe
    batches = guider.prepare_inputs(model.fields(inputs, index))
    for batch in batches:
        name = prediction_name(batch)
        guider.prepare_models(model.denoiser)
        step.is_conditional[name] = _branch([(prompt_embeddings(batch), inputs.prompt)])
        batch.noise_pred = predict(index, name, batch)
        # A copy, because a guider may work in place.
        step.predictions[name] = batch.noise_pred.clone()
        guider.cleanup_models(model.denoiser)
        after_cleanup(index, name)
    _require_num_conditions(step, len(batches), index)
    step.output = _require_prediction(guider(batches))
    step.nfe = model.nfe - nfe_before
    return step


def denoiser_predictions(
    guider: BaseGuidance, model: TinyModel, inputs: ModelInputs, *, cached: bool = True
) -> Predict:
    """Return a `predict` that calls the denoiser.

    A prediction depends on the step, the embeddings and how the guider has set the denoiser. If it
    is `cached`, the embeddings are those of the prompts or of the negative prompt, and only plain
    values such as LoRA switches are set, it is computed once for these inputs.
    """
    ignores = ignores_denoiser(type(guider))

    def predict(index: int, name: str, batch: Any) -> torch.Tensor:  # noqa: ANN401
        fields = model.fields(inputs, index).items()
        given = [(getattr(batch, name, None), pair) for name, pair in fields]
        branch = _branch(given) if cached else None
        settings = frozenset[str]() if ignores or branch is None else model.settings()
        if settings is None:
            return model.predict(inputs, index, batch)
        return model.predict(inputs, index, batch, branch, settings)

    return predict


def ignores_denoiser(cls: type[BaseGuidance]) -> bool:
    """Return `True` if a guider class overrides no method that is given the denoiser."""
    return all(
        getattr(cls, name) is getattr(BaseGuidance, name)
        for name in ("prepare_models", "cleanup_models")
    )


def prediction_name(batch: Any) -> str:  # noqa: ANN401
    """Return the guider's name for the prediction that a prepared batch is for."""
    return str(getattr(batch, BaseGuidance._identifier_key))


def replay(steps: Sequence[Step], change: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    """Return a `predict` that returns the predictions of an earlier run, each changed."""

    def predict(index: int, name: str, batch: object) -> torch.Tensor:
        known = steps[index].predictions
        if name not in known:
            raise ProtocolError(
                f"at step {index} it asks for '{name}', but at the same step of another run it "
                f"did not ({', '.join(known)}). Only parameters and step may decide that."
            )
        return change(known[name].clone())

    return predict


def random_predictions(shape: tuple[int, ...]) -> Predict:
    """Return a `predict` of normal numbers, which depend on step and name only."""
    return lambda index, name, batch: _normal(shape, f"{index} {name}").clone()


@cache
def _normal(shape: tuple[int, ...], key: str) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(key.encode())))


def _require_num_conditions(step: Step, batches: int, index: int) -> None:
    if step.num_conditions != batches:
        raise ProtocolError(
            f"at step {index} num_conditions is {step.num_conditions}, but prepare_inputs returned "
            f"{batches} batches. num_conditions must be the number of batches of this step."
        )
    if len(step.predictions) != batches:
        raise ProtocolError(
            f"at step {index} two batches have the same name ({', '.join(step.predictions)}). "
            "Give each its own name from `_input_predictions`."
        )


def _require_prediction(output: Any) -> torch.Tensor:  # noqa: ANN401
    prediction = getattr(output, "pred", None)
    if not isinstance(prediction, torch.Tensor):
        got = f"a {type(output).__name__}" + ("" if prediction is None else " without a tensor")
        raise ProtocolError(
            f"forward returned {got}. Return GuiderOutput(pred=…, pred_cond=…, pred_uncond=…)."
        )
    first: torch.Tensor = output[0]
    if first is not prediction:
        raise ProtocolError(
            "pipelines read output[0], but the first field of what forward returned is not `pred`. "
            "Return GuiderOutput(pred=…, pred_cond=…, pred_uncond=…)."
        )
    return first


def _branch(fields: Sequence[tuple[Any, Sequence[Any]]]) -> bool | None:
    """Return `True` if all values are the prompts', `False` if the negative prompt's.

    Args:
        fields: each value, and what it is for the prompts and for the negative prompt.
    """
    for branch, index in ((True, 0), (False, 1)):
        if all(tensors_equal(value, pair[index]) for value, pair in fields):
            return branch
    return None


def tensors_equal(a: Any, b: Any) -> bool:  # noqa: ANN401
    """Return `True` if two fields are the same object or equal tensors."""
    if a is b:
        return True
    both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return both and a.shape == b.shape and bool(torch.equal(a, b))


def block_state_batches(guider: BaseGuidance, fields: Mapping[str, Any]) -> list[Any]:
    """Call `prepare_inputs_from_block_state` with the fields of `prepare_inputs`.

    Raises:
        NotImplementedError: if the guider does not implement it.
    """
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    names = {name: (name, f"negative_{name}") for name in fields}
    values = {n: v for name, pair in fields.items() for n, v in zip(names[name], pair, strict=True)}
    return list(guider.prepare_inputs_from_block_state(BlockState(**values), names))


def reshaped(prediction: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Fill another shape with a prediction's numbers, repeated as needed."""
    size = torch.Size(shape).numel()
    return prediction.flatten().repeat(-(-size // prediction.numel()))[:size].reshape(shape).clone()


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence diffusers' log, which warns about every guider and repeats every error."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL + 1)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def generator_states() -> dict[str, object]:
    """Return the states of the global random generators."""
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),
        "random": random.getstate(),
    }


# --------------------
# Comparisons of parameters and of runs.


EQUAL = 1e-4
"""Relative difference up to which predictions are equal: float32 rounding, multiplied by a
guidance scale of about ten."""
DIFFERENT = 1e-3
"""Relative difference from which predictions differ."""


def format_params(parameters: Mapping[str, Any]) -> str:
    """Return parameters as text, such as `start=0.27, stop=0.68`."""
    return ", ".join(f"{name}={value}" for name, value in parameters.items())


def is_number(value: object) -> bool:
    """Return `True` for integers and floats, but not for flags."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return max |a − b| relative to max |b|, infinite if the two cannot be compared."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.detach().double(), b.detach().double()
    gap = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
    return gap if math.isfinite(gap) else math.inf


def first_difference(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], tolerance: float = EQUAL
) -> int | None:
    """Return the first step at which two runs differ. `None` if there is none."""
    pairs = enumerate(zip(a, b, strict=True))
    return next((n for n, (x, y) in pairs if distance(x, y) > tolerance), None)


def same_json(a: Any, b: Any) -> bool:  # noqa: ANN401
    """Compare two parameters as JSON: tuples equal lists, and NaN equals NaN."""
    return (
        len({json.dumps(x, default=_to_json, sort_keys=True, skipkeys=True) for x in (a, b)}) == 1
    )


def _to_json(value: Any) -> Any:  # noqa: ANN401
    for method in ("to_dict", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Enum):
        return value.value
    attributes = getattr(value, "__dict__", None)
    return [type(value).__qualname__, attributes] if attributes else str(value)
