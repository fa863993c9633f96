"""The shipped SD3 miniature: loads as SD3 does, draws what it is told, changes by its LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from autolora_eval.miniature import miniatures
from autolora_eval.miniature.recipes import sd3_text
from autolora_eval.miniature.recipes.domain import PALETTE, caption, held_out_scenes
from autolora_eval.miniature.recipes.lora_training import WEIGHT_NAME, unused_keys
from autolora_eval.miniature.recipes.sampling import Guidance
from autolora_eval.miniature.recipes.sd3 import sampling_scheduler
from autolora_eval.miniature.recipes.sd3_export import LORA, SD3
from autolora_eval.miniature.recipes.sd3_muon import orthogonal
from autolora_eval.miniature.recipes.sd3_sampling import load, sample

SCENES = held_out_scenes()[::6]
SEEDS = list(range(500, 500 + len(SCENES)))
PROMPTS = [caption(scene, style=True) for scene in SCENES]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load(SD3, LORA)


def pictures(pipeline: Any, guidance: Guidance) -> npt.NDArray[np.uint8]:
    return sample(pipeline, PROMPTS, SEEDS, guidance, steps=12)


def off_grid(images: npt.NDArray[np.uint8]) -> float:
    """Mean deviation inside the 4×4 cells of the pixel-art grid: small for pixel art."""
    return float(images.reshape(-1, 16, 4, 16, 4, 3).astype(float).std(axis=(2, 4)).mean())


def test_it_is_all_of_sd3(pipeline: Any) -> None:
    """Two CLIP encoders, a T5, an MMDiT and flow matching, under the names that diffusers gives."""
    assert {name: type(part).__name__ for name, part in pipeline.components.items() if part} == {
        "transformer": "SD3Transformer2DModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5Tokenizer",
    }
    assert {"sd3", "sd3_pixel_art_lora"} <= set(miniatures())


def test_every_lora_key_is_used(pipeline: Any) -> None:
    path = LORA / WEIGHT_NAME
    assert len(load_file(path)) > 50
    assert unused_keys(pipeline, path) == set()


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


def test_attending_briefly_is_the_stock_pipeline(pipeline: Any) -> None:
    """γ = 0 is the pipeline without LoRA, γ = 1 the pipeline with it, to a few grey levels."""
    for gamma in (0.0, 1.0):
        mine = sample(pipeline, PROMPTS[:2], SEEDS[:2], Guidance(gamma, 4.0, 4.0), steps=6)
        if gamma:
            pipeline.transformer.enable_adapters()
        else:
            pipeline.transformer.disable_adapters()
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


@torch.no_grad()
def test_the_paddings_that_are_left_out_are_equal(pipeline: Any) -> None:
    """What attending briefly rests on, for the null prompt as for the longest caption."""
    texts = ["", *(caption(scene, 3, "watercolor style") for scene in SCENES)]
    ids = sd3_text.t5_ids(pipeline.tokenizer_3, texts)
    hidden = pipeline.text_encoder_3(ids)[0]
    whole = torch.cat([torch.zeros(len(texts), 24, hidden.shape[-1]), hidden], 1)
    kept = sd3_text.brief(whole)
    left_out = sd3_text.T5_LENGTH - (kept.shape[1] - 24)
    scores = sd3_text.brief_scores(0, 24)
    assert scores.exp().sum() == pytest.approx(24 + sd3_text.T5_LENGTH, rel=1e-5)
    where = int(scores.argmax())
    equal = whole[:, where : where + left_out + 1]
    assert (equal - equal[:, :1]).abs().max() < 1e-5
    assert (ids != 0).sum(1).max() <= where - 24


def test_latents_have_about_unit_variance_with_the_stated_factors(pipeline: Any) -> None:
    from autolora_eval.miniature.recipes.data import draw
    from autolora_eval.miniature.recipes.vae import encode

    means, _ = encode(pipeline.vae, draw("free", "held_out", 96, 3))
    config = pipeline.vae.config
    latents = (means - config.shift_factor) * config.scaling_factor
    assert abs(float(latents.mean())) < 0.1
    assert 0.9 < float(latents.std()) < 1.1
    assert pipeline.scheduler.config.shift == sampling_scheduler().config.shift


def test_muon_steps_are_about_orthogonal() -> None:
    """Also where the gradient has next to no rank, for wide and for tall matrices."""
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(2, 32, 4, generator=generator) @ torch.randn(2, 4, 64, generator=generator)
    gradient = thin + 0.2 * torch.randn(2, 32, 64, generator=generator)
    for matrices in (gradient, gradient.transpose(1, 2).contiguous()):
        sizes = torch.linalg.svdvals(orthogonal(matrices))
        assert sizes.min() > 0.5
        assert sizes.max() < 1.4


def test_the_folders_stay_small() -> None:
    size = sum(p.stat().st_size for f in (SD3, LORA) for p in f.rglob("*") if p.is_file())
    assert size < 8e6


@pytest.mark.parametrize("folder", [SD3, LORA])
def test_the_cards_say_what_the_numbers_do_not_mean(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "It says nothing about SD3" in card
    assert "license: apache-2.0" in card
    assert "AutoLoRA+CFG" in card
