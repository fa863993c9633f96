"""Classifier-free guidance of the LoRA-tuned model: equation (4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field

from autolora_eval.guidance.equations import cfg_terms
from autolora_eval.guidance.method import GuiderMethod
from autolora_eval.plugins.signatures import MethodParameters

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance


class CFGParameters(MethodParameters):
    """Parameters of classifier-free guidance."""

    guidance_scale: float | None = Field(default=None, ge=0.0, le=100.0, allow_inf_nan=False)
    """The CFG scale w. Default: the model's guidance scale."""

    def with_model_defaults(self, guidance_scale: float) -> Self:
        """Fill in w from the model."""
        w = guidance_scale if self.guidance_scale is None else self.guidance_scale
        return self.model_copy(update={"guidance_scale": w})


def _nfe_per_step(parameters: CFGParameters, step: int, num_steps: int) -> int:
    assert parameters.guidance_scale is not None
    return len(cfg_terms(parameters.guidance_scale))


def _build(parameters: CFGParameters) -> BaseGuidance:
    from autolora_eval.guidance.autolora import LeanClassifierFreeGuidance

    return LeanClassifierFreeGuidance(**parameters.model_dump())


METHOD = GuiderMethod(
    name="cfg",
    display_name="LoRA+CFG",
    summary="Classifier-free guidance of the model with its LoRAs, if it has any.",
    equation="ε_LoRA(x, ∅) + w (ε_LoRA(x, y) − ε_LoRA(x, ∅))",
    source="Ho and Salimans 2022, arXiv 2207.12598; AutoLoRA paper, equation (4)",
    parameters=CFGParameters,
    nfe_per_step=_nfe_per_step,
    build=_build,
)
