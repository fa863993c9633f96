"""Classifier-free guidance of diffusers without the prediction that its scale makes useless."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS
from autolora_eval.guidance.equations import scales_equal

_UNCOND = 1


class LeanClassifierFreeGuidance(ClassifierFreeGuidance):
    """diffusers' guider; at scale 0 it makes no conditional prediction, whose coefficient is 0."""

    guider_spec = DIFFUSERS_GUIDERS["ClassifierFreeGuidance"].spec

    @property
    def _needs_no_cond(self) -> bool:
        # Before the first step pipelines read how many predictions there are, to encode ∅ for two.
        acts = self._step is not None and self._is_cfg_enabled()
        return acts and scales_equal(self.guidance_scale, 0.0)

    @property
    def num_conditions(self) -> int:
        """The number of predictions of the current step."""
        return 1 if self._needs_no_cond else int(super().num_conditions)

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction that is being prepared is conditional."""
        return not self._needs_no_cond and bool(super().is_conditional)

    def prepare_inputs(self, data: Any) -> list[Any]:  # noqa: ANN401
        """Return one batch of denoiser inputs for each prediction of this step."""
        if self._needs_no_cond:
            return [self._prepare_batch(data, _UNCOND, "pred_uncond")]
        return list(super().prepare_inputs(data))

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:  # noqa: ANN401
        """Do the same as `prepare_inputs`, for pipelines such as Z-Image."""
        if self._needs_no_cond:
            batch = self._prepare_batch_from_block_state
            return [batch(input_fields, data, _UNCOND, "pred_uncond")]
        return list(super().prepare_inputs_from_block_state(data, input_fields))

    def forward(
        self, pred_cond: torch.Tensor | None = None, pred_uncond: torch.Tensor | None = None
    ) -> GuiderOutput:
        """Combine the predictions by equation (4)."""
        if pred_cond is None:
            # Qwen-Image's pipeline rescales `pred` to the norm of `pred_cond`.
            return GuiderOutput(pred=pred_uncond, pred_cond=pred_uncond, pred_uncond=pred_uncond)
        return super().forward(pred_cond, pred_uncond)
