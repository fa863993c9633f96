"""AutoLoRA guidance, with or without CFG: equations (6) and (7), and the limited interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from autolora_eval.guidance.equations import autolora_predictions, in_interval
from autolora_eval.guidance.method import GuiderMethod
from autolora_eval.plugins.signatures import MethodParameters

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance


class AutoLoRAParameters(MethodParameters):
    """Parameters of AutoLoRA guidance."""

    autolora_scale: float = Field(default=1.5, ge=0.0, le=100.0, allow_inf_nan=False)
    """The AutoLoRA scale γ."""
    guidance_scale: float | None = Field(default=None, ge=0.0, le=100.0, allow_inf_nan=False)
    """The CFG scale of the LoRA model, w2. Default: the model's guidance scale. 1 is AutoLoRA
    without CFG, equation (6).
    """
    base_guidance_scale: float | None = Field(default=None, ge=0.0, le=100.0, allow_inf_nan=False)
    """The CFG scale of the base model, w1. Default: w2."""
    start: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The fraction of the steps at which guidance starts; before it γ is 1."""
    stop: float = Field(default=1.0, ge=0.0, le=1.0)
    """The fraction of the steps at which guidance stops; from there on γ is 1."""

    @model_validator(mode="after")
    def _interval_is_not_reversed(self) -> AutoLoRAParameters:
        if self.stop < self.start:
            raise ValueError(f"stop ({self.stop}) must not be less than start ({self.start})")
        return self

    def with_model_defaults(self, guidance_scale: float) -> AutoLoRAParameters:
        """Fill in w2 from the model, and w1 from w2."""
        w2 = guidance_scale if self.guidance_scale is None else self.guidance_scale
        w1 = w2 if self.base_guidance_scale is None else self.base_guidance_scale
        return self.model_copy(update={"guidance_scale": w2, "base_guidance_scale": w1})


def nfe_per_step(
    parameters: AutoLoRAParameters, step: int, num_steps: int, *, base_is_due: bool = True
) -> int:
    """Return the function evaluations at a step; those of the base model only where it is due."""
    p = parameters
    assert p.base_guidance_scale is not None
    assert p.guidance_scale is not None
    gamma = p.autolora_scale if in_interval(step, num_steps, p.start, p.stop) else 1.0
    w1, w2 = p.base_guidance_scale, p.guidance_scale
    return len(autolora_predictions(gamma, w1, w2, base_is_due=base_is_due))


def _build(parameters: AutoLoRAParameters) -> BaseGuidance:
    from autolora_eval.guidance.autolora import AutoLoRAGuidance

    return AutoLoRAGuidance(**parameters.model_dump())


METHOD = GuiderMethod(
    name="autolora",
    display_name="AutoLoRA",
    summary="Moves the prediction of the LoRA model away from that of the base model.",
    equation="ε^{w1} + γ (ε_LoRA^{w2} − ε^{w1})",
    source="AutoLoRA paper, equations (6) and (7)",
    parameters=AutoLoRAParameters,
    nfe_per_step=nfe_per_step,
    build=_build,
    needs_lora=True,
)
