"""The LoRA alone: the conditional prediction, without guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autolora_eval.guidance.method import GuiderMethod
from autolora_eval.plugins.signatures import MethodParameters

if TYPE_CHECKING:
    from diffusers.guiders import BaseGuidance


class LoRAParameters(MethodParameters):
    """The LoRA alone has no parameters."""


def _build(parameters: LoRAParameters) -> BaseGuidance:
    from diffusers.guiders import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=1.0)


METHOD = GuiderMethod(
    name="lora",
    display_name="LoRA",
    summary="The conditional prediction of the model with its LoRAs, without guidance.",
    equation="ε_LoRA(x, y)",
    source="Hu et al. 2021, arXiv 2106.09685",
    parameters=LoRAParameters,
    nfe_per_step=lambda parameters, step, num_steps: 1,
    build=_build,
)
