"""Classifier-free guidance in a limited interval of the steps."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, model_validator

from autolora_eval.guidance.equations import cfg_terms, in_interval
from autolora_eval.guidance.methods.cfg import METHOD as CFG
from autolora_eval.guidance.methods.cfg import CFGParameters


class CFGIntervalParameters(CFGParameters):
    """Parameters of classifier-free guidance in a limited interval."""

    start: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The fraction of the steps at which guidance starts; before it w is 1."""
    stop: float = Field(default=1.0, ge=0.0, le=1.0)
    """The fraction of the steps at which guidance stops; from there on w is 1."""

    @model_validator(mode="after")
    def _interval_is_not_reversed(self) -> CFGIntervalParameters:
        if self.stop < self.start:
            raise ValueError(f"stop ({self.stop}) must not be less than start ({self.start})")
        return self


def _nfe_per_step(parameters: CFGIntervalParameters, step: int, num_steps: int) -> int:
    p = parameters
    assert p.guidance_scale is not None
    acts = in_interval(step, num_steps, p.start, p.stop)
    return len(cfg_terms(p.guidance_scale)) if acts else 1


METHOD = replace(
    CFG,
    name="cfg_interval",
    display_name="LoRA+CFG in an interval",
    summary="Classifier-free guidance of the LoRA-tuned model at some steps.",
    equation="ε_LoRA(x, ∅) + w (ε_LoRA(x, y) − ε_LoRA(x, ∅)) in [start, stop), else ε_LoRA(x, y)",
    source="Kynkäänniemi et al. 2024, arXiv 2404.07724, with steps in place of noise levels",
    parameters=CFGIntervalParameters,
    nfe_per_step=_nfe_per_step,
)
