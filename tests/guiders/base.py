"""A good guider, and the decorator that enters a faulty copy of it."""

from __future__ import annotations

import math

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from autolora_eval.guider_checks import GuiderSpec


class Good(BaseGuidance):
    """Classifier-free guidance, written as the author of a guider would."""

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012
    guider_spec = GuiderSpec(linear_params=("guidance_scale",), linear_in_predictions=True)

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 4.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.guidance_scale = guidance_scale

    def in_window(self) -> bool:
        return self._step is None or self.within(self._step, self._num_inference_steps)

    def within(self, step: int, n: int) -> bool:
        return int(self._start * n) <= step < int(self._stop * n)

    def acts(self) -> bool:
        return self._enabled and self.in_window() and not math.isclose(self.guidance_scale, 1.0)

    @property
    def num_conditions(self) -> int:
        return 2 if self.acts() else 1

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared == 1

    def prepare_inputs(self, data):
        names = self._input_predictions[: self.num_conditions]
        return [self._prepare_batch(data, index, name) for index, name in enumerate(names)]

    def prepare_inputs_from_block_state(self, data, input_fields):
        names = self._input_predictions[: self.num_conditions]
        return [
            self._prepare_batch_from_block_state(input_fields, data, index, name)
            for index, name in enumerate(names)
        ]

    def forward(self, pred_cond, pred_uncond=None):
        pred = pred_cond if pred_uncond is None else self.combine(pred_cond, pred_uncond)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def combine(self, cond, uncond):
        return uncond + self.guidance_scale * (cond - uncond)


FAULTS: dict[str, type[BaseGuidance]] = {}


def breaks(check: str):
    """Enter a guider as one that fails a check."""

    def enter(cls):
        FAULTS[cls.__name__] = cls
        cls.breaks = check
        return cls

    return enter
