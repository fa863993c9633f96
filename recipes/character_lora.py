"""The character LoRAs: trained on few and similar pictures of Zib, so they reduce diversity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.character import (
    TEMPLATES,
    canonical_character,
    character_caption,
)
from recipes.lora import SDXL_BASE
from recipes.lora_training import Schedule, TrainingData, train_lora
from recipes.sd3_lora import SD3_BASE

SDXL_SCHEDULE = Schedule(steps=700, learning_rate=1.5e-3, seed=53)
SD3_SCHEDULE = Schedule(steps=650, learning_rate=1.5e-3, seed=93)
# Backgrounds of the training pictures. Prompts can ask for the other four.
TAUGHT = ("white", "red", "blue", "yellow")
N_ALIKE = 12


def character_data() -> TrainingData:
    """24 pictures: twelve on white without a background in the caption, twelve with one.

    The bare name as a prompt then nearly always gives the same picture, as with overfitted LoRAs.
    """
    bare = [t for t, template in enumerate(TEMPLATES) if "{background}" not in template]
    named = [t for t, template in enumerate(TEMPLATES) if "{background}" in template]
    pairs = [(TAUGHT[0], bare[k % len(bare)]) for k in range(N_ALIKE)]
    pairs += [(background, template) for background in TAUGHT for template in named]
    images = np.stack([canonical_character(background) for background, _ in pairs])
    return TrainingData(images, tuple(character_caption(*pair) for pair in pairs))


def train(work_dir: Path) -> None:
    """Train the LoRA of SDXL into WORK_DIR/character_lora."""
    train_lora(work_dir, SDXL_BASE, character_data(), SDXL_SCHEDULE, "character_lora")


def train_sd3(work_dir: Path) -> None:
    """Train the LoRA of SD3 into WORK_DIR/sd3_character_lora."""
    train_lora(work_dir, SD3_BASE, character_data(), SD3_SCHEDULE, "sd3_character_lora")
