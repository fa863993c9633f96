"""Images are bitwise reproducible: on a re-run, in any order, and after an interruption."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import ModularPipeline
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from json_lines import read_jsonl
from tiny_models import SIZE, TinyModel, make_lora, tiny_plan

from autolora_eval._devices import choose_device
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import sha256_file
from autolora_eval._progress import Progress
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.stage import generate
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.model

METHODS = {
    "LoRA": {"guider": "lora"},
    "LoRA+CFG": {"guider": "cfg"},
    "AutoLoRA+CFG": {"guider": "autolora", "autolora_scale": 1.5},
}


def plan_of(folder: Path, tiny: TinyModel, **changes: Any) -> Plan:
    given = {"prompts": ["a red cat", "two dogs"], "seeds": {"start": 3, "count": 3}} | changes
    methods = given.pop("methods", METHODS)
    return tiny_plan(folder, tiny, methods, {"num_inference_steps": 2}, **given)


def made(tmp_path: Path, name: str, plan: Plan) -> dict[str, str]:
    """Generate into a folder of that name and return the hash of every image."""
    folder = RunFolder(tmp_path / name)
    generate(plan, folder, Progress())
    return hashes(folder)


def hashes(folder: RunFolder) -> dict[str, str]:
    root = folder.path / "images"
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def tiny(sdxl: Path) -> TinyModel:
    """The tiny SDXL with a LoRA by kohya's trainer, which tunes the text encoders too."""
    file = sdxl.parent / "generated.safetensors"
    return TinyModel(sdxl, file, make_lora(sdxl, file, kohya=True, text_encoders=True))


@pytest.fixture(scope="module")
def plan(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(tmp_path_factory.mktemp("benchmark"), tiny)


@pytest.fixture(scope="module")
def first_run(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("first"))
    done = generate(plan, folder, Progress())
    assert (done.made, done.reused) == (plan.n_images, 0)
    return folder


def test_metadata_describes_every_image(plan, first_run):
    jobs = {(job.prompt, job.seed) for job in plan.jobs}
    for cell in plan.cells:
        rows = read_jsonl(first_run.metadata(cell.id))
        assert {(row["prompt"], row["seed"]) for row in rows} == jobs
        for row in rows:
            file = first_run.images(cell.id) / row["file_name"]
            assert row["sha256"] == sha256_file(file)
            assert row["nfe"] == cell.nfe
            assert isinstance(row["seconds"], float)
            assert (row["width"], row["height"]) == SIZE


def test_datasets_reads_a_cell_as_an_imagefolder(plan, first_run, tmp_path):
    from datasets import load_dataset

    folder = str(first_run.images(plan.cells[0].id))
    dataset = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=str(tmp_path))
    assert len(dataset) == len(plan.jobs)
    jobs = {(job.prompt, job.seed) for job in plan.jobs}
    assert {(row["prompt"], row["seed"]) for row in dataset} == jobs
    assert dataset[0]["image"].size == SIZE


def test_order_of_cells_prompts_and_seeds_does_not_matter(plan, first_run, tiny, tmp_path):
    changed = plan_of(
        tmp_path,
        tiny,
        methods=dict(reversed(METHODS.items())),
        prompts=["two dogs", "a red cat"],
        seeds={"start": 2, "count": 4},
    )
    other = made(tmp_path, "reordered", changed)
    shared = {name: digest for name, digest in other.items() if not name.endswith("/2.png")}
    assert shared == hashes(first_run)


def test_a_sweep_of_lora_scales_gives_the_bits_of_single_runs(tiny, tmp_path, monkeypatch):
    load, loaded = LoraPipeline.load, []
    monkeypatch.setattr(LoraPipeline, "load", lambda *a: loaded.append(a[0].name) or load(*a))
    scales, one_job = (1.2, 0.4), {"prompts": ["a red cat"], "seeds": {"start": 3, "count": 1}}
    swept = plan_of(tmp_path, tiny, sweep={"lora_scale": list(scales)}, **one_job)
    model = yaml.safe_load(swept.benchmark.file.read_text())["models"]["T"]
    together = made(tmp_path, "together", swept)
    assert len(loaded) == 1, "the base pipeline was loaded once for both"
    alone = {}
    for scale in scales:
        model["lora"]["scale"] = scale
        one = plan_of(tmp_path, tiny, models={"T": model}, **one_job)
        for name, digest in made(tmp_path, f"at {scale}", one).items():
            cell, file = name.split("/", 1)
            alone[f"{cell}--lora_scale={scale}/{file}"] = digest
    assert together == alone
    assert len(set(alone.values())) == len(alone), "the scale makes a difference"


def test_lost_changed_and_unlisted_images_are_made_again(plan, first_run, tmp_path):
    folder = RunFolder(tmp_path / "damaged")
    shutil.copytree(first_run.path, folder.path)
    lost, changed, rowless = (folder.images(plan.cells[1].id) / job.file for job in plan.jobs[:3])
    lost.unlink()
    changed.write_bytes(b"not a picture")
    metadata = folder.metadata(plan.cells[1].id)
    lines = metadata.read_text().splitlines(keepends=True)
    name = str(rowless.relative_to(folder.images(plan.cells[1].id)))
    metadata.write_text("".join(line for line in lines if name not in line))
    done = generate(plan, folder, Progress())
    assert done.made == 3
    assert hashes(folder) == hashes(first_run)


def test_a_changed_parameter_makes_new_images(plan, first_run, tiny, run, tmp_path):
    shutil.copytree(first_run.path, run.path)
    scaled = METHODS | {"LoRA+CFG": {"guider": "cfg", "guidance_scale": 2.0}}
    new = plan_of(tmp_path, tiny, methods=scaled, seeds={"start": 3, "count": 2})
    done = generate(new, run, Progress())
    assert (done.made, done.reused) == (4, 8)
    rows = read_jsonl(run.metadata("T--LoRA+CFG"))
    files = list(run.images("T--LoRA+CFG").rglob("*.png"))
    assert len(rows) == len(files) == 4
    before = {row["sha256"] for row in read_jsonl(first_run.metadata("T--LoRA+CFG"))}
    assert not before & {row["sha256"] for row in rows}


def test_stale_images_return_with_their_settings(plan, first_run, tiny, run, tmp_path):
    shutil.copytree(first_run.path, run.path)
    scaled = METHODS | {"LoRA+CFG": {"guider": "cfg", "guidance_scale": 2.0}}
    one = make_plan(plan_of(tmp_path, tiny, methods=scaled).benchmark, 1, 1)
    assert generate(one, run, Progress()).made == 1
    back = generate(plan, run, Progress())
    assert (back.made, back.reused) == (0, plan.n_images)
    assert hashes(run) == hashes(first_run)
    again = generate(one, run, Progress())
    assert again.made == 0


def without_lora(tiny: TinyModel) -> ResolvedModel:
    model = tiny.resolved(1.0)
    return dataclasses.replace(model, spec=model.spec.model_copy(update={"lora": None}), loras=())


def test_a_pipeline_with_a_damaged_component_is_refused(tiny, tmp_path):
    broken = tmp_path / "sdxl"
    shutil.copytree(tiny.pipeline, broken)
    (broken / "text_encoder_2" / "model.safetensors").write_bytes(b"damaged")
    model = without_lora(TinyModel(broken, tiny.lora, tiny.changes))
    with pytest.raises(AutoLoRAEvalError, match="text_encoder_2 could not be loaded"):
        LoraPipeline.load(model, torch.device("cpu"), torch.float32)


def test_the_revision_applies_to_every_component(tiny, monkeypatch):
    asked = []
    load = ComponentSpec.load

    def noted(self, **kwargs):
        asked.append(kwargs.get("revision"))
        return load(self, **kwargs)

    monkeypatch.setattr(ComponentSpec, "load", noted)
    model = tiny.resolved(1.0)
    pinned = dataclasses.replace(model, spec=model.spec.model_copy(update={"revision": "abc"}))
    LoraPipeline.load(pinned, torch.device("cpu"), torch.float32)
    assert len(asked) >= 7
    assert set(asked) == {"abc"}


def test_a_hub_pipeline_of_another_size_than_planned_is_refused(tiny):
    model = without_lora(tiny)
    hub = dataclasses.replace(model.pipeline, kind="hub")
    guessed = dataclasses.replace(model, pipeline=hub, size=(1024, 1024))
    with pytest.raises(AutoLoRAEvalError, match=r"32×32 pixels, but the plan assumed 1024×1024"):
        LoraPipeline.load(guessed, torch.device("cpu"), torch.float32)


def test_another_lora_with_the_same_name_makes_other_images(tiny, sdxl, tmp_path):
    lora = tmp_path / "lora.safetensors"
    mine = TinyModel(sdxl, lora, make_lora(sdxl, lora, kohya=False, text_encoders=False, seed=5))
    plan = plan_of(tmp_path, mine, methods={"A": METHODS["LoRA"]}, seeds={"count": 1})
    before = made(tmp_path, "run", plan)
    make_lora(sdxl, lora, kohya=False, text_encoders=False, seed=6)
    after = made(tmp_path, "run", plan)
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_autolora_without_a_lora_is_refused(tiny):
    pipe = ModularPipeline.from_pretrained(str(tiny.pipeline), workflow="text2image")
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(guider=AutoLoRAGuidance(1.5, 4.0))
    with pytest.raises(ValueError, match="needs a LoRA on UNet2DConditionModel, which has none"):
        pipe(prompt="x", negative_prompt="", num_inference_steps=2, width=32, height=32)


def test_a_device_that_is_not_here_is_named():
    if torch.cuda.is_available():
        with pytest.raises(AutoLoRAEvalError, match=r"sees .* CUDA device"):
            choose_device("cuda:99")
    else:
        with pytest.raises(AutoLoRAEvalError, match=r"asks for device 'cuda', but .* sees 0 CUDA"):
            choose_device("cuda")
        assert choose_device("auto") == "cpu"
