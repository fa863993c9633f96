"""Features taken while images are made are those of the stage, byte for byte."""

from __future__ import annotations

import sys
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scored_run import manifest_of, write_images, write_manifest

import autolora_eval
from autolora_eval._progress import Progress
from autolora_eval.config.gpu_memory import GIB, model_memory
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import feature_settings
from autolora_eval.pipeline import background
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.features import (
    Batch,
    Extracted,
    extract_features,
    extract_whole_batches,
)
from autolora_eval.sources.lookup import shipped_benchmarks

pytestmark = pytest.mark.model

N_OF_CELL = 6  # 3 prompts × 2 seeds


@pytest.fixture
def plan(planned: Callable[..., Plan]) -> Plan:
    return planned(features={"extractor": "colours", "batch_size": 2})


def told(batch: Batch) -> Extracted:
    """Vectors that say what else was in the batch, as the last bits of a model's vector may."""
    opened = [image for image in batch if not image.problem]
    neighbours = zlib.crc32("".join(image.id for image in opened).encode())
    rows = {
        (image.id, str(image.sha256)): np.array([place, neighbours % 9973], dtype=np.float32)
        for place, image in enumerate(opened)
    }
    return Extracted(rows, {i.id: i.problem for i in batch if i.problem}, {})


def by_stage(plan: Plan, folder: RunFolder) -> dict[str, bytes]:
    extract_features(
        feature_settings(plan),
        manifest_of(plan, folder),
        folder,
        Progress(),
        lambda key, batches: map(told, batches),
    )
    return {cell.id: folder.features(cell.id).read_bytes() for cell in plan.cells}


def look(plan: Plan, folder: RunFolder, dies_after: int) -> int:
    """Extract what is there, as in the background; the process dies after some batches."""
    settings, calls = feature_settings(plan), iter(range(dies_after))

    def extract(batch: Batch) -> Extracted:
        if next(calls, None) is None:
            raise EOFError
        return told(batch)

    key, manifest = settings.key, manifest_of(plan, folder)
    done = 0
    with suppress(EOFError):
        for n in extract_whole_batches(extract, key, 2, manifest, folder, lambda: False):
            done += n
    return done


@pytest.mark.parametrize("lost", [(), (0,), (3,), (5,), (1, 2)])
def test_feature_files_equal_those_of_the_stage(lost: tuple[int, ...], plan, tmp_path) -> None:
    places = [[(c.id, j.prompt_index, j.seed) for j in plan.jobs] for c in plan.cells]
    never = [cell[n] for cell, n in product(places, lost)]
    in_turn = RunFolder(tmp_path / "in_turn")
    write_images(plan, in_turn, never)
    expected = by_stage(plan, in_turn)
    for dies_after in (0, 1, 2, 99):
        beside, done = RunFolder(tmp_path / f"beside{dies_after}"), 0
        for n in range(N_OF_CELL + 1):
            write_images(plan, beside, never + [place for cell in places for place in cell[n:]])
            done += look(plan, beside, dies_after)
        assert done <= (most := len(plan.cells) * (min(lost, default=N_OF_CELL) // 2 * 2))
        assert done == {0: 0, 99: most}.get(dies_after, done)
        assert by_stage(plan, beside) == expected


class Fails:
    """An extractor's process that fails, or hangs until it is cancelled."""

    def __init__(self, *, hangs: bool) -> None:
        self.hangs, self.called, self.ended = hangs, threading.Event(), threading.Event()

    def __call__(self, batch: Batch) -> Extracted:
        self.called.set()
        if self.hangs:
            assert self.ended.wait(20.0)
        raise EOFError

    def cancel(self) -> None:
        self.ended.set()

    close = cancel


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_background_failure_is_silent_and_ctrl_c_not_delayed(error, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    folder = RunFolder(tmp_path / "run")
    write_images(plan, folder)
    write_manifest(plan, folder)
    process = Fails(hangs=error is not None)
    monkeypatch.setattr(background, "free_gpu_share", lambda plan: 1.0)
    monkeypatch.setattr(background, "ExtractorProcess", lambda *arguments: process)

    def generate() -> None:
        with background.BackgroundFeatures(folder, plan) as extracting:
            extracting.settings = feature_settings(plan)
            extracting.start()
            assert process.called.wait(20.0)
            if error is not None:
                raise error

    with suppress(KeyboardInterrupt):
        generate()
    assert process.ended.is_set()
    assert not folder.features(plan.cells[0].id).exists()
    assert {len(read_features(folder.features(name)).ids) for name in by_stage(plan, folder)} == {6}


CODE = """
import time
from pathlib import Path
import numpy as np

def draw(prompt, seed, model, *, brightness: int, wait_for: str = ""):
    "The last image waits for the features of the first ones."
    deadline = time.monotonic() + 60
    while wait_for and seed == 5 and not [*Path(wait_for).glob("*.safetensors")]:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)
    rng = np.random.default_rng([seed, brightness])
    return rng.integers(0, brightness, (model.size[1], model.size[0], 3)).astype(np.uint8)
"""


@pytest.fixture
def run(tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a small benchmark of samplers."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn_beside.py").write_text(CODE)
    features = tmp_path / "run" / "features"

    def make(folder: str) -> autolora_eval.runs.folder.Run:
        content = yaml.safe_load(shipped_benchmarks()["quickstart"].read_text())
        draw = {"sampler": "drawn_beside.draw"}
        methods = {"80": {"brightness": 80}, "200": {"brightness": 200, "wait_for": str(features)}}
        content |= {
            "prompts": ["a red heart"],
            "seeds": {"start": 0, "count": 6},
            "methods": {name: draw | given for name, given in methods.items()},
            "baseline": "80",
            "features": {"model": "miniature:dinov2", "batch_size": 2},
        }
        del content["judge"]
        (tmp_path / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return autolora_eval.run(tmp_path / "bench.yaml", tmp_path / folder)

    return make


def test_a_run_extracts_during_generation_with_the_same_result(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(background, "free_gpu_share", lambda plan: 1.0)
    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    beside = run("run")
    monkeypatch.setattr(background, "PAUSE_SECONDS", 600.0)
    in_turn = run("in_turn")
    for name in ("features", "."):
        for path in (in_turn.folder.path / name).iterdir():
            if path.suffix in (".safetensors", ".csv") and path.name != "timings.csv":
                assert (beside.folder.path / name / path.name).read_bytes() == path.read_bytes()
    assert beside.manifest.features == in_turn.manifest.features
    one, other = beside.manifest.stages, in_turn.manifest.stages
    assert (one["features"].done, one["features"].reused) == (12, 0)
    assert one["features"].seconds > other["features"].seconds, "the wait is part of it"


def test_the_process_ends_when_the_pipe_of_a_killed_one_closes(plan: Plan) -> None:
    settings = feature_settings(plan)
    key = settings.key
    process = background.ExtractorProcess(plan.benchmark.file, key, 1.0)._process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_the_process_takes_at_most_its_share_of_the_gpu(device, index, monkeypatch) -> None:
    limits: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    limit = torch._C, "_cuda_setMemoryFraction", lambda *given: limits.append(given)
    monkeypatch.setattr(*limit, raising=False)
    background.limit_memory(device, 0.25)
    assert limits == [(0.25, index)]


def test_the_extractor_gets_the_memory_that_generation_leaves(write_benchmark, monkeypatch) -> None:
    card, held, of_others = 8 * GIB, GIB, 0

    def share(**changes: Any) -> float:
        content = yaml.safe_load(shipped_benchmarks()["quickstart"].read_text())
        content["models"]["SDXL miniature"] |= changes
        return background.free_gpu_share(make_plan(load_benchmark(write_benchmark(content))))

    assert share() == 0.0, "a CPU is not shared"
    monkeypatch.setattr(background, "choose_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (card - held - of_others, card))
    plan = make_plan(load_benchmark("quickstart"))
    (model,) = plan.benchmark.models.values()
    memory = model_memory(model, "float16").batched("conditions")
    assert share() == 1 - (memory.peak(plan.benchmark.spec.batch_size) + 2 * GIB) / card
    assert share(offload="model") == 0.0
    of_others = 6 * GIB
    assert share() == 0.0
