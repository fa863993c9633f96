"""A plain sampler for measuring the SD3 miniature, independent of the product's guiders.

As `sampling` does for SDXL, it follows v + γ(v_LoRA - v) and makes no pass whose coefficient is
zero; v is the predicted velocity. It attends briefly, as in training: over one of the equal
paddings of the prompt, counted for all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusion3Pipeline

from autolora_eval.miniature.recipes.data import to_images
from autolora_eval.miniature.recipes.sampling import Guidance
from autolora_eval.miniature.recipes.sd3 import N_TIMES, EagerJointAttention, predict
from autolora_eval.miniature.recipes.sd3_text import brief
from autolora_eval.miniature.recipes.training import mixed_precision

BATCH = 48


def load(sd3: Path, lora: Path | None = None) -> StableDiffusion3Pipeline:
    """The pipeline in float32, with the LoRA loaded from its folder."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(str(sd3), torch_dtype=torch.float32)
    if lora is not None:
        pipeline.load_lora_weights(str(lora))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class _Prompts:
    """Brief conditional and null conditions of a batch: [B, 47, 128] and [B, 128] each."""

    hidden: torch.Tensor
    pooled: torch.Tensor
    null_hidden: torch.Tensor
    null_pooled: torch.Tensor


def _prompts(pipeline: StableDiffusion3Pipeline, prompts: Sequence[str]) -> _Prompts:
    hidden, null_hidden, pooled, null_pooled = pipeline.encode_prompt(
        list(prompts), None, None, negative_prompt=[""] * len(prompts)
    )
    return _Prompts(brief(hidden), pooled, brief(null_hidden), null_pooled)


def _predict(
    pipeline: StableDiffusion3Pipeline,
    noisy: torch.Tensor,
    time: torch.Tensor,
    prompts: _Prompts,
    scale: float,
) -> torch.Tensor:
    """One model's velocity [B, 4, 16, 16], guided by `scale` (1: the conditional pass alone)."""
    n = len(noisy)
    hidden, pooled = prompts.hidden, prompts.pooled
    if scale != 1.0:
        noisy = torch.cat([noisy, noisy])
        hidden = torch.cat([hidden, prompts.null_hidden])
        pooled = torch.cat([pooled, prompts.null_pooled])
    out = predict(pipeline.transformer, noisy, time.expand(len(noisy)), hidden, pooled)
    return out if scale == 1.0 else out[n:] + scale * (out[:n] - out[n:])


def _guided(
    pipeline: StableDiffusion3Pipeline,
    noisy: torch.Tensor,
    time: torch.Tensor,
    prompts: _Prompts,
    guidance: Guidance,
) -> torch.Tensor:
    """Predict v + γ(v_LoRA - v), of passes whose coefficient is not zero."""
    total = torch.zeros_like(noisy)
    if guidance.gamma != 1.0:
        # A pipeline without any LoRA is the base already.
        if pipeline.get_active_adapters():
            pipeline.transformer.disable_adapters()
        base = _predict(pipeline, noisy, time, prompts, guidance.base_scale)
        total = total + (1 - guidance.gamma) * base
    if guidance.gamma != 0.0:
        pipeline.transformer.enable_adapters()
        adapted = _predict(pipeline, noisy, time, prompts, guidance.lora_scale)
        total = total + guidance.gamma * adapted
    return total


@torch.no_grad()
def _batch(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int,
) -> npt.NDArray[np.uint8]:
    encoded = _prompts(pipeline, prompts)
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    noise = [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in seeds]
    latents = torch.stack(noise)
    for timestep in scheduler.timesteps:
        velocity = _guided(pipeline, latents, timestep / N_TIMES, encoded, guidance)
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    config = pipeline.vae.config
    latents = latents / float(config["scaling_factor"]) + float(config["shift_factor"])
    return to_images(pipeline.vae.decode(latents).sample)


def sample(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int = 20,
    fast: bool = False,
) -> npt.NDArray[np.uint8]:
    """Pictures uint8 [N, 64, 64, 3], one for each prompt and seed.

    `fast` computes in bfloat16 where the CPU has it: for choosing settings, not for measuring.
    """
    stock = pipeline.transformer.attn_processors
    pipeline.transformer.set_attn_processor(EagerJointAttention())
    parts = []
    try:
        with mixed_precision() if fast else nullcontext():
            for i in range(0, len(prompts), BATCH):
                chosen = slice(i, i + BATCH)
                parts.append(_batch(pipeline, prompts[chosen], seeds[chosen], guidance, steps))
    finally:
        pipeline.transformer.set_attn_processor(stock)
    return np.concatenate(parts)
