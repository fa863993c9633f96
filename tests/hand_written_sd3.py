"""AutoLoRA guidance on SD3 as a loop written by hand: two models, four explicit predictions.

Nothing of the product stands in it: neither guider nor adapter nor modular pipeline nor scheduler.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline


@dataclass(frozen=True)
class HandWritten:
    """Two pipelines of their own: one as published, one with W + αBA in place of W."""

    base: StableDiffusion3Pipeline
    tuned: StableDiffusion3Pipeline
    steps: int
    size: tuple[int, int]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @torch.no_grad()
    def latents(
        self, gamma: float, w1: float, w2: float, start: float = 0.0, stop: float = 1.0
    ) -> torch.Tensor:
        """Follow the flow by equation (7) in Euler steps, float32 [B, 4, h, w]."""
        shift = self.base.scheduler.config.shift
        # From noise to the last training time, which diffusers shifts twice; then the end.
        times = shifted(torch.linspace(1.0, shifted(1e-3, shift), self.steps), shift)
        times = torch.cat([times, torch.zeros(1)])
        x = self.noise()
        null = [""] * len(self.prompts)
        base = [embed(self.base, list(self.prompts)), embed(self.base, null)]
        tuned = [embed(self.tuned, list(self.prompts)), embed(self.tuned, null)]
        first, last = int(start * self.steps), int(stop * self.steps)
        for step, (t, after) in enumerate(itertools.pairwise(times)):
            g = gamma if first <= step < last else 1.0
            v_cond, v_null = (predict(self.base, x, t, inputs) for inputs in base)
            l_cond, l_null = (predict(self.tuned, x, t, inputs) for inputs in tuned)
            v = v_null + w1 * (v_cond - v_null)
            lora = l_null + w2 * (l_cond - l_null)
            x = x + (after - t) * (v + g * (lora - v))
        return x

    def noise(self) -> torch.Tensor:
        """The initial noise: each seed's own draw."""
        factor = 2 ** (len(self.base.vae.config.block_out_channels) - 1)
        shape = (1, 4, self.size[1] // factor, self.size[0] // factor)
        draws = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds
        ]
        return torch.cat(draws)


def load(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of a folder; diffusers wants to be told of a T5 that is not there."""
    absent = {} if (folder / "text_encoder_3").exists() else {"text_encoder_3": None}
    absent |= {} if (folder / "tokenizer_3").exists() else {"tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32, **absent)


def shifted(t, shift: float):
    """The flow's time t moved towards noise, as SD3 does for large pictures."""
    return shift * t / (1 + (shift - 1) * t)


def predict(pipe: StableDiffusion3Pipeline, x, t, inputs) -> torch.Tensor:
    """One velocity of one model."""
    hidden, pooled = inputs
    return pipe.transformer(
        hidden_states=x,
        timestep=(1000 * t).expand(len(x)),
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
    ).sample


def embed(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and pooled embeddings of prompts."""
    hidden, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False
    )
    return hidden, pooled
