"""A plain sampler for measuring the miniatures, independent of the product's guiders.

With ε the prediction of the base model and ε_LoRA that of the model with LoRA, each guided by
classifier-free guidance of its own scale, it follows ε + γ(ε_LoRA - ε) and makes no pass whose
coefficient is zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from recipes.data import to_images
from recipes.training import mixed_precision
from recipes.unet import TIME_IDS

BATCH = 48


@dataclass(frozen=True)
class Guidance:
    """γ (0: the base alone, 1: the LoRA alone) and the two scales of classifier-free guidance."""

    gamma: float
    base_scale: float = 1.0
    lora_scale: float = 1.0


@dataclass(frozen=True)
class Prompts:
    """Conditional and null conditions of a batch: [B, L, 128] and [B, D] each."""

    hidden: torch.Tensor
    pooled: torch.Tensor
    null_hidden: torch.Tensor
    null_pooled: torch.Tensor


@dataclass(frozen=True)
class Family:
    """What sampling needs to know of a kind of pipeline.

    Attributes:
        denoiser: the pipeline's name for it.
        encode: a pipeline and texts to conditions.
        predict: a pipeline, noisy latents [B, 4, 16, 16], the scheduler's time, hidden and pooled
            conditions to the denoiser's prediction [B, 4, 16, 16].
    """

    denoiser: str
    encode: Callable[[Any, Sequence[str]], Prompts]
    predict: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _free(
    family: Family,
    pipeline: DiffusionPipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    prompts: Prompts,
    scale: float,
) -> torch.Tensor:
    """One model's prediction [B, 4, 16, 16], guided by `scale` (1: the conditional pass alone)."""
    n = len(noisy)
    hidden, pooled = prompts.hidden, prompts.pooled
    if scale != 1.0:
        noisy = torch.cat([noisy, noisy])
        hidden = torch.cat([hidden, prompts.null_hidden])
        pooled = torch.cat([pooled, prompts.null_pooled])
    out = family.predict(pipeline, noisy, timestep, hidden, pooled).float()
    return out if scale == 1.0 else out[n:] + scale * (out[:n] - out[n:])


def _guided(
    family: Family,
    pipeline: DiffusionPipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    prompts: Prompts,
    guidance: Guidance,
) -> torch.Tensor:
    """ε + γ(ε_LoRA - ε), of passes whose coefficient is not zero."""
    denoiser = getattr(pipeline, family.denoiser)
    total = torch.zeros_like(noisy)
    if guidance.gamma != 1.0:
        # A pipeline without any LoRA is the base already.
        if pipeline.get_active_adapters():
            denoiser.disable_adapters()
        base = _free(family, pipeline, noisy, timestep, prompts, guidance.base_scale)
        total = total + (1 - guidance.gamma) * base
    if guidance.gamma != 0.0:
        denoiser.enable_adapters()
        adapted = _free(family, pipeline, noisy, timestep, prompts, guidance.lora_scale)
        total = total + guidance.gamma * adapted
    return total


@torch.no_grad()
def _batch(
    family: Family,
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int,
) -> npt.NDArray[np.uint8]:
    encoded = family.encode(pipeline, prompts)
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    noise = [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds]
    # Flow matching scales neither the noise nor what the model sees.
    latents = torch.stack(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        noisy = latents
        if hasattr(scheduler, "scale_model_input"):
            noisy = scheduler.scale_model_input(latents, timestep)
        prediction = _guided(family, pipeline, noisy, timestep, encoded, guidance)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    config = pipeline.vae.config
    latents = latents / float(config["scaling_factor"]) + float(config.get("shift_factor") or 0)
    return to_images(pipeline.vae.decode(latents).sample)


def sample_from(
    family: Family,
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int,
    fast: bool,
) -> npt.NDArray[np.uint8]:
    """Pictures uint8 [N, 64, 64, 3], one for each prompt and seed; see `sample`."""
    parts = []
    with mixed_precision() if fast else nullcontext():
        for i in range(0, len(prompts), BATCH):
            chosen = slice(i, i + BATCH)
            parts.append(_batch(family, pipeline, prompts[chosen], seeds[chosen], guidance, steps))
    return np.concatenate(parts)


def load(sdxl: Path, lora: Path) -> StableDiffusionXLPipeline:
    """The pipeline in float32 with the LoRA loaded from its folder."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(sdxl), torch_dtype=torch.float32)
    pipeline.load_lora_weights(str(lora))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _encode(pipeline: StableDiffusionXLPipeline, prompts: Sequence[str]) -> Prompts:
    hidden, null_hidden, pooled, null_pooled = pipeline.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=True,
        negative_prompt=[""] * len(prompts),
    )
    return Prompts(hidden, pooled, null_hidden, null_pooled)


def _predict(
    pipeline: StableDiffusionXLPipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    added = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS]).expand(len(noisy), 6)}
    out: torch.Tensor = pipeline.unet(noisy, timestep, hidden, added_cond_kwargs=added).sample
    return out


_SDXL = Family("unet", _encode, _predict)


def sample(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int = 20,
    fast: bool = False,
) -> npt.NDArray[np.uint8]:
    """Pictures uint8 [N, 64, 64, 3], one for each prompt and seed.

    `fast` computes in bfloat16 where the CPU has it: for training data, not for measuring.
    """
    return sample_from(_SDXL, pipeline, prompts, seeds, guidance, steps, fast)
