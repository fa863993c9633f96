"""The pixel-art LoRA of the SD3 miniature, trained on the same pictures as SDXL's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers import SD3Transformer2DModel

from recipes.lora import pixel_art_data
from recipes.lora_training import Base, Conditions, Schedule, train_lora
from recipes.sd3 import attend_briefly, flow_loss
from recipes.sd3_text import Sd3Encoders

SCHEDULE = Schedule(steps=450, learning_rate=1.2e-3, seed=91)
# The joint attention of pixels and text, and the pixels' feed-forward layers.
_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
)


def _load(folder: Path) -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    attend_briefly(transformer)
    return transformer


def _encode(work_dir: Path, texts: Sequence[str]) -> Conditions:
    return Sd3Encoders.load(work_dir).encode(texts)


SD3_BASE = Base("sd3", "transformer", _TARGETS, _load, _encode, flow_loss)


def train(work_dir: Path) -> None:
    """Train the LoRA on WORK_DIR/sd3, noted in WORK_DIR/sd3_pixel_art_lora.json."""
    train_lora(work_dir, SD3_BASE, pixel_art_data(), SCHEDULE, "sd3_pixel_art_lora")
