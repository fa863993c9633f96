"""What a run keeps of its folder, and why it makes the rest; other libraries; the disk."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from json_lines import read_jsonl
from scored_run import picture

from autolora_eval import _devices
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import SPARE_BYTES, content_hash, write_jsonl
from autolora_eval._progress import Progress
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import feature_settings, judge_settings, planned_manifest
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.generation.outlook import StageOutlook, run_outlook
from autolora_eval.generation.stage import _watching_the_disk
from autolora_eval.pipeline.run_pipeline import RunPipeline
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.records import JudgeRecord, ModelRecord, SourceRecord
from autolora_eval.scoring.features import extract_features
from autolora_eval.scoring.judgement_store import JudgementFile

Data = dict[str, Any]
PlanOf = Callable[[Data], Plan]


@pytest.fixture
def data(benchmark_data: Data) -> Data:
    """A benchmark of 2 cells × 3 prompts × 2 seeds."""
    own = {"device": "cpu", "batch_size": 1, "features": {"extractor": "colours"}}
    return benchmark_data | own


@pytest.fixture
def plan_of(write_benchmark: Callable[[object], Path]) -> PlanOf:
    return lambda data: make_plan(load_benchmark(write_benchmark(data)))


@pytest.fixture
def folder(data: Data, plan_of: PlanOf, tmp_path: Path) -> RunFolder:
    """A run that was stopped: 5 of 6 images of each cell, their features, and 3 judgements."""
    folder, plan = RunFolder(tmp_path / "run"), plan_of(data)
    keys, settings = {}, {}
    for cell in plan.cells:
        here = ModelOnDevice(cell.model, [cell], "cpu", "float32", 1, "all")
        found = here.settings(cell)
        keys[cell.id] = content_hash(found)
        settings[keys[cell.id]] = found
        dataset = ImageDataset.open(folder, cell, keys[cell.id])
        jobs = plan.jobs[:5]
        pictures = [picture((cell.id, job.prompt_index, job.seed)) for job in jobs]
        dataset.write(jobs, pictures, cell.nfe, [{}] * len(jobs))
    asked = judge_settings(plan)
    judge = JudgeRecord(
        model="some-vlm",
        key="k",
        request_key=asked.request_key,
        rubric_name="r",
        rubric_sha256=asked.rubric.sha256,
    )
    manifest = planned_manifest(plan, folder)
    cells = [cell.model_copy(update={"settings_key": keys[cell.id]}) for cell in manifest.cells]
    manifest = manifest.model_copy(update={"cells": cells, "settings": settings, "judge": judge})
    features = extract_features(feature_settings(plan), manifest, folder, Progress())
    folder.write_manifest(manifest.model_copy(update={"features": features}))
    rows = read_jsonl(folder.metadata("A--CFG"))[:3]
    judged = {"repeat": 0, "reason": None, "scores": {"pc": 3}, "judge_key": "k"}
    JudgementFile(folder.judgements("A--CFG")).append(
        {"image_id": row["file_name"], "sha256": row["sha256"], **judged} for row in rows
    )
    return folder


def stages(plan: Plan, folder: RunFolder) -> list[StageOutlook]:
    found, why_not = run_outlook(plan, folder)
    assert why_not is None
    return found


def test_a_new_run_keeps_nothing(data, plan_of, run):
    assert run_outlook(plan_of(data), run) is None


def test_the_plan_says_what_a_changed_benchmark_keeps_and_why_the_rest_is_made(
    data, plan_of, folder
):
    assert stages(plan_of(data), folder) == [
        StageOutlook("Images", 10, 2, ("2 of A × CFG, A × AutoLoRA: not made yet",)),
        StageOutlook("Features", 10, 2),
        StageOutlook("Judgements", 3, 9),
    ]
    data["methods"]["AutoLoRA"]["autolora_scale"] = 2.0
    data["methods"]["LoRA"] = {"guider": "lora"}
    data["features"]["batch_size"] = 4
    data["judge"]["temperature"] = 0.5
    plan = plan_of(data)
    features = "changed: the extractor, its precision, parameters or features.batch_size"
    images = "6 of A × AutoLoRA: changed: autolora_scale 1.5 → 2.0"
    assert stages(plan, folder) == [
        StageOutlook("Images", 5, 13, ("7 of A × CFG, A × LoRA: not made yet", images)),
        StageOutlook("Features", 0, 18, (features,)),
        StageOutlook("Judgements", 0, 18, ("changed: the judge or its settings",)),
    ]
    # Images of earlier settings return from where a run has put them.
    job, cell = plan.jobs[0], plan.cells[1]
    ImageDataset.open(folder, cell, "0123abcd").write([job], [picture(("x", 0, 0))], 1, [{}])
    assert len(list(folder.images("A--AutoLoRA").glob("*/*.png"))) == 1
    del data["methods"]["LoRA"]
    data["methods"]["AutoLoRA"]["autolora_scale"] = 1.5
    assert stages(plan_of(data), folder)[0].kept == 10


def test_a_changed_model_is_named(data, plan_of, folder, workplace):
    index = workplace / "sdxl" / "model_index.json"
    index.write_text(index.read_text() + "\n")
    data["batch_size"] = 2
    (why,) = stages(plan_of(data), folder)[0].why
    assert why == ("12 of A × CFG, A × AutoLoRA: changed: batch_size 1 → 2, files of pipeline")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_plan_of_a_gpu_run_needs_no_gpu(data, plan_of, folder, device):
    recorded = {"device": "cuda", "dtype": "float16", "guidance_batching": "separate"}
    source = SourceRecord(name="base", kind="folder")
    model = ModelRecord(pipeline=source, loras=[], size=(64, 64), **recorded)
    manifest = folder.read_manifest().model_copy(update={"models": {"A": model}})
    folder.write_manifest(manifest)
    plan = plan_of(data | {"device": device})
    for cell in plan.cells:
        here = ModelOnDevice(cell.model, [cell], "cuda", "float16", 1, "separate")
        dataset = ImageDataset.open(folder, cell, content_hash(here.settings(cell)))
        dataset.write(plan.jobs[:1], [picture((cell.id, 0, 0))], cell.nfe, [{}])
    assert stages(plan, folder)[0].kept == 2


def test_the_network_is_not_asked(data, plan_of, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder.path / "hub"))
    data["models"]["A"]["lora"] = {"path": "nobody/no-lora", "weight_name": "a.safetensors"}
    found, why = run_outlook(plan_of(data), folder)
    assert found == []
    assert str(why).startswith("not in the local cache, and not available from the hub (")
    assert not constants.HF_HUB_OFFLINE


def test_the_command_tells_it_without_torch(data, plan_of, folder):
    plan = plan_of(data)
    code = (
        "import sys; from autolora_eval.cli import app\n"
        f"app(['plan', {str(plan.benchmark.file)!r}, '--output', {str(folder.path)!r}], "
        "standalone_mode=False)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tail = [line.split() for line in said.stdout.splitlines()[-4:]]
    assert [" ".join(line) for line in tail] == [
        "Images 10 kept, 2 to do",
        "2 of A × CFG, A × AutoLoRA: not made yet",
        "Features 10 kept, 2 to do",
        "Judgements 3 kept, 9 to do",
    ]


def as_of(folder: RunFolder, torch: str, cell: str = "A--CFG") -> None:
    """Rewrite what the rows of a cell say of torch."""
    rows = read_jsonl(folder.metadata(cell))
    for row in rows:
        row["libraries"] = re.sub(r"^torch [^,]+", f"torch {torch}", row["libraries"])
    write_jsonl(folder.metadata(cell), rows)


def test_other_versions_in_the_middle_of_a_run_are_refused_until_they_are_accepted(
    data, plan_of, folder
):
    del data["judge"]
    pipeline = RunPipeline(plan_of(data).benchmark.file, folder.path)
    pipeline.check_requirements()
    for cell in pipeline.plan.cells:
        as_of(folder, "2.0.1", cell.id)
    now = _devices.package_versions()["torch"]
    message = (
        f"10 images of '{folder.path}' were made with other libraries: torch 2.0.1, now {now}. "
        "The 2 images still to make could differ for that reason alone. Install those versions "
        "again; or pass --accept-versions to keep both, which the report then says; or choose "
        "another --output to make all images again."
    )
    with pytest.raises(AutoLoRAEvalError, match=re.escape(message)):
        pipeline.check_requirements()
    pipeline.accept_versions = True
    pipeline.check_requirements()
    pipeline.accept_versions = False
    # Nothing is to be made: a finished run is as it was.
    data["seeds"]["count"] = 1
    RunPipeline(plan_of(data).benchmark.file, folder.path).check_requirements()
    # Images of both versions are there: this was accepted before.
    as_of(folder, now)
    pipeline.check_requirements()


def test_a_full_disk_stops_a_run_before_the_next_batch(tmp_path, monkeypatch):
    free = SPARE_BYTES + 1_000_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free))
    shown: list[int] = []
    advance = _watching_the_disk(
        RunFolder(tmp_path), lambda n, note="": shown.append(n), 10, 1_000_000
    )
    advance(5)
    free = SPARE_BYTES + 499_999
    with pytest.raises(AutoLoRAEvalError, match=r"has 0.05 GB free, .*Finished work is kept"):
        advance(0)
    advance(5)  # the last image: nothing is left to make
    assert sum(shown) == 10
