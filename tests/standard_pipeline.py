"""Images of diffusers' own pipelines, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image
from tiny_models import SIZE, STEPS

from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.generation.diffusion_pipeline import LoraPipeline

PROMPTS, SEEDS, W = ["a red cat", "two dogs"], [7, 11], 5.0


def ours(model: ResolvedModel) -> list[Image.Image]:
    """Load a model, and return its images with CFG."""
    loaded = LoraPipeline.load(model, torch.device("cpu"), torch.float32)
    guider = ClassifierFreeGuidance(guidance_scale=W)
    found: list[Image.Image] = loaded.sample(
        PROMPTS, SEEDS, guider, num_inference_steps=STEPS, size=SIZE
    ).images
    return found


def theirs(pipe: Any, **options: Any) -> Any:
    """Return the same images as the standard pipeline makes them, with further options."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS,
        negative_prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=W,
        width=SIZE[0],
        height=SIZE[1],
        **options,
    ).images


def same(ones: list[Image.Image], others: list[Image.Image]) -> bool:
    """Equal but for one grey level: batches of other sizes round differently."""
    difference = np.stack(ones).astype(int) - np.stack(others)
    return bool(np.abs(difference).max() <= 1)
