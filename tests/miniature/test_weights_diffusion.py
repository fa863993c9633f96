"""The shipped diffusion miniatures: load as their kind does, draw what is told, change by LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from autolora_eval.sources.lookup import miniatures
from recipes.diffusion_export import (
    Figures,
    sd3_card,
    sd3_lora_card,
    sdxl_card,
    sdxl_lora_card,
)
from recipes.domain import PALETTE, caption, held_out_scenes
from recipes.files import SD3, SD3_LORA, SDXL, SDXL_LORA
from recipes.lora_training import WEIGHT_NAME, unused_keys
from recipes.sampling import FAMILIES, Guidance, Sampler

SCENES = held_out_scenes()[::6]
SEEDS = list(range(500, 500 + len(SCENES)))
PROMPTS = [caption(scene, style=True) for scene in SCENES]


@dataclass(frozen=True)
class System:
    """One miniature: where it lies and how it is sampled."""

    name: str
    folder: Path
    lora: Path
    evaluation: str
    bytes: float
    cards: tuple[Callable[[Figures], str], Callable[[Figures], str]]

    @property
    def denoiser(self) -> str:
        return FAMILIES[self.name.lower()].denoiser


SYSTEMS = [
    System("SDXL", SDXL, SDXL_LORA, "evaluation", 13e6, (sdxl_card, sdxl_lora_card)),
    System("SD3", SD3, SD3_LORA, "sd3_evaluation", 8e6, (sd3_card, sd3_lora_card)),
]
pytestmark = [
    pytest.mark.model,
    pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name),
]


@cache
def sampler(system: System) -> Sampler:
    """The shipped pipeline with its pixel-art LoRA."""
    return Sampler(system.name.lower(), system.lora)


@cache
def pictures(system: System, guidance: Guidance) -> npt.NDArray[np.uint8]:
    return sampler(system)(PROMPTS, SEEDS, guidance, steps=12)


def off_grid(images: npt.NDArray[np.uint8]) -> float:
    """Mean deviation inside the 4×4 cells of the pixel-art grid: small for pixel art."""
    return float(images.reshape(-1, 16, 4, 16, 4, 3).astype(float).std(axis=(2, 4)).mean())


def test_every_lora_key_is_used(system: System) -> None:
    path = system.lora / WEIGHT_NAME
    assert len(load_file(path)) > 50
    assert unused_keys(sampler(system).pipeline, path) == set()


def test_a_foreign_key_is_noticed(system: System, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    key = f"{system.denoiser}.no_such_layer.lora_A.weight"
    save_file({key: torch.zeros(1)}, path)
    assert unused_keys(sampler(system).pipeline, path) == {key}


def test_held_out_backgrounds_are_drawn(system: System) -> None:
    names = list(PALETTE)
    values = np.array([PALETTE[name] for name in names], dtype=float)
    right = 0
    for image, scene in zip(pictures(system, Guidance(0.0, 4.0)), SCENES, strict=True):
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(float)
        nearest = np.abs(np.median(border, axis=0) - values).sum(axis=1).argmin()
        right += names[nearest] == scene.background
    assert right >= len(SCENES) - 1


def test_the_lora_makes_pixel_art(system: System) -> None:
    base, lora = (pictures(system, g) for g in (Guidance(0.0, 4.0), Guidance(1.0, 1.0, 4.0)))
    edges = [float(np.abs(np.diff(x.astype(float), axis=2)).mean()) for x in (base, lora)]
    assert off_grid(lora) / edges[1] < 0.8 * off_grid(base) / edges[0]


def test_the_sampler_is_the_stock_pipeline(system: System) -> None:
    """γ = 0 is the pipeline without LoRA, γ = 1 the pipeline with it, to a few grey levels."""
    sample = sampler(system)
    model = sample.pipeline
    for gamma in (0.0, 1.0):
        mine = sample(PROMPTS[:2], SEEDS[:2], Guidance(gamma, 4.0, 4.0), steps=6)
        denoiser = getattr(model, system.denoiser)
        if gamma:
            denoiser.enable_adapters()
        else:
            denoiser.disable_adapters()
        stock = model(
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


def test_the_folders_stay_small(system: System) -> None:
    assert {system.folder.name, system.lora.name} <= set(miniatures())
    files = [p for folder in (system.folder, system.lora) for p in folder.rglob("*")]
    assert sum(p.stat().st_size for p in files if p.is_file()) < system.bytes


def test_the_cards_say_what_was_measured_and_what_it_does_not_mean(system: System) -> None:
    figures = json.loads((system.folder / "figures.json").read_text(encoding="utf-8"))
    methods = figures[system.evaluation]["methods"]
    keys = ("object", "colour", "background", "all_three", "style_grade", "diversity")
    for folder, written in zip((system.folder, system.lora), system.cards, strict=True):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card == written(figures)
        assert f"It says nothing about {system.name}" in card
        assert "license: apache-2.0" in card
        for name, found in methods.items():
            row = " | ".join([name, *(f"{found[key]:.3f}" for key in keys)])
            assert f"| {row} |" in card
