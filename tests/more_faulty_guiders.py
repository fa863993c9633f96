"""More faulty guiders: what a second reader got past the laws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from faulty_guiders import Good, breaks

from autolora_eval.guider_checks import GuiderSpec


@breaks("check_denoiser_restored")
class LeavesLoraMerged(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        denoiser.fuse_lora()


@breaks("check_denoiser_restored")
class LeavesAttributes(Good):
    """As FreeU does, which a UNet alone has."""

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


@breaks("check_completes_image")
class LeavesHalfPrecision(Good):
    """No pass after it works, and none of the next guider's would."""

    def cleanup_models(self, denoiser):
        denoiser.to(torch.bfloat16)


@breaks("check_denoiser_restored")
class PutsTheLoraAtOne(Good):
    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if not self.is_conditional:
            denoiser.set_adapters("default", 0.3)

    def cleanup_models(self, denoiser):
        if not self.is_conditional:
            denoiser.set_adapters("default", 1.0)


@breaks("check_no_state_between_images")
class KeepsPooledEmbeddings(Good):
    """Its null prompt is the first image's in one of two fields."""

    kept = None

    def prepare_inputs(self, data):
        if self.kept is None:
            self.kept = data["text_embeds"][1]
        return super().prepare_inputs({**data, "text_embeds": (data["text_embeds"][0], self.kept)})


@breaks("check_inputs_not_modified")
class ClampsInPlace(Good):
    """A second time it changes nothing."""

    guider_spec = GuiderSpec()

    def forward(self, pred_cond, pred_uncond=None):
        if pred_uncond is not None:
            pred_uncond.clamp_(-0.5, 0.5)
        return super().forward(pred_cond, pred_uncond)


@dataclass
class _OtherOutput(BaseOutput):
    pred_cond: torch.Tensor
    pred: torch.Tensor


@breaks("check_completes_image")
class PredIsNotFirst(Good):
    def forward(self, pred_cond, pred_uncond=None):
        return _OtherOutput(pred_cond=pred_cond, pred=super().forward(pred_cond, pred_uncond).pred)


@breaks("check_nfe")
class HiddenForward(Good):
    """Past the hooks of `__call__`."""

    def prepare_inputs(self, data):
        self.data = data
        return super().prepare_inputs(data)

    def prepare_models(self, denoiser):
        super().prepare_models(denoiser)
        if self._step != 0:
            return
        inputs = {name: value[0] for name, value in self.data.items()}
        denoiser.forward(
            hidden_states=inputs["hidden_states"],
            timestep=self._timestep.expand(len(inputs["hidden_states"])),
            encoder_hidden_states=inputs["encoder_hidden_states"],
            pooled_projections=inputs["text_embeds"],
        )
