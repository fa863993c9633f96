"""Unusual good guiders, which pass all checks that apply."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guider_checks import ActiveInterval, GuiderSpec
from guiders.base import Good

GOOD: dict[str, type[BaseGuidance]] = {}


def good(cls):
    """Enter a good guider."""
    GOOD[cls.__name__] = cls
    return cls


@good
class PooledGuidance(Good):
    """Its third prediction has the prompt's embeddings and the null prompt's pooled ones."""

    _input_predictions = ["pred_cond", "pred_uncond", "pred_without"]  # noqa: RUF012
    guider_spec = GuiderSpec(
        identity_params={"guidance_scale": 1.0, "pooled_scale": 0.0},
        linear_params=("guidance_scale", "pooled_scale"),
        linear_in_predictions=True,
    )

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 4.0,
        pooled_scale: float = 2.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        BaseGuidance.__init__(self, start, stop, enabled)
        self.guidance_scale, self.pooled_scale = guidance_scale, pooled_scale

    @property
    def num_conditions(self) -> int:
        return 3 if self._enabled and self.in_window() else 1

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared != 2

    def prepare_inputs(self, data):
        mixed = {**data, "text_embeds": data["text_embeds"][::-1]}
        sources = [(data, 0), (data, 1), (mixed, 0)][: self.num_conditions]
        names = zip(sources, self._input_predictions, strict=False)
        return [self._prepare_batch(fields, index, name) for (fields, index), name in names]

    def prepare_inputs_from_block_state(self, data, input_fields):
        values = {k: tuple(getattr(data, n) for n in pair) for k, pair in input_fields.items()}
        return self.prepare_inputs(values)

    def forward(self, pred_cond, pred_uncond=None, pred_without=None):
        pred = pred_cond
        if pred_uncond is not None:
            pred = self.combine(pred_cond, pred_uncond)
            pred = pred + self.pooled_scale * (pred_cond - pred_without)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)


@good
class NoiseInterval(Good):
    """It acts in an interval of timesteps, not of steps."""

    @register_to_config
    def __init__(
        self, guidance_scale: float = 5.0, low: float = 100.0, high: float = 800.0
    ) -> None:
        super().__init__(guidance_scale=guidance_scale)
        self.low, self.high = low, high

    def in_window(self) -> bool:
        return self._timestep is None or self.low <= float(self._timestep) <= self.high


@good
class RampInWindow(Good):
    """Its scale rises from 1 at the first step of its interval."""

    guider_spec = GuiderSpec(
        linear_params=("guidance_scale",),
        active_intervals=(ActiveInterval(allow_inactive_steps=True),),
    )

    def combine(self, cond, uncond):
        first, end = (int(edge * self._num_inference_steps) for edge in (self._start, self._stop))
        done = (self._step - first) / max(end - 1 - first, 1)
        return uncond + (1 + (self.guidance_scale - 1) * done) * (cond - uncond)


@good
class Momentum(Good):
    """Its momentum is reset at step 0, also if it is not active there."""

    guider_spec = GuiderSpec(linear_params=("guidance_scale",))
    momentum = None

    def prepare_inputs(self, data):
        if self._step == 0:
            self.momentum = None
        return super().prepare_inputs(data)

    def combine(self, cond, uncond):
        difference = cond - uncond
        self.momentum = difference if self.momentum is None else difference - 0.5 * self.momentum
        return uncond + self.guidance_scale * self.momentum


@good
class Interpolation(Good):
    """Its scale lies between 0 and 1."""

    guider_spec = GuiderSpec(identity_params={"lambda_scale": 1.0}, linear_params=("lambda_scale",))

    @register_to_config
    def __init__(
        self, lambda_scale: float = 0.6, start: float = 0.0, stop: float = 1.0, enabled: bool = True
    ) -> None:
        if not 0.0 <= lambda_scale <= 1.0:
            raise ValueError("lambda_scale must be between 0 and 1")
        BaseGuidance.__init__(self, start, stop, enabled)
        self.guidance_scale = lambda_scale


@good
class CallsItem(Good):
    """It calls `.item()`, which works on an accelerator but not on torch's meta device."""

    guider_spec = GuiderSpec()

    def combine(self, cond, uncond):
        difference = cond - uncond
        norms = difference.float().flatten(1).norm(dim=1)
        scales = [min(1.0, 30.0 / norm.item()) for norm in norms]
        scale = torch.tensor(scales, device=cond.device, dtype=cond.dtype).view(-1, 1, 1, 1)
        return uncond + self.guidance_scale * difference * scale


class Curve:
    """A parameter that is an object, of which each guider has its own copy."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def to_dict(self):
        return {"value": self.value}


@good
class HasUnusualParameters(Good):
    @register_to_config
    def __init__(
        self, guidance_scale: float = 4.0, curve: object = Curve(), limit: float = math.nan
    ) -> None:
        super().__init__(guidance_scale=guidance_scale)
