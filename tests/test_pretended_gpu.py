"""On a GPU no tensor stays behind, and networks that leave it change no image.

The GPU is pretended (`pretended_gpu`): it finds a tensor on the wrong device, but no difference of
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from guider_parameters import LAYERS, acting, acting_throughout
from in_process import judge, pictured, said
from pretended_gpu import GPU, OnGPU, pretended_gpu
from rubrics import shipped
from scored_run import picture
from tiny_flow_models import make_qwen_image, make_sd3, make_z_image
from tiny_models import ENCODER, SIZE, UNET, TinyModel, make_sdxl, tiny_plan, write_lora

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import sha256_file
from autolora_eval._progress import Progress
from autolora_eval.config.schema import Scheduler
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.guider_backend import ModelDriftCheck
from autolora_eval.generation.pipeline_loading import make_scheduler
from autolora_eval.generation.stage import generate
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS
from autolora_eval.guidance.method_registry import GUIDERS
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.extractor import EXTRACTORS, Loading
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge
from autolora_eval.scoring.rubric import Question
from autolora_eval.scoring.torch_metric import PairwiseCosineDiversity
from autolora_eval.sources.lookup import miniature_folder
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
TEXT = {"text_encoder": ENCODER}
SCHEDULERS = ("DPMSolverMultistep", "UniPCMultistep", "EulerAncestralDiscrete", "DDIM", "LCM")
SCHEDULERS += ("HeunDiscrete",)
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
    "autolora": {"guider": "autolora"},
    "APG": {"guider": "diffusers.guiders.AdaptiveProjectedGuidance"},
}
GUIDED = [
    *((kind, name) for kind in LAYERS for name in GUIDERS.built_in()),
    *(
        (kind, name)
        for kind in LAYERS
        for name, declared in DIFFUSERS_GUIDERS.items()
        if declared.refusal(acting(name, kind), kind) is None
    ),
]


def with_lora(folder: Path, parts: dict[str, tuple[str, ...]], kohya: bool = False) -> TinyModel:
    """A pipeline folder, with a LoRA of these parts beside it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    file = folder.with_suffix(".safetensors")
    return TinyModel(folder, file, write_lora(pipe, file, parts, kohya=kohya))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny SDXL whose LoRA tunes the text encoders too."""
    folder = make_sdxl(tmp_path_factory.mktemp("model") / "sdxl")
    return with_lora(folder, {"unet": UNET, "text_encoder_2": ENCODER} | TEXT, kohya=True)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny SD3 whose LoRA tunes a text encoder too."""
    folder = make_sd3(tmp_path_factory.mktemp("model") / "sd3")
    return with_lora(folder, {"transformer": UNET} | TEXT)


@pytest.fixture(scope="module")
def both(sdxl: TinyModel, sd3: TinyModel) -> dict[str, tuple[LoraPipeline, LoraPipeline]]:
    """Each model on the pretended GPU and on the CPU."""
    found = {}
    for kind, model in {SDXL: sdxl, SD3: sd3}.items():
        with pretended_gpu():
            there = LoraPipeline.load(model.resolved(0.8), GPU, torch.float32)
        found[kind] = there, LoraPipeline.load(model.resolved(0.8), CPU, torch.float32)
    return found


def latents(pipeline: LoraPipeline, guider: Any) -> torch.Tensor:
    return pipeline.sample(
        ["a red cat"], [7], guider, num_inference_steps=2, size=SIZE, output="latents"
    )


def on_gpu_and_cpu(
    pipelines: tuple[LoraPipeline, LoraPipeline], make: Callable[[], Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents of a new guider on each device."""
    there, here = pipelines
    with pretended_gpu():
        found = latents(there, make())
        assert isinstance(found, OnGPU)
        found = found.cpu()
    return found, latents(here, make())


@pytest.mark.parametrize(("kind", "name"), GUIDED)
def test_every_guider_takes_every_tensor_to_the_gpu(both, kind, name) -> None:
    def guider() -> Any:
        if name in DIFFUSERS_GUIDERS:
            return getattr(diffusers.guiders, name)(**acting_throughout(name, kind))
        method = GUIDERS.find(name)
        return method.build(method.parameters().with_model_defaults(4.0))

    found, expected = on_gpu_and_cpu(both[kind], guider)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_takes_every_tensor_to_the_gpu(both, name) -> None:
    section = Scheduler.model_validate({"class": f"{name}Scheduler"})
    own = both[SDXL][0].pipe.scheduler
    config = {**own.config, "_class_name": type(own).__name__}
    for pipeline in both[SDXL]:
        pipeline.pipe.update_components(scheduler=make_scheduler(section, config, 2))
    found, expected = on_gpu_and_cpu(both[SDXL], lambda: AutoLoRAGuidance(1.5, 6.0, 3.0))
    for pipeline in both[SDXL]:
        pipeline.pipe.update_components(scheduler=own)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of the third-party code."""
    (tmp_path / "own_on_gpu.py").write_text(OWN)
    monkeypatch.syspath_prepend(Path(__file__).parent / "example_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_on_gpu"


def images(
    model: TinyModel, folder: Path, methods: dict[str, Any], free: int = 2**33, **keys: Any
) -> dict[str, str]:
    """Generate on the pretended GPU and return the hash of every image."""
    keys = {"num_inference_steps": 1, **keys}
    with pretended_gpu(free):
        plan = tiny_plan(folder, model, methods, keys, device="cuda:0", dtype="float32")
        generate(plan, RunFolder(folder), Progress())
    made = sorted((folder / "images").rglob("*.png"))
    return {str(path.relative_to(folder)): sha256_file(path) for path in made}


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The class of each network that moves, and where it moves to."""
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
    samplers = {"standard": f"{own}.standard", "clipped": "example_plugins.clipped.clipped_noise"}
    methods = METHODS | {name: {"sampler": path} for name, path in samplers.items()}
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
    text = TEXT if make is make_sd3 else {}
    model = with_lora(make(tmp_path / "pipeline"), {"transformer": UNET} | text)
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


def test_nothing_is_computed_in_float64_on_the_gpu(monkeypatch) -> None:
    """Apple's GPU has none."""

    def refuse(tensor: OnGPU) -> None:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(OnGPU, "double", refuse)
    with pretended_gpu():
        rows = torch.eye(2, device=GPU)
        assert not ModelDriftCheck(lambda: rows).has_drifted(lambda: rows)
        metric = PairwiseCosineDiversity(dim=2)
        metric.update(rows)
    assert metric.compute() == 1


class Misplacing(torch.nn.Module):
    """A layer whose output is multiplied by a mask that is forgotten on the CPU."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> torch.Tensor:
        made: torch.Tensor = self.layer(*args)
        return made * torch.ones(made.shape)


@pytest.mark.parametrize("name", ["transformers", "colours"])  # timm: tests/scoring/test_timm.py
def test_every_extractor_takes_every_tensor_to_the_gpu(name) -> None:
    folder = str(miniature_folder("dinov2"))
    kind = EXTRACTORS.find(name)
    source = Source(folder, "folder", folder)
    pictures = [picture(("cell", n, 0), (40, 56)) for n in range(3)]

    def loaded(device: torch.device) -> Any:
        return kind.load(Loading(source, kind.parameters(), device, torch.float32, 2))

    with pretended_gpu():
        extractor = loaded(GPU)
        found = extractor(pictures)
        if kind.needs_model:
            extractor.model.layernorm = Misplacing(extractor.model.layernorm)
            with pytest.raises(RuntimeError, match="all tensors to be on the same device"):
                extractor(pictures)
    np.testing.assert_allclose(found, loaded(CPU)(pictures), atol=1e-5)


@pytest.mark.parametrize(
    "keys", [{}, {"logprobs": True, "temperature": 0.7, "constraint": "regex"}], ids=str
)
def test_the_judge_in_process_takes_every_tensor_to_the_gpu(tmp_path, keys) -> None:
    rubric = shipped("character_miniature")
    requests = pictured(tmp_path, [Question("a", "b"), Question("", "c")])

    def loaded(device: str) -> TransformersJudge:
        asked, given = (rubric if keys else None), {"dtype": "float32", "batch_size": 2}
        return judge(miniature_folder("judge"), asked, device, **given, **keys)

    with pretended_gpu():
        there = loaded("cuda:0")
        found = said(there, requests)
        there._model.lm_head = Misplacing(there._model.lm_head)
        with pytest.raises(RuntimeError, match="all tensors to be on the same device"):
            said(there, requests)
    assert found == said(loaded("cpu"), requests)
    assert all(found)
