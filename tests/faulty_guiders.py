"""A good guider, and copies of it with one fault each, by the laws that they break."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
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
        if self._step is None:
            return True
        n = self._num_inference_steps
        return int(self._start * n) <= self._step < int(self._stop * n)

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


def breaks(*laws: str):
    """Enter a guider under the laws that it breaks: the fault itself, and what follows from it."""

    def enter(cls):
        FAULTS[cls.__name__] = cls
        cls.broken = set(laws)
        return cls

    return enter


@breaks("check_completes_image")
class DividesByZero(Good):
    def combine(self, cond, uncond):
        return uncond / (self._step * (cond - cond).abs()) + self.guidance_scale * (cond - uncond)


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
class WrongDtype(Good):
    def combine(self, cond, uncond):
        return super().combine(cond.float(), uncond.float())


@breaks("check_output_device")
class OnTheCpu(Good):
    def combine(self, cond, uncond):
        return super().combine(cond, uncond) * torch.ones(cond.shape[1:], dtype=cond.dtype)


@breaks("check_denoiser_restored")
class ForgottenHook(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        denoiser.register_forward_hook(lambda module, inputs, output: output)


@breaks("check_denoiser_restored")
class ChangesWeights(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        with torch.no_grad():
            next(denoiser.parameters()).mul_(1.001)


@breaks("check_denoiser_restored")
class LeavesLoraOff(Good):
    def cleanup_models(self, denoiser):
        for layer in denoiser.modules():
            if hasattr(layer, "_disable_adapters"):
                layer._disable_adapters = True


@breaks("check_denoiser_restored_after_error")
class HookThatRemovesItself(Good):
    """It never comes to that if the pass fails."""

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        handle = denoiser.register_forward_hook(lambda module, inputs, output: handle.remove())


@breaks("check_inputs_not_modified")
class ChangesInPlace(Good):
    def combine(self, cond, uncond):
        uncond += self.guidance_scale * (cond - uncond)
        return uncond


@breaks("check_deterministic")
class Draws(Good):
    def combine(self, cond, uncond):
        return super().combine(cond, uncond) + 0.01 * torch.randn_like(cond)


@breaks("check_batch_independence")
class MixesTheBatch(Good):
    guider_spec = GuiderSpec(linear_params=("guidance_scale",))

    def combine(self, cond, uncond):
        difference = cond - uncond
        return uncond + self.guidance_scale * difference / difference.std()


@breaks("check_no_state_between_images")
class RemembersTheLastImage(Good):
    last = None

    def combine(self, cond, uncond):
        difference = cond - uncond
        moved = difference if self.last is None else difference - 0.5 * self.last
        self.last = difference
        return uncond + self.guidance_scale * moved


@breaks("check_nfe")
class HiddenPass(Good):
    def prepare_inputs(self, data):
        self.data = data
        return super().prepare_inputs(data)

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if self._step != 0:
            return
        inputs = {name: value[0] for name, value in self.data.items()}
        denoiser(
            hidden_states=inputs["hidden_states"],
            timestep=self._timestep.expand(len(inputs["hidden_states"])),
            encoder_hidden_states=inputs["encoder_hidden_states"],
            pooled_projections=inputs["text_embeds"],
        )


@breaks("check_nfe")
class DeclaresAnotherCost(Good):
    guider_spec = GuiderSpec(
        linear_params=("guidance_scale",), nfe_per_step=lambda parameters, step, num_steps: 3
    )


@breaks("check_num_conditions_before_first_step")
class AnnouncesLate(Good):
    @property
    def num_conditions(self) -> int:
        return 1 if self._step is None else super().num_conditions


@breaks("check_is_conditional")
class DoesNotCount(Good):
    def prepare_models(self, denoiser):
        pass


@breaks("check_block_state_inputs")
class SwapsInABlockState(Good):
    def prepare_inputs_from_block_state(self, data, input_fields):
        turned = {k: v[::-1] if isinstance(v, tuple) else v for k, v in input_fields.items()}
        return super().prepare_inputs_from_block_state(data, turned)


@breaks("check_guidance_has_effect")
class DoesNothing(Good):
    def combine(self, cond, uncond):
        return cond


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


@breaks("check_active_intervals")
class WindowOffByOne(Good):
    def in_window(self) -> bool:
        if self._step is None:
            return True
        n = self._num_inference_steps
        return int(self._start * n) <= self._step <= int(self._stop * n)


@breaks("check_active_intervals")
class IgnoresItsWindow(Good):
    def in_window(self) -> bool:
        return True


@breaks("check_disabled")
class CannotBeDisabled(Good):
    def acts(self) -> bool:
        return self.in_window() and not math.isclose(self.guidance_scale, 1.0)


@breaks("check_linear_params")
class FalselyLinear(Good):
    def combine(self, cond, uncond):
        return uncond + self.guidance_scale**2 * (cond - uncond)


@breaks("check_linear_in_predictions")
class FalselyLinearInPredictions(Good):
    def combine(self, cond, uncond):
        difference = cond - uncond
        norm = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return uncond + self.guidance_scale * difference * (1.0 / norm)


@breaks("check_new_roundtrip")
class LostInNew(ClassifierFreeGuidance):
    guider_spec = GuiderSpec(identity_params={"guidance_scale": 1.0, "extra_scale": 0.0})

    def __init__(self, guidance_scale: float = 4.0, extra_scale: float = 2.0) -> None:
        super().__init__(guidance_scale)
        self.extra_scale = extra_scale

    def forward(self, pred_cond, pred_uncond=None):
        output = super().forward(pred_cond, pred_uncond)
        if pred_uncond is not None:
            output.pred = output.pred + self.extra_scale * (pred_cond - pred_uncond)
        return output


class Curve:
    """A parameter that JSON does not know."""

    def __init__(self, value: float) -> None:
        self.value = value


@breaks("check_new_roundtrip")
class HandsOnByPosition(Good):
    """diffusers takes what is handed on by position for a default, and new() leaves it out."""

    @register_to_config
    def __init__(self, guidance_scale: float = 4.0) -> None:
        super().__init__(guidance_scale)


@breaks("check_save_load_roundtrip")
class LostInSaving(Good):
    @register_to_config
    def __init__(self, guidance_scale: float = 4.0, curve: object = Curve(1.0)) -> None:
        super().__init__(guidance_scale=guidance_scale)
