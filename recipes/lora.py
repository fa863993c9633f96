"""The pixel-art LoRA of the SDXL miniature: trained on few pictures of one style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from recipes.domain import (
    COLOURS,
    Scene,
    canonical_pixel_art,
    caption,
    is_held_out,
)
from recipes.lora_training import (
    Base,
    Conditions,
    Schedule,
    TrainingData,
    train_lora,
)
from recipes.shapes import OBJECTS
from recipes.text import TextEncoders, token_ids
from recipes.unet import denoising_loss, training_scheduler

SCHEDULE = Schedule(steps=400, learning_rate=1e-3, seed=51)
N_PICTURES = 24
# Attention alone cannot move the style: measured clearly worse in a trial.
_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
)


def _load(folder: Path) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.set_attn_processor(AttnProcessor())
    return unet


@torch.no_grad()
def _encode(work_dir: Path, texts: Sequence[str]) -> Conditions:
    encoders = TextEncoders.load(work_dir / "sdxl")
    return encoders.encode(token_ids(encoders.tokenizer, texts))


def _loss(
    unet: Any,  # noqa: ANN401
    clean: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    return denoising_loss(unet, training_scheduler(), clean, hidden, pooled)


SDXL_BASE = Base("sdxl", "unet", _TARGETS, _load, _encode, _loss)


def scenes() -> list[Scene]:
    """The few training scenes shown: every object and every colour three times."""
    chosen = []
    for k in range(N_PICTURES):
        turn, position = divmod(k, len(OBJECTS))
        candidates = [
            Scene(OBJECTS[position], COLOURS[(position + 3 * turn) % 8], COLOURS[b])
            for b in ((position * 3 + 5 * turn + 1 + shift) % 8 for shift in range(8))
            if b != (position + 3 * turn) % 8
        ]
        chosen.append(next(scene for scene in candidates if not is_held_out(scene)))
    return chosen


def pixel_art_data() -> TrainingData:
    """The few scenes as canonical pixel art, each with its caption."""
    images = np.stack([canonical_pixel_art(scene) for scene in scenes()])
    return TrainingData(images, tuple(caption(scene, style=True) for scene in scenes()))


def train(work_dir: Path) -> None:
    """Train the LoRA on WORK_DIR/sdxl into WORK_DIR/pixel_art_lora and pixel_art_lora.json."""
    train_lora(work_dir, SDXL_BASE, pixel_art_data(), SCHEDULE, "pixel_art_lora")
