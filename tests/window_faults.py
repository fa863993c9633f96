"""Faulty guiders that act, or keep state, wrongly at some steps, sizes or numbers of steps only."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from faulty_guiders import Good, breaks

from autolora_eval.guider_checks import GuiderSpec


@breaks("check_no_state_between_images")
class ResetsWhereItActs(Good):
    """Step 0 is not reached where the window starts later."""

    guider_spec = GuiderSpec(linear_params=("guidance_scale",))
    momentum = None

    def combine(self, cond, uncond):
        if self._step == 0:
            self.momentum = None
        difference = cond - uncond
        self.momentum = difference if self.momentum is None else difference - 0.5 * self.momentum
        return uncond + self.guidance_scale * self.momentum


@breaks("check_completes_image")
class SeedsWhereItActs(Good):
    """It has no generator where the window starts later."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        if self._step == 0:
            self.generator = torch.Generator().manual_seed(7)
        noise = torch.randn((1, *cond.shape[1:]), generator=self.generator)
        return super().combine(cond, uncond) + 0.05 * noise.to(cond)


@breaks("check_output_dtype")
class DoubleOutside(Good):
    def forward(self, pred_cond, pred_uncond=None):
        if pred_uncond is None and not self.in_window():
            return GuiderOutput(pred=pred_cond.double(), pred_cond=pred_cond, pred_uncond=None)
        return super().forward(pred_cond, pred_uncond)


@breaks("check_nfe")
class DeclaresOneCost(Good):
    guider_spec = GuiderSpec(nfe_per_step=lambda parameters, step, num_steps: 2)


@breaks("check_denoiser_restored")
class HookOutside(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if not self.in_window():
            denoiser.register_forward_hook(lambda module, inputs, output: output)


@breaks("check_active_intervals")
class CountsToTheLastStep(Good):
    def in_window(self) -> bool:
        if self._step is None:
            return True
        return self._start <= self._step / max(self._num_inference_steps - 1, 1) < self._stop


@breaks("check_active_intervals")
class RoundsItsWindow(Good):
    def in_window(self) -> bool:
        if self._step is None:
            return True
        n = self._num_inference_steps
        return round(self._start * n) <= self._step < math.ceil(self._stop * n)


@breaks("check_active_intervals")
class WindowOfTimesteps(Good):
    def in_window(self) -> bool:
        if self._step is None:
            return True
        return self._start <= 1 - float(self._timestep) / 1000 < self._stop


@breaks("check_active_intervals")
class LeavesOutTheLastStep(Good):
    def in_window(self) -> bool:
        return super().in_window() and self._step != (self._num_inference_steps or 0) - 1


@breaks("check_disabled")
class DropsEnabled(Good):
    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 4.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        BaseGuidance.__init__(self, start, stop)
        self.guidance_scale = guidance_scale


@breaks("check_no_state_between_images")
class KeepsItsSchedule(Good):
    """Of the first image's number of steps."""

    scales = None

    def combine(self, cond, uncond):
        if self.scales is None:
            steps = self._num_inference_steps
            self.scales = torch.linspace(2.0, self.guidance_scale, steps).tolist()
        return uncond + self.scales[self._step] * (cond - uncond)


@breaks("check_no_state_between_images")
class KeepsItsNoise(Good):
    """Of the first image's size."""

    guider_spec = GuiderSpec()
    noise = None

    def combine(self, cond, uncond):
        if self.noise is None:
            self.noise = torch.randn(cond.shape[1:], generator=torch.Generator().manual_seed(0))
        return super().combine(cond, uncond) + 0.01 * self.noise.to(cond)


@breaks("check_no_state_between_images")
class HistoryOnTheClass(Good):
    guider_spec = GuiderSpec()
    history: list = []  # noqa: RUF012

    def prepare_inputs(self, data):
        if self._step == 0:
            self.history.clear()
        return super().prepare_inputs(data)

    def combine(self, cond, uncond):
        self.history.append(cond - uncond)
        return uncond + self.guidance_scale * sum(self.history) / len(self.history)


@breaks("check_completes_image")
class DividesByStepsLessOne(Good):
    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        done = self._step / (self._num_inference_steps - 1)
        return uncond + (1 + (self.guidance_scale - 1) * (1 - 0.5 * done)) * (cond - uncond)


@breaks("check_batch_independence")
class ClipsTheBatchesNorm(Good):
    """Which in a tiny model's predictions is never reached."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        difference = cond - uncond
        scale = (60.0 / difference.float().norm()).clamp(max=1.0)
        return uncond + self.guidance_scale * difference * scale.to(cond.dtype)


@breaks("check_batch_independence")
class ThresholdsByTheBatch(Good):
    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        made = super().combine(cond, uncond)
        limit = made.abs().amax().clamp(min=20.0)
        return made.clamp(-limit, limit) * (20.0 / limit)


@breaks("check_output_dtype")
class SquaresInHalfPrecision(Good):
    """The sum is infinite in float16, and the guidance gone."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        difference = cond - uncond
        norm = difference.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return uncond + self.guidance_scale * difference * (2.5 / norm).clamp(max=1.0)
