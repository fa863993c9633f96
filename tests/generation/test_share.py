"""Images made in shares, by makers that load the model anew, are those of the local engine."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from json_lines import read_jsonl
from tiny_models import TinyModel, make_lora, tiny_plan

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._progress import Progress
from autolora_eval.config.plan import Plan
from autolora_eval.generation import model_on_device, sampler_backend
from autolora_eval.generation.stage import generate
from autolora_eval.pipeline.ray_engine import RayEngine
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.model

CODE = """
import random
from PIL import Image
from diffusers.guiders import ClassifierFreeGuidance

class Fails(ClassifierFreeGuidance):
    tried = 0
    def forward(self, pred_cond, pred_uncond=None):
        Fails.tried += 1
        raise ValueError("no")

class Counts:
    made = 0
    def __init__(self):
        Counts.made += 1
    def __call__(self, prompt, seed, model):
        if seed == 1:
            raise ValueError("odd")
        image = Image.new("RGB", model.size, (random.randrange(256), 0, 0))
        image.putpixel((0, 0), (seed, 0, 0))
        return image
"""
METHODS = {
    "Counts": {"sampler": "shared_methods.Counts"},
    "AutoLoRA": {"guider": "autolora", "autolora_scale": 1.5},
    "Fails": {"guider": "shared_methods.Fails"},
    "CFG": {"guider": "cfg"},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, sdxl: Path) -> Iterator[Plan]:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "shared_methods.py").write_text(CODE)
    file = folder / "style.safetensors"
    tiny = TinyModel(sdxl, file, make_lora(sdxl, file, kohya=True, text_encoders=True))
    prompts, seeds = ["a red cat", "two dogs"], {"start": 0, "count": 3}
    few = {"num_inference_steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))  # the fixture may be set up again
        yield tiny_plan(folder, tiny, METHODS, few, prompts=prompts, seeds=seeds)


def rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in row if key != "seconds"}
        for path in sorted(run.path.glob(f"{name}/**/*.jsonl"))
        for row in read_jsonl(path)
    ]


class Turns(RayEngine):
    """Two makers take turns, the last share comes first, and one is made twice."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:  # without a cluster
        self.plan, self.folder = plan, folder

    def spread(
        self, maker: Any, arguments: Any, units: Any, device: str, *, with_files: Any = None
    ) -> Iterator[Any]:
        makers = [maker(self.plan, self.folder, *arguments) for _ in range(2)]
        for n, share in enumerate([*reversed(units), units[0]]):
            yield makers[n % 2](share)


def test_shares_of_two_makers_are_the_images_of_the_local_engine(plan, tmp_path):
    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    messages = []
    for run, elsewhere in ((here, None), (there, Turns(plan, there).make_images)):
        with pytest.raises(AutoLoRAEvalError) as caught:
            generate(plan, run, Progress(), elsewhere=elsewhere)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert sys.modules["shared_methods"].Counts.made == 1 + 2, "one instance for each maker"
    assert sys.modules["shared_methods"].Fails.tried == 1 + 2, "each maker stops the cell"
    assert sys.modules["shared_methods"].Fails.tried == 1 + 2, "each maker stops the cell"
    assert "shared_methods.Fails' failed: ValueError: no" in messages[0]
    assert rows(there, "images") == rows(here, "images")
    assert rows(there, "failed_images") == rows(here, "failed_images")
    assert len(rows(here, "images")) == 2 * 6 + 4
    assert len(rows(here, "failed_images")) == 2


@pytest.mark.parametrize(("n_before", "n_tried"), [(0, 2 * 2), (1, 5)])
def test_each_maker_gives_up_a_sampler_if_the_cell_has_no_image(
    plan, run, monkeypatch, n_before, n_tried
):
    def fails(cell: Any, sampler: Any, job: Any, *_: Any) -> None:
        tried.add(job)
        raise ValueError("no")

    tried: set[Any] = set()
    plan = replace(plan, cells=plan.cells[:1])
    generate(replace(plan, jobs=plan.jobs[:n_before]), run, Progress())
    monkeypatch.setattr(sampler_backend, "GIVE_UP_AFTER", 2)
    monkeypatch.setattr(sampler_backend.SampledCell, "_sample", fails)
    with suppress(AutoLoRAEvalError):
        generate(plan, run, Progress(), elsewhere=Turns(plan, run).make_images)
    assert len(tried) == n_tried
    assert len(rows(run, "failed_images")) == 6 - n_before


def test_a_machine_with_a_smaller_gpu_makes_the_same_passes(plan, run, monkeypatch):
    class Smaller(Turns):
        def spread(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            monkeypatch.setattr(model_on_device, "card_bytes", lambda device: 1)
            yield from super().spread(*args, **kwargs)

    guided = [cell for cell in plan.cells if cell.method.name == "CFG"]
    plan = replace(plan, cells=guided, jobs=plan.jobs[:1])
    assert generate(plan, run, Progress(), elsewhere=Smaller(plan, run).make_images).made == 1


def test_a_machine_with_other_files_is_refused(plan, run, monkeypatch):
    monkeypatch.setattr("autolora_eval.pipeline.ray_worker.content_hash", lambda *_: "other")
    with pytest.raises(AutoLoRAEvalError, match="has other files of the model 'T'"):
        generate(plan, run, Progress(), elsewhere=Turns(plan, run).make_images)


@pytest.mark.parametrize("is_local", [True, False])
def test_a_sampler_that_runs_out_of_memory_had_one_image_in_memory(
    plan, tmp_path, monkeypatch, is_local
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sampler_backend.SampledCell, "fill", fill)
    run = RunFolder(tmp_path / "run")
    elsewhere = Turns(plan, run).make_images
    with pytest.raises(AutoLoRAEvalError, match=r"ran out of memory .*, batch_size 1, float32"):
        generate(plan, run, Progress(), elsewhere=None if is_local else elsewhere)
    assert len(rows(run, "images")) == 2 * 6, "guiders make their images"


def test_a_model_that_cannot_be_loaded_stops_its_guiders_only(plan, tmp_path, monkeypatch):
    loads = []

    def load(*_: object) -> None:
        loads.append(1)
        raise UsageError("its files lack weights.")

    monkeypatch.setattr("autolora_eval.generation.guider_backend.GuidedModel", load)
    messages = []
    for name in ("here", "there"):
        run = RunFolder(tmp_path / name)
        elsewhere = None if name == "here" else Turns(plan, run).make_images
        with pytest.raises(AutoLoRAEvalError) as caught:
            generate(plan, run, Progress(), elsewhere=elsewhere)
        messages.append((type(caught.value), str(caught.value)))
        assert len(rows(run, "images")) == 4, "the sampler makes its images"
    assert messages[0] == messages[1]
    assert messages[0][1].startswith("its files lack weights.\nEverything else finished.")
    assert len(loads) == 1 + 2, "once in each process"
