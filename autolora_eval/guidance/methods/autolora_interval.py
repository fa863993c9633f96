"""AutoLoRA guidance in a limited interval of the steps, and CFG of the LoRA model outside."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from autolora_eval.guidance.methods.autolora_cfg import METHOD as AUTOLORA
from autolora_eval.guidance.methods.autolora_cfg import AutoLoRAParameters


class AutoLoRAIntervalParameters(AutoLoRAParameters):
    """Parameters of AutoLoRA guidance in a limited interval."""

    stop: float = Field(default=0.25, ge=0.0, le=1.0)
    """The fraction of the steps at which guidance stops; from there on γ is 1."""


METHOD = replace(
    AUTOLORA,
    name="autolora_interval",
    display_name="AutoLoRA in an interval",
    summary="AutoLoRA at some steps, classifier-free guidance of the LoRA model at the others.",
    equation="ε^{w1} + γ (ε_LoRA^{w2} − ε^{w1}) in [start, stop), else ε_LoRA^{w2}",
    source="AutoLoRA paper, equations (6) and (7); interval as in arXiv 2404.07724",
    parameters=AutoLoRAIntervalParameters,
)
