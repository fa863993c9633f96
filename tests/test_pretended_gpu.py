"""On a GPU no tensor stays behind, and networks that leave it change no image.

The GPU is pretended (`pretended_gpu`): it finds a tensor on the wrong device, but no difference of
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from in_process import pictured
from pretended_gpu import GPU, OnGPU, pretended_gpu
from scored_run import picture
from tiny_flow_models import make_qwen_image, make_sd3, make_z_image
from tiny_models import ENCODER, UNET, TinyModel, make_lora, make_sdxl, write_lora

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import sha256_file
from autolora_eval._progress import Progress
from autolora_eval._resources import miniature_folder
from autolora_eval._sources import Source
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.stage import generate
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.extractor import EXTRACTORS, Loading
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge
from autolora_eval.scoring.rubric import Question

pytestmark = pytest.mark.model

OWN = '''
import torch
from diffusers.guiders import ClassifierFreeGuidance


class Misplaced(ClassifierFreeGuidance):
    """CFG with a mask that is forgotten on the CPU."""

    def forward(self, pred_cond, pred_uncond=None):
        pred_cond = pred_cond * torch.ones(pred_cond.shape)
        return super().forward(pred_cond, pred_uncond)


def standard(prompt, seed, model):
    """The standard pipeline from the shared noise."""
    width, height = model.size
    steps = dict(width=width, height=height, num_inference_steps=1)
    return model.pipeline(prompt, latents=model.noise(seed), **steps).images[0]
'''
METHODS = {
    **{name: {"guider": name} for name in ("lora", "cfg", "autolora", "cfg_interval")},
    "APG": {"guider": "diffusers.guiders.AdaptiveProjectedGuidance"},
    "TCFG": {"guider": "diffusers.guiders.TangentialClassifierFreeGuidance"},
}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny SDXL whose LoRA tunes the text encoders too."""
    folder = make_sdxl(tmp_path_factory.mktemp("model") / "sdxl")
    file = folder.parent / "lora.safetensors"
    return TinyModel(folder, file, make_lora(folder, file, kohya=True, text_encoders=True))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of the third-party code."""
    (tmp_path / "own_on_gpu.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_on_gpu"


def images(
    model: TinyModel, folder: Path, methods: dict[str, Any], free: int = 2**33, **keys: Any
) -> dict[str, str]:
    """Generate on the pretended GPU and return the hash of every image."""
    content = {
        "name": "tiny",
        "prompts": ["a red cat"],
        "seeds": {"count": 2},
        "models": {
            "T": {
                "pipeline": str(model.pipeline),
                "lora": {"path": str(model.lora)},
                "num_inference_steps": 1,
                **keys,
            }
        },
        "methods": methods,
        "features": {"model": "miniature:dinov2"},
        "batch_size": 2,
        "device": "cuda:0",
        "dtype": "float32",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pretended_gpu(free):
        generate(
            make_plan(load_benchmark(folder / "benchmark.yaml")), RunFolder(folder), Progress()
        )
    made = sorted((folder / "images").rglob("*.png"))
    return {str(path.relative_to(folder)): sha256_file(path) for path in made}


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The networks that move, by class, each with where to."""
    seen: list[tuple[str, str]] = []
    move = torch.nn.Module.to

    def noted(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        seen.append((type(self).__name__, str(args[0]) if args else ""))
        return move(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", noted)
    return seen


def test_offloaded_runs_of_guiders_and_samplers_have_the_bits_of_resident_ones(
    sdxl, tmp_path, own, moves
) -> None:
    methods = METHODS | {"standard": {"sampler": f"{own}.standard"}}
    resident = images(sdxl, tmp_path / "none", methods)
    assert len(resident) == 2 * len(methods)
    assert ("UNet2DConditionModel", "cpu") not in moves
    runs = {"auto": (0, ["autolora", "APG"]), "model": (2**33, ["autolora", "standard"])}
    for offload, (free, names) in runs.items():
        some = {name: methods[name] for name in names}
        moves.clear()
        made = images(sdxl, tmp_path / offload, some, free, offload=offload)
        assert made == {name: resident[name] for name in made}
        assert len(made) == 2 * len(some)
        assert ("UNet2DConditionModel", "cpu") in moves


@pytest.mark.parametrize("make", [make_sd3, make_qwen_image, make_z_image])
def test_other_pipelines_leave_no_tensor_behind(make, tmp_path) -> None:
    folder = make(tmp_path / "pipeline")
    file = tmp_path / "lora.safetensors"
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    tuned = {"transformer": UNET}
    if make is make_sd3:
        tuned |= {"text_encoder": ENCODER}
    model = TinyModel(folder, file, write_lora(pipe, file, tuned))
    keys = {"width": 32, "height": 32}
    methods = {name: {"guider": name} for name in ("cfg", "autolora")}
    resident = images(model, tmp_path / "none", methods, **keys)
    assert images(model, tmp_path / "model", methods, offload="model", **keys) == resident


def test_a_guider_that_leaves_a_tensor_on_the_cpu_is_found(sdxl, tmp_path, own) -> None:
    methods = {"CFG": {"guider": "cfg"}, "Misplaced": {"guider": f"{own}.Misplaced"}}
    with pytest.raises(AutoLoRAEvalError, match="all tensors to be on the same device"):
        images(sdxl, tmp_path / "run", methods)


def test_text_encoders_leave_the_gpu_when_the_prompts_are_encoded(sdxl) -> None:
    with pretended_gpu():
        pipeline = LoraPipeline.load(sdxl.resolved(0.8), GPU, torch.float32)
        before = pipeline.encode(["a red cat"], [""])["prompt_embeds"]
        assert {encoder.device for encoder in pipeline.text_encoders} == {GPU}
        pipeline.release_text_encoders()
        assert {encoder.device.type for encoder in pipeline.text_encoders} == {"cpu"}
        assert pipeline.denoiser.device == pipeline.pipe.vae.device == GPU
        again = pipeline.encode(["a red cat"], [""])["prompt_embeds"]
        assert isinstance(again, OnGPU)
        assert torch.equal(again.cpu(), before.cpu())
        assert {encoder.device.type for encoder in pipeline.text_encoders} == {"cpu"}


def test_the_extractor_takes_every_tensor_to_the_gpu() -> None:
    folder = str(miniature_folder("dinov2"))
    kind = EXTRACTORS.find("transformers")
    pictures = [picture(("cell", n, 0), (40, 56)) for n in range(3)]

    def features(device: torch.device) -> np.ndarray:
        source = Source(folder, "folder", folder)
        return kind.load(Loading(source, kind.parameters(), device, torch.float32, 2))(pictures)

    with pretended_gpu():
        found = features(GPU)
    np.testing.assert_allclose(found, features(torch.device("cpu")), atol=1e-5)


def test_the_judge_in_process_takes_every_tensor_to_the_gpu(tmp_path) -> None:
    folder = str(miniature_folder("judge"))
    spec = JudgeConfig(
        rubric="r",
        backend="transformers",
        model=folder,
        max_tokens=4,
        dtype="float32",
        batch_size=2,
    )
    requests = pictured(tmp_path, [Question("a", "b"), Question("", "c")])

    def said(device: torch.device) -> list[str | None]:
        judge = TransformersJudge(spec, Source(folder, "folder", folder), device)
        replies = [reply.text for group in judge.replies(requests) for _, reply in group]
        judge.close()
        return replies

    with pretended_gpu():
        found = said(GPU)
    assert found == said(torch.device("cpu"))
    assert all(found)
