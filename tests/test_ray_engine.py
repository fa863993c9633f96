"""Images of a Ray cluster of two machines are those of the local engine, also if one died."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command import run_command
from conftest import ROOT
from lost_node import contents

from autolora_eval.pipeline.ray_engine import EngineName
from autolora_eval.pipeline.run_pipeline import RunPipeline

pytestmark = pytest.mark.e2e

# A sampler that needs no model: a process of the cluster imports little. That guiders make the
# same images in shares is proved by tests/generation/test_share.py.
SAMPLER = """
import os
import signal
from pathlib import Path

import numpy as np


def draw(prompt, seed, model, *, deadly: bool = False):
    "Kills its process, once."
    mark = Path(os.environ["AUTOLORA_EVAL_MARK"])
    if deadly and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    rng = np.random.default_rng([seed, deadly])
    return rng.integers(0, 256, (*model.size, 3), dtype=np.uint8)
"""
SEEDS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes of one processor: only one of them has the run folder, as far as Ray knows."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # or the other tests leave it no processor
        node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        both = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        both.add_node(**node)
        ray.init(both.address, logging_level="ERROR")
        yield
        ray.shutdown()
        both.shutdown()


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The quick start with two methods, one of which kills its process; the mark is not there."""
    monkeypatch.setenv("AUTOLORA_EVAL_MARK", str(tmp_path / "mark"))
    (tmp_path / "deadly.py").write_text(SAMPLER)
    content = yaml.safe_load((ROOT / "benchmarks" / "quickstart.yaml").read_text("utf-8"))
    content["prompts"] = ["a red heart on a blue background, pixel art style"]
    content["seeds"]["count"] = SEEDS
    content["features"] = {"extractor": "colours"}
    del content["judge"]
    draw = {"sampler": "deadly.draw"}
    content["methods"] = {"LoRA+CFG": draw, "Dies": draw | {"deadly": True}}
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def images(benchmark: Path, output: Path, engine: EngineName) -> dict[str, bytes]:
    RunPipeline(benchmark, output, engine=engine).generate()
    return contents(output)


def test_a_killed_process_changes_no_image(cluster, benchmark, tmp_path) -> None:
    """Features and judgements are compared by `tests/lost_node.py`: each stage starts processes."""
    spread = images(benchmark, tmp_path / "ray", "ray")  # one is killed: the mark is made
    assert (tmp_path / "mark").exists()
    assert len(spread) == 2 * SEEDS
    assert spread == images(benchmark, tmp_path / "local", "local")
    assert not list((tmp_path / "ray").rglob(".partial-*"))


def test_without_ray_the_command_says_how_to_get_it(tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    finished = run_command("run", "quickstart", "--output", tmp_path / "run", "--engine", "ray")
    assert finished.code == 1
    assert "pip install 'autolora-eval[ray]'" in finished.stderr
    assert not (tmp_path / "run").exists()
