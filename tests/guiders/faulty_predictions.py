"""Guiders with a faulty output, by the check that they fail."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.utils import BaseOutput

from autolora_eval.guider_checks import GuiderSpec
from guiders.base import Good, breaks


@dataclass
class _OtherOutput(BaseOutput):
    pred_cond: torch.Tensor
    pred: torch.Tensor


@breaks("check_completes_image")
class AnnouncesAnotherNumber(Good):
    @property
    def num_conditions(self) -> int:
        return 3

    def prepare_inputs(self, data):
        return super().prepare_inputs(data)[:2]


@breaks("check_completes_image")
class ReturnsATensor(Good):
    def forward(self, pred_cond, pred_uncond=None):
        return super().forward(pred_cond, pred_uncond).pred


@breaks("check_completes_image")
class LeavesHalfPrecision(Good):
    """No pass after it works, and none of the next guider's would."""

    def cleanup_models(self, denoiser):
        denoiser.to(torch.bfloat16)


@breaks("check_completes_image")
class PredIsNotFirst(Good):
    def forward(self, pred_cond, pred_uncond=None):
        return _OtherOutput(pred_cond=pred_cond, pred=super().forward(pred_cond, pred_uncond).pred)


@breaks("check_completes_image")
class SeedsWhereItActs(Good):
    """It has no generator if the interval starts later."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        if self._step == 0:
            self.generator = torch.Generator().manual_seed(7)
        noise = torch.randn((1, *cond.shape[1:]), generator=self.generator)
        return super().combine(cond, uncond) + 0.05 * noise.to(cond)


@breaks("check_completes_image")
class DividesByStepsLessOne(Good):
    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        done = self._step / (self._num_inference_steps - 1)
        return uncond + (1 + (self.guidance_scale - 1) * (1 - 0.5 * done)) * (cond - uncond)


@breaks("check_runs_in_pipeline")
class KnowsSomeTimestepsOnly(Good):
    def combine(self, cond, uncond):
        if self._timestep > 990:
            raise KeyError(float(self._timestep))
        return super().combine(cond, uncond)


@breaks("check_output_shape")
class DropsADimension(Good):
    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        return super().combine(cond, uncond).mean(dim=1, keepdim=True)


@breaks("check_output_dtype")
class DoubleOutside(Good):
    def forward(self, pred_cond, pred_uncond=None):
        if pred_uncond is None and not self.in_window():
            return GuiderOutput(pred=pred_cond.double(), pred_cond=pred_cond, pred_uncond=None)
        return super().forward(pred_cond, pred_uncond)


@breaks("check_output_dtype")
class SquaresInHalfPrecision(Good):
    """The sum is infinite in float16, so guidance has no effect."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        difference = cond - uncond
        norm = difference.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return uncond + self.guidance_scale * difference * (2.5 / norm).clamp(max=1.0)


@breaks("check_inputs_not_modified")
class ChangesInPlace(Good):
    def combine(self, cond, uncond):
        uncond += self.guidance_scale * (cond - uncond)
        return uncond


@breaks("check_inputs_not_modified")
class ClampsInPlace(Good):
    """The second time it changes nothing."""

    guider_spec = GuiderSpec()

    def forward(self, pred_cond, pred_uncond=None):
        if pred_uncond is not None:
            pred_uncond.clamp_(-0.5, 0.5)
        return super().forward(pred_cond, pred_uncond)


@breaks("check_deterministic")
class Reseeds(Good):
    """It changes the noise of the next image."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        torch.manual_seed(0)
        return super().combine(cond, uncond) + 0.01 * torch.randn(cond.shape[1:]).to(cond)


@breaks("check_deterministic")
class DrawsAndThrowsAway(Good):
    def combine(self, cond, uncond):
        random.random()
        return super().combine(cond, uncond)


@breaks("check_batch_independence")
class MixesTheBatch(Good):
    guider_spec = GuiderSpec(linear_params=("guidance_scale",))

    def combine(self, cond, uncond):
        difference = cond - uncond
        return uncond + self.guidance_scale * difference / difference.std()


@breaks("check_batch_independence")
class ClipsTheBatchesNorm(Good):
    """The predictions of a tiny model never reach the limit."""

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


@breaks("check_batch_independence")
class AddsNoiseToTheEmbeddings(Good):
    """Each image of a batch has its own noise, by its position."""

    guider_spec = GuiderSpec()

    def prepare_inputs(self, data):
        return self.noisy(super().prepare_inputs(data))

    def prepare_inputs_from_block_state(self, data, input_fields):
        return self.noisy(super().prepare_inputs_from_block_state(data, input_fields))

    def noisy(self, batches):
        if self.acts():
            embeddings, generator = batches[0].encoder_hidden_states, torch.Generator()
            noise = torch.randn(embeddings.shape, generator=generator.manual_seed(7))
            batches[0].encoder_hidden_states = embeddings + 0.3 * noise.to(embeddings)
        return batches


@breaks("check_scales_have_effect")
class IdleScale(Good):
    guider_spec = GuiderSpec(identity_params={"guidance_scale": 1.0})

    @register_to_config
    def __init__(self, guidance_scale: float = 4.0, extra_scale: float = 2.0) -> None:
        super().__init__(guidance_scale=guidance_scale)
        self.extra_scale = extra_scale


@breaks("check_identity_params")
class NeutralSomewhereElse(Good):
    def acts(self) -> bool:
        return self._enabled and self.in_window()

    def combine(self, cond, uncond):
        return uncond + (self.guidance_scale + 0.5) * (cond - uncond)


@breaks("check_disabled")
class CannotBeDisabled(Good):
    def acts(self) -> bool:
        return self.in_window() and not math.isclose(self.guidance_scale, 1.0)


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


@breaks("check_linear_in_predictions")
class FalselyLinearInPredictions(Good):
    def combine(self, cond, uncond):
        difference = cond - uncond
        norm = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return uncond + self.guidance_scale * difference * (1.0 / norm)


WITHIN = {
    "WindowOffByOne": lambda g, step, n: int(g._start * n) <= step <= int(g._stop * n),
    "IgnoresItsWindow": lambda g, step, n: True,
    "CountsToTheLastStep": lambda g, step, n: g._start <= step / max(n - 1, 1) < g._stop,
    "RoundsItsWindow": lambda g, step, n: round(g._start * n) <= step < math.ceil(g._stop * n),
    "WindowOfTimesteps": lambda g, *_: g._start <= 1 - float(g._timestep) / 1000 < g._stop,
    "LeavesOutTheLastStep": lambda g, step, n: Good.within(g, step, n) and step != n - 1,
}
for name, within in WITHIN.items():
    breaks("check_active_intervals")(type(name, (Good,), {"within": within}))

COMBINE = {
    "check_completes_image": {
        "DividesByZero": lambda g, c, u: u / (g._step * (c - c).abs()) + g.guidance_scale * (c - u),
        "Exits": lambda *_: sys.exit("bye"),
    },
    "check_output_dtype": {
        "WrongDtype": lambda g, c, u: Good.combine(g, c.float(), u.float()),
    },
    "check_output_device": {
        "OnTheCpu": lambda g, c, u: Good.combine(g, c, u) * torch.ones(c.shape[1:], dtype=c.dtype),
    },
    "check_deterministic": {
        "Draws": lambda g, c, u: Good.combine(g, c, u) + 0.01 * torch.randn_like(c),
    },
    "check_guidance_has_effect": {"DoesNothing": lambda g, c, u: c},
    "check_linear_params": {
        "FalselyLinear": lambda g, c, u: u + g.guidance_scale**2 * (c - u),
        "LinearToTen": lambda g, c, u: u + min(g.guidance_scale, 10.0) * (c - u),
    },
}
for check, faulty in COMBINE.items():
    for name, combine in faulty.items():
        breaks(check)(type(name, (Good,), {"combine": combine}))
