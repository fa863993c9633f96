"""AutoLoRA guidance that evaluates the base model at every k-th step and reuses the difference."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from autolora_eval.guidance.equations import last_base_step
from autolora_eval.guidance.methods.autolora_cfg import METHOD as AUTOLORA
from autolora_eval.guidance.methods.autolora_cfg import AutoLoRAParameters, nfe_per_step


class AutoLoRAReuseParameters(AutoLoRAParameters):
    """Parameters of AutoLoRA guidance with a reused difference."""

    # At γ = 0 the prediction is the base model's alone: a stored difference has no use.
    autolora_scale: float = Field(default=1.5, gt=0.0, le=100.0, allow_inf_nan=False)
    """The AutoLoRA scale γ, above 0."""
    base_every: int = Field(default=2, ge=1)
    """k: the base model is evaluated at every k-th step of the interval, first at its first."""


def _nfe_per_step(parameters: AutoLoRAReuseParameters, step: int, num_steps: int) -> int:
    last = last_base_step(step, num_steps, parameters.start, parameters.base_every)
    return nfe_per_step(parameters, step, num_steps, base_is_due=step == last)


METHOD = replace(
    AUTOLORA,
    name="autolora_reuse",
    display_name="AutoLoRA with a reused base",
    summary="AutoLoRA that evaluates the base model at every k-th step and reuses the difference.",
    equation="ε_LoRA^{w2} + (γ − 1) D, D = ε_LoRA^{w2} − ε^{w1} of the last k-th step",
    source="AutoLoRA paper, equations (6) and (7), with D of an earlier step",
    parameters=AutoLoRAReuseParameters,
    nfe_per_step=_nfe_per_step,
)
