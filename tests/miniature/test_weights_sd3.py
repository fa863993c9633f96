"""What is SD3's own in its shipped miniature: its parts, its paddings, its factors, Muon."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recipes import sd3_text
from recipes.domain import caption, held_out_scenes
from recipes.files import SD3_LORA
from recipes.sampling import Sampler
from recipes.sd3 import sampling_scheduler
from recipes.sd3_muon import orthogonal

pytestmark = pytest.mark.model

SCENES = held_out_scenes()[::6]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return Sampler("sd3", SD3_LORA).pipeline


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
    from recipes.data import draw
    from recipes.vae import encode

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
