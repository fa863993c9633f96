"""AutoLoRA guidance on Qwen-Image and Z-Image as loops written by hand: two models each.

Nothing of the product stands in them: neither guider nor adapter nor modular pipeline nor
scheduler. What differs between the two is how they are asked for a velocity, and that Qwen-Image
gives every guided velocity the length of the conditional one, token by token, as its own pipeline
does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import QwenImagePipeline, ZImagePipeline


@dataclass(frozen=True)
class HandWritten:
    """Two pipelines of their own: one as published, one with W + αBA in place of W."""

    base: Any
    tuned: Any
    steps: int
    size: tuple[int, int]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @torch.no_grad()
    def latents(
        self, gamma: float, w1: float, w2: float, start: float = 0.0, stop: float = 1.0
    ) -> torch.Tensor:
        """Follow the flow by equation (7) in Euler steps, float32 [B, 4, h, w]."""
        base = [self.embed(self.base, prompts) for prompts in (self.prompts, self.null)]
        tuned = [self.embed(self.tuned, prompts) for prompts in (self.prompts, self.null)]
        first, last = int(start * self.steps), int(stop * self.steps)
        x = self.noise()
        for step, (t, after) in enumerate(itertools.pairwise(self.times())):
            g = gamma if first <= step < last else 1.0
            v_cond, v_null = (self.predict(self.base, x, t, inputs) for inputs in base)
            l_cond, l_null = (self.predict(self.tuned, x, t, inputs) for inputs in tuned)
            v = v_null + w1 * (v_cond - v_null)
            lora = l_null + w2 * (l_cond - l_null)
            x = x + (after - t) * self.rescaled(v + g * (lora - v), v_cond if g == 0.0 else l_cond)
        return x

    @property
    def null(self) -> tuple[str, ...]:
        return ("",) * len(self.prompts)

    def noise(self) -> torch.Tensor:
        """The initial noise: each seed's own draw."""
        raise NotImplementedError

    def drawn(self, factor: int) -> torch.Tensor:
        shape = (1, 4, self.size[1] // factor, self.size[0] // factor)
        draws = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds
        ]
        return torch.cat(draws)

    def times(self) -> list[float]:
        """The flow's times from noise to picture, moved towards noise the more patches there are.

        The shift's exponent is on a line: 0.5 at 256 patches of 2 × 2, 0.9 at 4096.
        """
        height, width = self.noise().shape[-2:]
        patches = (height // 2) * (width // 2)
        shift = math.exp(0.5 + (0.9 - 0.5) * (patches - 256) / (4096 - 256))
        times = [
            1.0 - step * (1.0 - 1.0 / self.steps) / (self.steps - 1) for step in range(self.steps)
        ]
        return [shift / (shift + 1.0 / t - 1.0) for t in times] + [0.0]

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        raise NotImplementedError

    def predict(self, pipe: Any, x: torch.Tensor, t: float, inputs: Any) -> torch.Tensor:
        raise NotImplementedError

    def rescaled(self, v: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return v


class QwenImage(HandWritten):
    """Qwen-Image: patches of 2 × 2 latents in a row, a mask beside the embeddings."""

    pipeline = QwenImagePipeline

    def latents(self, *args: float) -> torch.Tensor:
        """As its VAE takes them, [B, 4, 1, h, w], which is what its pipeline gives out."""
        x = super().latents(*args).unsqueeze(2)
        config = self.base.vae.config
        mean, std = torch.tensor([config.latents_mean, config.latents_std]).view(2, 1, -1, 1, 1, 1)
        return x * std + mean

    def noise(self) -> torch.Tensor:
        return self.drawn(4)

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        return pipe.encode_prompt(list(prompts))

    def predict(self, pipe: Any, x: torch.Tensor, t: float, inputs: Any) -> torch.Tensor:
        hidden, mask = inputs
        height, width = x.shape[-2:]
        row = pipe.transformer(
            hidden_states=in_a_row(x),
            timestep=torch.full((len(x),), t),
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
        ).sample
        return as_picture(row, height, width)

    def rescaled(self, v: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        height, width = v.shape[-2:]
        row, wanted = in_a_row(v), in_a_row(cond)
        row = row * wanted.norm(dim=-1, keepdim=True) / row.norm(dim=-1, keepdim=True)
        return as_picture(row, height, width)


class ZImage(HandWritten):
    """Z-Image: lists of pictures and embeddings, time from 0 to 1, the velocity turned round."""

    pipeline = ZImagePipeline

    def noise(self) -> torch.Tensor:
        return self.drawn(2)

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        return pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]

    def predict(self, pipe: Any, x: torch.Tensor, t: float, inputs: Any) -> torch.Tensor:
        times = torch.full((len(x),), 1.0 - t)
        found = pipe.transformer(list(x.unsqueeze(2)), times, inputs).sample
        return -torch.stack(found).squeeze(2)


def in_a_row(x: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] as patches of 2 × 2 in a row: [B, hw/4, 4C]."""
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, h/2, w/2, 2, 2]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def as_picture(row: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The way back from `in_a_row`."""
    patches = row.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(row), -1, height, width)
