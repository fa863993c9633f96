"""A single file, another VAE and a text encoder left out equal diffusers' own pipelines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image
from single_file import write_single_file
from tiny_flow_models import make_sd3
from tiny_models import SIZE, STEPS, make_sdxl, small_vae

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._sources import Source
from autolora_eval.config.resolved import ResolvedModel
from autolora_eval.config.schema import Model
from autolora_eval.generation.diffusion_pipeline import LoraPipeline

pytestmark = pytest.mark.model

PROMPTS, SEEDS = ["a red cat", "two dogs"], [7, 11]


def source(path: Path) -> Source:
    return Source(str(path), "file" if path.is_file() else "folder", str(path))


def ours(pipeline: Path, parts: dict[str, Source], **keys: Any) -> list[Image.Image]:
    spec = Model(pipeline=str(pipeline), num_inference_steps=STEPS, **keys)
    model = ResolvedModel("tiny", spec, source(pipeline), (), SIZE, **parts)
    loaded = LoraPipeline.load(model, torch.device("cpu"), torch.float32)
    guider = ClassifierFreeGuidance(guidance_scale=5.0)
    return loaded.sample(PROMPTS, SEEDS, guider, num_inference_steps=STEPS, size=SIZE).images


def theirs(pipe: Any) -> list[Image.Image]:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS,
        negative_prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        width=SIZE[0],
        height=SIZE[1],
    ).images


def same(ones: list[Image.Image], others: list[Image.Image]) -> bool:
    """Equal but for one grey level: batches of other sizes round differently."""
    difference = np.stack(ones).astype(int) - np.stack(others)
    return bool(np.abs(difference).max() <= 1)


def test_another_vae_takes_the_place_of_the_pipelines_own(sdxl, tmp_path) -> None:
    torch.manual_seed(5)
    small_vae(force_upcast=False).save_pretrained(tmp_path / "vae")
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl)
    before = theirs(pipe)
    pipe.vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    found = ours(sdxl, {"vae": source(tmp_path / "vae")}, vae=str(tmp_path / "vae"))
    assert same(found, theirs(pipe))
    assert not same(found, before)


def test_sd3_without_its_third_text_encoder(tmp_path) -> None:
    folder = make_sd3(tmp_path / "sd3")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None)
    found = ours(folder, {}, text_encoder_3=None)
    assert same(found, theirs(pipe))
    assert not same(found, ours(folder, {}))


def test_a_single_file_is_the_folder_that_it_was_written_from(tmp_path) -> None:
    # diffusers tells the text encoders apart by their widths.
    sdxl = make_sdxl(tmp_path / "sdxl", widths=(16, 48))
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl)
    file = write_single_file(pipe, tmp_path / "tiny.safetensors")
    layout = tmp_path / "layout"
    shutil.copytree(sdxl, layout, ignore=shutil.ignore_patterns("*.safetensors"))
    assert same(ours(file, {"config": source(layout)}), theirs(pipe))
    # A VAE of its own replaces that of the file as well.
    torch.manual_seed(5)
    small_vae(force_upcast=False).save_pretrained(tmp_path / "vae")
    pipe.vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    parts = {"config": source(layout), "vae": source(tmp_path / "vae")}
    assert same(ours(file, parts, vae=str(tmp_path / "vae")), theirs(pipe))


def test_a_single_file_of_another_model_is_refused_by_name(sdxl, tmp_path) -> None:
    sd3 = make_sd3(tmp_path / "sd3")
    file = write_single_file(
        StableDiffusionXLPipeline.from_pretrained(sdxl), tmp_path / "x.safetensors"
    )
    with pytest.raises(AutoLoRAEvalError, match="cannot be loaded as a StableDiffusion3Pipeline"):
        ours(file, {"config": source(sd3)})
