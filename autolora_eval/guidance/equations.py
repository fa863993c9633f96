"""The paper's guidance equations, on numbers or arrays alike, and which predictions each needs.

Symbols: ε a prediction of the base model, ε_LoRA of the same model with its LoRA on, w a CFG
scale, γ the AutoLoRA scale. For v- and flow-prediction models the same linear combinations apply
to the raw prediction, since at fixed x_t the parametrisations are affine images of each other.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, Self, TypeVar

Prediction = Literal["base_cond", "base_uncond", "lora_cond", "lora_uncond"]


class _Vector(Protocol):
    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __rmul__(self, other: float, /) -> Self: ...


Array = TypeVar("Array", bound=_Vector)


def classifier_free_guidance(uncond: Array, cond: Array, w: float) -> Array:
    """Equation (4): ε^w = ε(x, ∅) + w (ε(x, y) − ε(x, ∅)).

    Args:
        uncond: ε(x, ∅), any shape.
        cond: ε(x, y), same shape.
        w: the CFG scale; 1 gives ε(x, y).
    """
    return uncond + w * (cond - uncond)


def autolora_guidance(base: Array, lora: Array, gamma: float) -> Array:
    """Equations (6) and (7): ε + γ (ε_LoRA − ε).

    With plain conditional predictions this is (6); with each term by equation (4), it is (7).

    Args:
        base: ε, any shape.
        lora: ε_LoRA, same shape.
        gamma: the AutoLoRA scale; 0 gives the base model, 1 the LoRA, more goes beyond it.
    """
    return base + gamma * (lora - base)


def same(a: float, b: float) -> bool:
    """Tell whether two scales are the same number but for rounding."""
    return math.isclose(a, b, abs_tol=1e-9)


def in_interval(step: int, num_steps: int, start: float, stop: float) -> bool:
    """Tell whether guidance acts on a step: those in [start, stop) as fractions of all steps.

    Args:
        step: 0 … num_steps − 1.
        num_steps: number of denoising steps.
        start: fraction in [0, 1]; the first guided step is ⌊start · num_steps⌋.
        stop: fraction in [0, 1]; the first step no longer guided is ⌊stop · num_steps⌋.
    """
    first, last = (math.floor(edge * num_steps + 1e-9) for edge in (start, stop))
    return first <= step < last


def cfg_terms(w: float) -> tuple[Literal["cond", "uncond"], ...]:
    """Return the predictions that equation (4) needs: those whose coefficient is not zero."""
    if same(w, 1.0):
        return ("cond",)
    return ("uncond",) if same(w, 0.0) else ("cond", "uncond")


def autolora_predictions(gamma: float, w1: float, w2: float) -> tuple[Prediction, ...]:
    """Return the predictions that equation (7) needs: those whose coefficient is not zero.

    Args:
        gamma: the AutoLoRA scale γ.
        w1: CFG scale of the base branch.
        w2: CFG scale of the LoRA branch.
    """
    base: list[Prediction] = [
        "base_cond" if term == "cond" else "base_uncond" for term in cfg_terms(w1)
    ]
    lora: list[Prediction] = [
        "lora_cond" if term == "cond" else "lora_uncond" for term in cfg_terms(w2)
    ]
    return (*([] if same(gamma, 1.0) else base), *([] if same(gamma, 0.0) else lora))
