"""A guider: classifier-free guidance whose scale falls from step to step."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guider_checks import GuiderSpec


class FadingGuidance(BaseGuidance):
    """Classifier-free guidance whose scale falls linearly. After https://arxiv.org/abs/2404.13040.

    Args:
        guidance_scale: w of the first step.
        last_scale: w of the last step.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012
    guider_spec = GuiderSpec(
        identity_params={"guidance_scale": 1.0, "last_scale": 1.0},
        linear_params=("guidance_scale", "last_scale"),
        linear_in_predictions=True,
    )

    @register_to_config
    def __init__(self, guidance_scale: float = 5.0, last_scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.last = guidance_scale, last_scale

    @property
    def num_conditions(self) -> int:
        return 2 if self._enabled else 1

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared == 1

    def prepare_inputs(self, data):
        pairs = enumerate(self._input_predictions[: self.num_conditions])
        return [self._prepare_batch(data, index, name) for index, name in pairs]

    def forward(
        self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None
    ) -> GuiderOutput:
        if pred_uncond is None:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond)
        done = self._step / max(self._num_inference_steps - 1, 1)
        w = self.first + done * (self.last - self.first)
        pred = pred_uncond + w * (pred_cond - pred_uncond)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)
