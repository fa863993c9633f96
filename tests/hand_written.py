"""AutoLoRA guidance as denoising loops written by hand: two models, four explicit predictions.

The loops use no code of the product, no guider, no adapter and no modular pipeline. The flow models
use no scheduler either.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)


@dataclass
class HandWritten:
    """Two pipelines: the base model, and one with W + αBA in place of W.

    Attributes:
        timesteps_per_step: 2 for a scheduler of second order.
        generators: those of the images, from the first noise on.
    """

    base: Any
    tuned: Any
    steps: int
    size: tuple[int, int]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    vae_factor: ClassVar[int] = 2
    timesteps_per_step: ClassVar[int] = 1
    generators: list[torch.Generator] = field(default_factory=list, init=False)

    @torch.no_grad()
    def latents(
        self,
        gamma: float,
        w1: float,
        w2: float,
        start: float = 0.0,
        stop: float = 1.0,
        every: int = 1,
    ) -> torch.Tensor:
        """Denoise with equation (7), float32 [B, 4, h, w], ε_LoRA − ε from every k-th step."""
        null = ("",) * len(self.prompts)
        base = [self.embed(self.base, prompts) for prompts in (self.prompts, null)]
        tuned = [self.embed(self.tuned, prompts) for prompts in (self.prompts, null)]
        first, last = int(start * self.steps), int(stop * self.steps)
        x, kept = self.noise(), torch.zeros(())
        for index, t in enumerate(self.times()):
            step = index // self.timesteps_per_step
            g = gamma if first <= step < last else 1.0
            e_cond, e_null = (self.predict(self.base, x, t, inputs) for inputs in base)
            l_cond, l_null = (self.predict(self.tuned, x, t, inputs) for inputs in tuned)
            e = e_null + w1 * (e_cond - e_null)
            lora = l_null + w2 * (l_cond - l_null)
            kept = kept if (step - first) % every else lora - e
            prediction = self.rescaled(lora + (g - 1.0) * kept, e_cond if g == 0.0 else l_cond)
            x = self.step(prediction, t, x)
        return x

    def noise(self) -> torch.Tensor:
        """The first sample: standard normal noise, drawn with each seed by itself, [B, 4, h, w]."""
        width, height = (side // self.vae_factor for side in self.size)
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        shape = (1, 4, height, width)
        return torch.cat([torch.randn(shape, generator=one) for one in self.generators])

    def times(self) -> Iterator[Any]:
        """The time of each step, and for flows the time after it."""
        raise NotImplementedError

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        raise NotImplementedError

    def predict(self, pipe: Any, x: torch.Tensor, t: Any, inputs: Any) -> torch.Tensor:
        raise NotImplementedError

    def rescaled(self, prediction: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """The guided prediction, as the pipeline changes it before the step."""
        return prediction

    def step(self, velocity: torch.Tensor, t: Any, x: torch.Tensor) -> torch.Tensor:
        """An Euler step of a flow."""
        now, after = t
        return x + (after - now) * velocity


class SDXL(HandWritten):
    """SDXL: a scheduler of diffusers, conditions for the size."""

    pipeline = StableDiffusionXLPipeline

    @property
    def timesteps_per_step(self) -> int:
        return self.base.scheduler.order

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self.base.vae.config.block_out_channels) - 1)

    def noise(self) -> torch.Tensor:
        self.base.scheduler.set_timesteps(self.steps)
        return super().noise() * self.base.scheduler.init_noise_sigma

    def times(self) -> Iterator[Any]:
        self.base.scheduler.set_timesteps(self.steps)
        return iter(self.base.scheduler.timesteps)

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        hidden, _, pooled, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return hidden, pooled

    def predict(self, pipe: Any, x: torch.Tensor, t: Any, inputs: Any) -> torch.Tensor:
        hidden, pooled = inputs
        width, height = self.size
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        conditions = {"text_embeds": pooled, "time_ids": ids.expand(len(x), 6)}
        x = self.base.scheduler.scale_model_input(x, t)
        return pipe.unet(x, t, hidden, added_cond_kwargs=conditions).sample

    def step(self, velocity: torch.Tensor, t: Any, x: torch.Tensor) -> torch.Tensor:
        scheduler = self.base.scheduler
        draws = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": self.generators} if draws else {}
        return scheduler.step(velocity, t, x, **options).prev_sample


class SD3(HandWritten):
    """SD3: a flow with a fixed shift."""

    pipeline = StableDiffusion3Pipeline
    vae_factor = SDXL.vae_factor

    def times(self) -> Iterator[Any]:
        shift = self.base.scheduler.config.shift
        # From noise to the last training time, which diffusers shifts twice; then the end.
        times = _shifted(torch.linspace(1.0, _shifted(1e-3, shift), self.steps), shift)
        return itertools.pairwise(torch.cat([times, torch.zeros(1)]))

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        off = {"do_classifier_free_guidance": False}
        hidden, _, pooled, _ = pipe.encode_prompt(list(prompts), None, None, **off)
        return hidden, pooled

    def predict(self, pipe: Any, x: torch.Tensor, t: Any, inputs: Any) -> torch.Tensor:
        hidden, pooled = inputs
        return pipe.transformer(
            hidden_states=x,
            timestep=(1000 * t[0]).expand(len(x)),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
        ).sample


class DynamicShift(HandWritten):
    """A flow whose times move towards noise with the number of patches."""

    def times(self) -> Iterator[Any]:
        """The exponent of the shift is linear: 0.5 at 256 patches of 2 × 2, 0.9 at 4096."""
        height, width = self.noise().shape[-2:]
        patches = (height // 2) * (width // 2)
        shift = math.exp(0.5 + (0.9 - 0.5) * (patches - 256) / (4096 - 256))
        last = self.steps - 1
        times = [1.0 - step * (1.0 - 1.0 / self.steps) / last for step in range(self.steps)]
        return itertools.pairwise([*(_shifted(t, shift) for t in times), 0.0])


class QwenImage(DynamicShift):
    """Qwen-Image: rows of 2 × 2 patches, a mask beside the embeddings, a rescaled prediction.

    As in its own pipeline, each guided velocity gets the length of the conditional one, token by
    token.
    """

    pipeline = QwenImagePipeline
    vae_factor = 4

    def latents(self, *args: float) -> torch.Tensor:
        """The scale and shape of its VAE, [B, 4, 1, h, w], as its pipeline returns them."""
        x = super().latents(*args).unsqueeze(2)
        config = self.base.vae.config
        mean, std = torch.tensor([config.latents_mean, config.latents_std]).view(2, 1, -1, 1, 1, 1)
        return x * std + mean

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        return pipe.encode_prompt(list(prompts))

    def predict(self, pipe: Any, x: torch.Tensor, t: Any, inputs: Any) -> torch.Tensor:
        hidden, mask = inputs
        height, width = x.shape[-2:]
        rows = pipe.transformer(
            hidden_states=_as_rows(x),
            timestep=torch.full((len(x),), t[0]),
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
        ).sample
        return _as_image(rows, height, width)

    def rescaled(self, prediction: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        rows, wanted = _as_rows(prediction), _as_rows(cond)
        rows = rows * wanted.norm(dim=-1, keepdim=True) / rows.norm(dim=-1, keepdim=True)
        return _as_image(rows, *prediction.shape[-2:])


class ZImage(DynamicShift):
    """Z-Image: lists of images and embeddings, time from 0 to 1, a negative velocity."""

    pipeline = ZImagePipeline

    def embed(self, pipe: Any, prompts: tuple[str, ...]) -> Any:
        return pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]

    def predict(self, pipe: Any, x: torch.Tensor, t: Any, inputs: Any) -> torch.Tensor:
        times = torch.full((len(x),), 1.0 - t[0])
        velocities = pipe.transformer(list(x.unsqueeze(2)), times, inputs).sample
        return -torch.stack(velocities).squeeze(2)


def load(kind: type[HandWritten], folder: Path) -> Any:
    """Load a pipeline folder; diffusers must be told that an SD3 has no T5."""
    absent = {}
    if kind is SD3:
        names = ("text_encoder_3", "tokenizer_3")
        absent = {name: None for name in names if not (folder / name).exists()}
    return kind.pipeline.from_pretrained(folder, torch_dtype=torch.float32, **absent)


def merge(pipe: Any, changes: dict[str, torch.Tensor], scale: float) -> Any:
    """Replace W by W + αΔW, for `component.layer` → ΔW."""
    for name, change in changes.items():
        component, _, layer = name.partition(".")
        getattr(pipe, component).get_submodule(layer).weight.data += scale * change
    return pipe


def _shifted(t: Any, shift: float) -> Any:
    """A time of a flow, moved towards noise."""
    return shift * t / (1 + (shift - 1) * t)


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] as rows of 2 × 2 patches: [B, hw/4, 4C]."""
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, h/2, w/2, 2, 2]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _as_image(rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `_as_rows`."""
    patches = rows.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(rows), -1, height, width)
