"""Faulty guiders as objects: their parameters, their config, random numbers, clean-up."""

from __future__ import annotations

import random
import sys

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from faulty_guiders import Good, breaks

from autolora_eval.guider_checks import GuiderSpec


@breaks("check_new_roundtrip")
class HandsOnNothing(ClassifierFreeGuidance):
    """Its parent then takes start, stop and enabled for defaults, which new() leaves out."""

    guider_spec = GuiderSpec(linear_params=("guidance_scale",))

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 4.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(guidance_scale=guidance_scale)
        self._start, self._stop, self._enabled = start, stop, enabled


@breaks("check_new_roundtrip")
class WritesIntoItsConfig(Good):
    def prepare_inputs(self, data):
        self.register_to_config(guidance_scale=self.guidance_scale + 0.1 * self._step)
        return super().prepare_inputs(data)


@breaks("check_new_roundtrip")
class PassesOn(ClassifierFreeGuidance):
    """Its window comes through `**kwargs`, which new() drops."""

    @register_to_config
    def __init__(self, guidance_scale: float = 4.0, **kwargs) -> None:
        super().__init__(guidance_scale=guidance_scale, **kwargs)


@breaks("check_deterministic")
class Reseeds(Good):
    """The same numbers each time, and the next image's noise too."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        torch.manual_seed(0)
        return super().combine(cond, uncond) + 0.01 * torch.randn(cond.shape[1:]).to(cond)


@breaks("check_deterministic")
class DrawsAndThrowsAway(Good):
    def combine(self, cond, uncond):
        random.random()
        return super().combine(cond, uncond)


@breaks("check_linear_params")
class LinearToTen(Good):
    def combine(self, cond, uncond):
        return uncond + min(self.guidance_scale, 10.0) * (cond - uncond)


@breaks("check_denoiser_restored_after_error")
class LateHook(Good):
    """It removes itself, which a pass that fails does not come to; and at late steps only."""

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if self._step >= 5 and not self.is_conditional:
            handle = denoiser.register_forward_hook(lambda module, inputs, output: handle.remove())


@breaks("check_num_conditions_before_first_step")
class ComparesNoStep(Good):
    @property
    def num_conditions(self) -> int:
        return 2 if self._step >= 0 and self.acts() else 1


@breaks("check_completes_image")
class Exits(Good):
    def combine(self, cond, uncond):
        sys.exit("bye")


class NoConfig(BaseGuidance):
    """Its constructor is not decorated."""

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012

    def __init__(self, guidance_scale: float = 4.0) -> None:
        super().__init__()
        self.guidance_scale = guidance_scale


for _name in (
    *("in_window", "acts", "num_conditions", "is_conditional", "prepare_inputs"),
    *("prepare_inputs_from_block_state", "forward", "combine"),
):
    setattr(NoConfig, _name, vars(Good)[_name])
breaks("check_runs_in_pipeline")(NoConfig)
