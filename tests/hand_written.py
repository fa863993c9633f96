"""AutoLoRA guidance as a loop written by hand: two models, four explicit predictions.

Nothing of the product stands in it: neither guider nor adapter nor modular pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline


@dataclass(frozen=True)
class HandWritten:
    """Two pipelines of their own: one as published, one with W + αBA in place of W."""

    base: StableDiffusionXLPipeline
    tuned: StableDiffusionXLPipeline
    steps: int
    size: tuple[int, int]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @torch.no_grad()
    def latents(
        self, gamma: float, w1: float, w2: float, start: float = 0.0, stop: float = 1.0
    ) -> torch.Tensor:
        """Denoise by equation (7), float32 [B, 4, h, w]."""
        scheduler = self.base.scheduler
        scheduler.set_timesteps(self.steps)
        x = self.noise() * scheduler.init_noise_sigma
        null = [""] * len(self.prompts)
        base = [embed(self.base, list(self.prompts)), embed(self.base, null)]
        tuned = [embed(self.tuned, list(self.prompts)), embed(self.tuned, null)]
        first, last = int(start * self.steps), int(stop * self.steps)
        for step, t in enumerate(scheduler.timesteps):
            g = gamma if first <= step < last else 1.0
            z = scheduler.scale_model_input(x, t)
            e_cond, e_null = (self.predict(self.base, z, t, inputs) for inputs in base)
            l_cond, l_null = (self.predict(self.tuned, z, t, inputs) for inputs in tuned)
            e = e_null + w1 * (e_cond - e_null)
            lora = l_null + w2 * (l_cond - l_null)
            x = scheduler.step(e + g * (lora - e), t, x).prev_sample
        return x

    def noise(self) -> torch.Tensor:
        """The initial noise: each seed's own draw."""
        factor = 2 ** (len(self.base.vae.config.block_out_channels) - 1)
        shape = (1, 4, self.size[1] // factor, self.size[0] // factor)
        draws = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds
        ]
        return torch.cat(draws)

    def predict(self, pipe: StableDiffusionXLPipeline, z, t, inputs) -> torch.Tensor:
        """One prediction of one model."""
        hidden, pooled = inputs
        width, height = self.size
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        conditions = {"text_embeds": pooled, "time_ids": ids.expand(len(z), 6)}
        return pipe.unet(z, t, hidden, added_cond_kwargs=conditions).sample


def embed(pipe: StableDiffusionXLPipeline, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and pooled embeddings of prompts."""
    hidden, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    return hidden, pooled


def merge(
    pipe: StableDiffusionXLPipeline, changes: dict[str, torch.Tensor], scale: float
) -> StableDiffusionXLPipeline:
    """Put W + αΔW in place of W, for `component.layer` → ΔW."""
    for name, change in changes.items():
        component, _, layer = name.partition(".")
        getattr(pipe, component).get_submodule(layer).weight.data += scale * change
    return pipe
