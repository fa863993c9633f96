"""Classifier-free guidance whose scale rises during the denoising steps."""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guider_checks import GuiderSpec


class RisingCFG(ClassifierFreeGuidance):
    """CFG whose scale rises linearly from `first_scale` to `guidance_scale`.

    A low scale in the first steps leaves the composition of the image open.

    Args:
        guidance_scale: Scale at the last step.
        first_scale: Scale at the first step. 1 means no guidance.
    """

    # Tell the checks that with both scales at 1, the prediction is the conditional one.
    guider_spec = GuiderSpec(identity_params={"guidance_scale": 1.0, "first_scale": 1.0})

    @register_to_config
    def __init__(self, guidance_scale: float = 5.0, first_scale: float = 1.0) -> None:
        super().__init__(guidance_scale=guidance_scale)
        self.first_scale = first_scale

    def forward(
        self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None
    ) -> GuiderOutput:
        """Combine the predictions; both are [B, C, H, W]."""
        if pred_uncond is None:
            return super().forward(pred_cond, pred_uncond)
        progress = self._step / max(self._num_inference_steps - 1, 1)
        scale = self.first_scale + progress * (self.guidance_scale - self.first_scale)
        guided = pred_uncond + scale * (pred_cond - pred_uncond)
        return GuiderOutput(pred=guided, pred_cond=pred_cond, pred_uncond=pred_uncond)
