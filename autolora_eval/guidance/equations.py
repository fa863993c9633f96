"""The guidance equations of the AutoLoRA paper, and which predictions each of them needs.

Notation: x is the noisy latent, y the prompt and ∅ the negative prompt. ε is the prediction of the
base model, ε_LoRA that of the same model with its LoRA on, at LoRA scale α (equation 2). w is a
CFG scale and γ the AutoLoRA scale.

The equations are linear in the predictions. For v-prediction and flow models they apply to the raw
prediction unchanged: at a fixed x the parametrisations are affine functions of each other, and the
coefficients of each equation sum to 1.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, Self, TypeVar

Prediction = Literal["base_cond", "base_uncond", "lora_cond", "lora_uncond"]
"""ε(x, y), ε(x, ∅), ε_LoRA(x, y) and ε_LoRA(x, ∅)."""


class _Vector(Protocol):
    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __rmul__(self, other: float, /) -> Self: ...


# A number, a NumPy array or a tensor.
Array = TypeVar("Array", bound=_Vector)


def classifier_free_guidance(uncond: Array, cond: Array, w: float) -> Array:
    """Return classifier-free guidance, equation (4): ε^w = ε(x, ∅) + w (ε(x, y) − ε(x, ∅)).

    Args:
        uncond: ε(x, ∅), any shape.
        cond: ε(x, y), same shape.
        w: CFG scale. 0 gives ε(x, ∅), 1 gives ε(x, y), and larger values follow the prompt more.
    """
    return uncond + w * (cond - uncond)


def autolora_guidance(base: Array, lora: Array, gamma: float) -> Array:
    """Return AutoLoRA guidance, equations (6) and (7): ε + γ (ε_LoRA − ε).

    With conditional predictions this is equation (6), with predictions guided by equation (4) it
    is equation (7).

    Args:
        base: ε, any shape.
        lora: ε_LoRA, same shape.
        gamma: AutoLoRA scale γ. 0 gives the base model, 1 the LoRA model, and larger values
            extrapolate beyond it.
    """
    return base + gamma * (lora - base)


def reused_autolora_guidance(lora: Array, difference: Array, gamma: float) -> Array:
    """Return AutoLoRA guidance with the difference of an earlier step: ε_LoRA + (γ − 1) D.

    With D = ε_LoRA − ε of the same step it is equations (6) and (7). With D of an earlier step no
    prediction of the base model is needed.

    Args:
        lora: ε_LoRA of this step, any shape.
        difference: D, same shape.
        gamma: AutoLoRA scale γ.
    """
    return lora + (gamma - 1.0) * difference


def cfg_terms(w: float) -> tuple[Literal["cond", "uncond"], ...]:
    """Return the predictions with a non-zero coefficient in equation (4): w and 1 − w."""
    if scales_equal(w, 1.0):
        return ("cond",)
    return ("uncond",) if scales_equal(w, 0.0) else ("cond", "uncond")


def autolora_predictions(
    gamma: float, w1: float, w2: float, *, base_is_due: bool = True
) -> tuple[Prediction, ...]:
    """Return the predictions with a non-zero coefficient in equation (7).

    Args:
        gamma: AutoLoRA scale γ. At 1 no base prediction is needed, at 0 no LoRA prediction.
        w1: CFG scale of the base model.
        w2: CFG scale of the LoRA model.
        base_is_due: `False` if the difference of an earlier step is reused: no base prediction.
    """
    needed: list[Prediction] = []
    if base_is_due and not scales_equal(gamma, 1.0):
        needed += ["base_cond" if term == "cond" else "base_uncond" for term in cfg_terms(w1)]
    if not scales_equal(gamma, 0.0):
        needed += ["lora_cond" if term == "cond" else "lora_uncond" for term in cfg_terms(w2)]
    return tuple(needed)


def in_interval(step: int, num_steps: int, start: float, stop: float) -> bool:
    """Return `True` if guidance acts at a step: ⌊start · num_steps⌋ ≤ step < ⌊stop · num_steps⌋.

    Args:
        step: Index of the step, 0 to `num_steps` − 1.
        num_steps: Number of denoising steps.
        start: Beginning of the interval as a fraction of the steps, in [0, 1].
        stop: End of the interval as a fraction of the steps, in [0, 1]; not included.
    """
    return _first_step(start, num_steps) <= step < _first_step(stop, num_steps)


def last_base_step(step: int, num_steps: int, start: float, every: int) -> int:
    """Return the last step, up to this one, at which the base model is due.

    It is due at every `every`-th step of the interval that begins at ⌊start · num_steps⌋.

    Args:
        step: Index of the step, not before the interval.
        num_steps: Number of denoising steps.
        start: Beginning of the interval as a fraction of the steps, in [0, 1].
        every: k; 1 for every step.
    """
    return step - (step - _first_step(start, num_steps)) % every


def _first_step(edge: float, num_steps: int) -> int:
    # In floating point 0.29 · 100 is 28.999…; the first step is 29 all the same.
    return math.floor(edge * num_steps + 1e-9)


def scales_equal(a: float, b: float) -> bool:
    """Return `True` if two scales are equal up to rounding, as in a sweep by steps of 0.1."""
    return math.isclose(a, b, abs_tol=1e-9)
