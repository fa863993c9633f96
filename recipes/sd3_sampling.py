"""Sampling from the SD3 miniature, as `sampling` does from SDXL's.

It attends briefly, as in training: over one of the equal paddings of the prompt, counted for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusion3Pipeline

from recipes.sampling import Family, Guidance, Prompts, sample_from
from recipes.sd3 import N_TIMES, EagerJointAttention, predict
from recipes.sd3_text import brief


def load(sd3: Path, lora: Path | None = None) -> StableDiffusion3Pipeline:
    """The pipeline in float32, with the LoRA loaded from its folder."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(str(sd3), torch_dtype=torch.float32)
    if lora is not None:
        pipeline.load_lora_weights(str(lora))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _encode(pipeline: StableDiffusion3Pipeline, prompts: Sequence[str]) -> Prompts:
    hidden, null_hidden, pooled, null_pooled = pipeline.encode_prompt(
        list(prompts), None, None, negative_prompt=[""] * len(prompts)
    )
    return Prompts(brief(hidden), pooled, brief(null_hidden), null_pooled)


def _predict(
    pipeline: StableDiffusion3Pipeline,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    times = (timestep / N_TIMES).expand(len(noisy))
    return predict(pipeline.transformer, noisy, times, hidden, pooled)


_SD3 = Family("transformer", _encode, _predict)


def sample(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int = 20,
    fast: bool = False,
) -> npt.NDArray[np.uint8]:
    """Pictures uint8 [N, 64, 64, 3], one for each prompt and seed.

    `fast` computes in bfloat16 where the CPU has it: for training data, not for measuring.
    """
    stock = pipeline.transformer.attn_processors
    pipeline.transformer.set_attn_processor(EagerJointAttention())
    try:
        return sample_from(_SD3, pipeline, prompts, seeds, guidance, steps, fast)
    finally:
        pipeline.transformer.set_attn_processor(stock)
