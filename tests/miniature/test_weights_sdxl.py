"""The shipped diffusion miniature: loads as SDXL does, draws what it is told, changes by LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from autolora_eval.miniature.recipes import export
from autolora_eval.miniature.recipes.domain import PALETTE, caption, held_out_scenes
from autolora_eval.miniature.recipes.lora_training import WEIGHT_NAME, unused_keys
from autolora_eval.miniature.recipes.sampling import Guidance, sample

SCENES = held_out_scenes()[::6]
SEEDS = list(range(500, 500 + len(SCENES)))
PROMPTS = [caption(scene, style=True) for scene in SCENES]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    loaded = StableDiffusionXLPipeline.from_pretrained(str(export.SDXL), torch_dtype=torch.float32)
    loaded.load_lora_weights(str(export.LORA))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pictures(pipeline: Any, guidance: Guidance) -> npt.NDArray[np.uint8]:
    return sample(pipeline, PROMPTS, SEEDS, guidance, steps=12)


def off_grid(images: npt.NDArray[np.uint8]) -> float:
    """Mean deviation inside the 4×4 cells of the pixel-art grid: small for pixel art."""
    return float(images.reshape(-1, 16, 4, 16, 4, 3).astype(float).std(axis=(2, 4)).mean())


def test_every_lora_key_is_used(pipeline: Any) -> None:
    path = export.LORA / WEIGHT_NAME
    assert len(load_file(path)) > 50
    assert unused_keys(pipeline, path) == set()


def test_a_foreign_key_is_noticed(pipeline: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"unet.no_such_layer.lora_A.weight": torch.zeros(1)}, path)
    assert unused_keys(pipeline, path) == {"unet.no_such_layer.lora_A.weight"}


def test_held_out_backgrounds_are_drawn(pipeline: Any) -> None:
    images = pictures(pipeline, Guidance(0.0, 4.0))
    names = list(PALETTE)
    values = np.array([PALETTE[name] for name in names], dtype=float)
    right = 0
    for image, scene in zip(images, SCENES, strict=True):
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(float)
        nearest = np.abs(np.median(border, axis=0) - values).sum(axis=1).argmin()
        right += names[nearest] == scene.background
    assert right >= len(SCENES) - 1


def test_the_lora_makes_pixel_art(pipeline: Any) -> None:
    base, lora = (pictures(pipeline, g) for g in (Guidance(0.0, 4.0), Guidance(1.0, 1.0, 4.0)))
    edges = [float(np.abs(np.diff(x.astype(float), axis=2)).mean()) for x in (base, lora)]
    assert off_grid(lora) / edges[1] < 0.8 * off_grid(base) / edges[0]


def test_the_sampler_is_the_stock_pipeline(pipeline: Any) -> None:
    """γ = 0 is the pipeline without LoRA, γ = 1 the pipeline with it, to a few grey levels."""
    for gamma in (0.0, 1.0):
        mine = sample(pipeline, PROMPTS[:2], SEEDS[:2], Guidance(gamma, 4.0, 4.0), steps=6)
        if gamma:
            pipeline.unet.enable_adapters()
        else:
            pipeline.unet.disable_adapters()
        stock = pipeline(
            PROMPTS[:2],
            negative_prompt=["", ""],
            guidance_scale=4.0,
            height=64,
            width=64,
            num_inference_steps=6,
            generator=[torch.Generator().manual_seed(s) for s in SEEDS[:2]],
            output_type="np",
        ).images
        difference = np.abs(mine.astype(float) - np.asarray(stock) * 255)
        assert difference.max() < 3


def test_the_folders_stay_small() -> None:
    size = sum(p.stat().st_size for f in (export.SDXL, export.LORA) for p in f.rglob("*"))
    assert size < 13e6


@pytest.mark.parametrize("folder", [export.SDXL, export.LORA])
def test_the_cards_say_what_the_numbers_do_not_mean(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "It says nothing about SDXL" in card
    assert "license: apache-2.0" in card
    assert "AutoLoRA+CFG" in card
