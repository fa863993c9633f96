"""A single file, another VAE and a text encoder left out equal diffusers' own pipelines."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from single_file import write_single_file
from standard_pipeline import ours, same, theirs
from tiny_flow_models import make_sd3
from tiny_models import SIZE, STEPS, make_sdxl, small_vae

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.config.gpu_memory import model_memory
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.model_section import check_checkpoint
from autolora_eval.config.schema import Model
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model


def source(path: Path) -> Source:
    return Source(str(path), "file" if path.is_file() else "folder", str(path))


def resolved(pipeline: Path, parts: dict[str, Source] | None = None, **keys: Any) -> ResolvedModel:
    spec = Model(pipeline=str(pipeline), num_inference_steps=STEPS, **keys)
    return ResolvedModel("tiny", spec, source(pipeline), (), SIZE, **(parts or {}))


def test_another_vae_takes_the_place_of_the_pipelines_own(sdxl, tmp_path):
    torch.manual_seed(5)
    small_vae(force_upcast=False).save_pretrained(tmp_path / "vae")
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl)
    before = theirs(pipe)
    pipe.vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    parts = {"vae": source(tmp_path / "vae")}
    found = ours(resolved(sdxl, parts, vae=str(tmp_path / "vae")))
    assert same(found, theirs(pipe))
    assert not same(found, before)


def test_sd3_without_its_third_text_encoder(tmp_path):
    folder = make_sd3(tmp_path / "sd3")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None)
    found = ours(resolved(folder, text_encoder_3=None))
    assert same(found, theirs(pipe))
    assert not same(found, ours(resolved(folder)))


@pytest.mark.parametrize("make", [make_sdxl, make_sd3])
def test_a_single_file_is_the_folder_that_it_was_written_from(make, tmp_path):
    # diffusers tells the text encoders apart by their widths.
    folder = make(tmp_path / "model", widths=(16, 48))
    pipe = DiffusionPipeline.from_pretrained(folder)
    if make is make_sd3:  # diffusers takes the identity for SD3's first projection, as it is
        pipe.text_encoder.text_projection.weight.data = torch.eye(16)
        pipe.save_pretrained(folder)
    file = write_single_file(pipe, tmp_path / "tiny.safetensors")
    layout = tmp_path / "layout"
    shutil.copytree(folder, layout, ignore=shutil.ignore_patterns("*.safetensors"))
    model = resolved(file, {"config": source(layout)})
    check_checkpoint(model)
    assert same(ours(model), theirs(pipe))
    memory, of_folder = (model_memory(one, "float16") for one in (model, resolved(folder)))
    # T5's embeddings are in the file under two names.
    assert memory.encoders[:2] == of_folder.encoders[:2]
    assert replace(memory, encoders=()) == replace(of_folder, encoders=())
    # transformers keeps a part of T5 in float32.
    loaded = LoraPipeline.load(resolved(folder), torch.device("cpu"), torch.float16)
    assert of_folder.encoders == tuple(
        sum(p.numel() * p.element_size() for p in encoder.parameters())
        for encoder in loaded.text_encoders
    )
    # A VAE of its own replaces that of the file as well.
    torch.manual_seed(5)
    small_vae(force_upcast=False, shift_factor=0.1).save_pretrained(tmp_path / "vae")
    pipe.vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    parts = {"config": source(layout), "vae": source(tmp_path / "vae")}
    assert same(ours(resolved(file, parts, vae=str(tmp_path / "vae"))), theirs(pipe))


def test_a_single_file_of_another_model_is_refused_by_name(sdxl, tmp_path):
    sd3 = make_sd3(tmp_path / "sd3")
    file = write_single_file(
        StableDiffusionXLPipeline.from_pretrained(sdxl), tmp_path / "x.safetensors"
    )
    with pytest.raises(AutoLoRAEvalError, match="cannot be loaded as a StableDiffusion3Pipeline"):
        ours(resolved(file, {"config": source(sd3)}))
