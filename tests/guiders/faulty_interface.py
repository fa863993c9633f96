"""Guiders with a faulty interface, by the check that they fail."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance

from autolora_eval.guider_checks import GuiderSpec
from guiders.base import Good, breaks


class Curve:
    """A parameter that JSON does not know."""

    def __init__(self, value: float) -> None:
        self.value = value


@breaks("check_block_state_inputs")
class SwapsInABlockState(Good):
    def prepare_inputs_from_block_state(self, data, input_fields):
        turned = {k: v[::-1] if isinstance(v, tuple) else v for k, v in input_fields.items()}
        return super().prepare_inputs_from_block_state(data, turned)


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


@breaks("check_denoiser_restored")
class LeavesLoraMerged(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        denoiser.fuse_lora()


@breaks("check_denoiser_restored")
class LeavesAttributes(Good):
    """As FreeU does, which only a UNet has."""

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        for layer in denoiser.children():
            layer.s1, layer.b1 = 0.5, 1.5


@breaks("check_denoiser_restored")
class LeavesAnEntryInAList(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        for layer in denoiser.modules():
            if hasattr(layer, "merged_adapters"):
                layer.merged_adapters.append("default")


@breaks("check_denoiser_restored")
class RoundsTheWeights(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        denoiser.to(torch.bfloat16).to(torch.float32)


@breaks("check_denoiser_restored")
class PutsTheLoraAtOne(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if not self.is_conditional:
            denoiser.set_adapters("default", 0.3)

    def cleanup_models(self, denoiser):
        if not self.is_conditional:
            denoiser.set_adapters("default", 1.0)


@breaks("check_denoiser_restored")
class HookOutside(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if not self.in_window():
            denoiser.register_forward_hook(lambda module, inputs, output: output)


@breaks("check_denoiser_restored_after_error")
class LateHook(Good):
    """Its hook removes itself, unless the denoiser call fails; it is set at late steps only."""

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if self._step >= 5 and not self.is_conditional:
            handle = denoiser.register_forward_hook(lambda module, inputs, output: handle.remove())


@breaks("check_is_conditional")
class DoesNotCount(Good):
    def prepare_models(self, denoiser):
        pass


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


@breaks("check_new_roundtrip")
class HandsOnByPosition(Good):
    """diffusers takes a positional argument for a default, which new() leaves out."""

    @register_to_config
    def __init__(self, guidance_scale: float = 4.0) -> None:
        super().__init__(guidance_scale)


@breaks("check_new_roundtrip")
class HandsOnNothing(ClassifierFreeGuidance):
    """Its parent takes start, stop and enabled for defaults, which new() leaves out."""

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
    """Its interval comes through `**kwargs`, which new() drops."""

    @register_to_config
    def __init__(self, guidance_scale: float = 4.0, **kwargs) -> None:
        super().__init__(guidance_scale=guidance_scale, **kwargs)


@breaks("check_nfe")
class HiddenPass(Good):
    def prepare_inputs(self, data):
        self.data = data
        return super().prepare_inputs(data)

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if self._step == 0:
            inputs = {name: value[0] for name, value in self.data.items()}
            inputs["pooled_projections"] = inputs.pop("text_embeds")
            timestep = self._timestep.expand(len(inputs["hidden_states"]))
            self.call(denoiser, timestep=timestep, **inputs)

    def call(self, denoiser, **inputs):
        denoiser(**inputs)


@breaks("check_nfe")
class HiddenForward(HiddenPass):
    """It bypasses the hooks of `__call__`."""

    def call(self, denoiser, **inputs):
        denoiser.forward(**inputs)


@breaks("check_nfe")
class DeclaresOneCost(Good):
    guider_spec = GuiderSpec(nfe_per_step=lambda parameters, step, num_steps: 2)


@breaks("check_no_state_between_images")
class RemembersTheLastImage(Good):
    last = None

    def combine(self, cond, uncond):
        difference = cond - uncond
        moved = difference if self.last is None else difference - 0.5 * self.last
        self.last = difference
        return uncond + self.guidance_scale * moved


@breaks("check_no_state_between_images")
class KeepsPooledEmbeddings(Good):
    """In one of two fields it keeps the null prompt of the first image."""

    kept = None

    def prepare_inputs(self, data):
        if self.kept is None:
            self.kept = data["text_embeds"][1]
        return super().prepare_inputs({**data, "text_embeds": (data["text_embeds"][0], self.kept)})


@breaks("check_no_state_between_images")
class ResetsWhereItActs(Good):
    """It never sees step 0 if the interval starts later."""

    guider_spec = GuiderSpec(linear_params=("guidance_scale",))
    momentum = None

    def combine(self, cond, uncond):
        if self._step == 0:
            self.momentum = None
        difference = cond - uncond
        self.momentum = difference if self.momentum is None else difference - 0.5 * self.momentum
        return uncond + self.guidance_scale * self.momentum


@breaks("check_no_state_between_images")
class KeepsItsSchedule(Good):
    """It keeps the schedule for the number of steps of its first image."""

    scales = None

    def combine(self, cond, uncond):
        if self.scales is None:
            steps = self._num_inference_steps
            self.scales = torch.linspace(2.0, self.guidance_scale, steps).tolist()
        return uncond + self.scales[self._step] * (cond - uncond)


@breaks("check_no_state_between_images")
class KeepsItsNoise(Good):
    """It keeps noise of the size of its first image."""

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


@breaks("check_num_conditions_before_first_step")
class AnnouncesLate(Good):
    @property
    def num_conditions(self) -> int:
        return 1 if self._step is None else super().num_conditions


@breaks("check_num_conditions_before_first_step")
class ComparesNoStep(Good):
    @property
    def num_conditions(self) -> int:
        return 2 if self._step >= 0 and self.acts() else 1


@breaks("check_save_load_roundtrip")
class LostInSaving(Good):
    @register_to_config
    def __init__(self, guidance_scale: float = 4.0, curve: object = Curve(1.0)) -> None:
        super().__init__(guidance_scale=guidance_scale)


@breaks("check_runs_in_pipeline")
class NoConfig(Good):
    """Its constructor is not decorated."""

    def __init__(self, guidance_scale: float = 4.0) -> None:
        BaseGuidance.__init__(self)
        self.guidance_scale = guidance_scale
