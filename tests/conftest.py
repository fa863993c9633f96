"""What many tests share: model folders that can be found, though not loaded, and a benchmark."""

from __future__ import annotations

import copy
import functools
import json
import operator
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from autolora_eval._errors import UsageError
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parent.parent
TIERS = frozenset(("unit", "model", "e2e", "vllm"))
OF_ANOTHER_TIER = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.(model|e2e|vllm)\b", re.M)
# These wait for other processes or have one long test: no worker may meet them last.
FIRST = ("test_real_vllm.py", "test_ray_engine.py", "test_killed.py", "test_tutorial.py")

# Each worker, and each process that its tests start, has one core to itself.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of another tier for `-m unit`: model libraries take ten seconds to load."""
    if collection_path.suffix != ".py" or config.option.markexpr != "unit":
        return None
    return bool(OF_ANOTHER_TIER.search(collection_path.read_text("utf-8"))) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that names no tier as `unit`, and put the long files first."""
    for item in items:
        if not any(mark.name in TIERS for mark in item.iter_markers()):
            item.add_marker("unit")
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else 9)


def save_weights(path: Path) -> Path:
    """Write a valid `.safetensors` file of one number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.zeros(1, dtype=np.float32)}, path)
    return path


def save_lora(path: Path) -> Path:
    """Write a LoRA of rank 1 that tunes one layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = "unet.mid_block.attentions.0.proj_in"
    ones = np.ones((1, 4), dtype=np.float32)
    save_file({f"{layer}.lora_A.weight": ones, f"{layer}.lora_B.weight": ones.T.copy()}, path)
    return path


def save_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def changed(data: dict[str, Any], keys: str, value: object) -> dict[str, Any]:
    """Return a copy of `data` with the value at the dotted `keys` replaced or added."""
    data = copy.deepcopy(data)
    *parents, last = keys.split(".")
    functools.reduce(operator.getitem, parents, data)[last] = value
    return data


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one test has had judged must not answer another's questions."""
    # Not `mktemp`, which lists the folders of all tests so far.
    own = tmp_path_factory.getbasetemp() / "caches" / uuid.uuid4().hex
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(own))


@pytest.fixture(autouse=True)
def _no_modules_of_other_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Restore `sys.path`, and forget modules of tests: others may have their names."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    folders = str(tmp_path_factory.getbasetemp()), str(ROOT / "tests" / "example_plugin")
    for name, module in list(sys.modules.items()):
        # Not `getattr`, which lazy modules answer by importing others.
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(folders):
            del sys.modules[name]


@pytest.fixture(scope="session")
def example_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example package of plugins is installed in."""
    from packages import install_example

    return install_example(tmp_path_factory.mktemp("example"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures and write no report: that takes longer than the rest of a small run."""
    monkeypatch.setattr("autolora_eval.pipeline.run_pipeline.write_report", lambda folder: None)


def furnish(folder: Path) -> None:
    """Write all that the benchmark of `benchmark_content` names."""
    save_json(folder / "sdxl" / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    save_json(folder / "sdxl" / "unet" / "config.json", {"sample_size": 8})
    save_weights(folder / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    save_json(folder / "sdxl" / "vae" / "config.json", {"block_out_channels": [4, 4, 4]})
    save_lora(folder / "lora" / "style.safetensors")
    save_json(folder / "dino" / "config.json", {"model_type": "dinov2"})
    save_weights(folder / "dino" / "model.safetensors")
    (folder / "prompts.txt").write_text("a cat\na dog\na blue house\n", encoding="utf-8")
    (folder / "rubric.yaml").write_text(
        'name: r\nplaceholders: {image: "<I>", prompt: "<P>"}\n'
        "scores:\n  pc: {key: pc, display_name: Prompt correspondence}\n"
        'text: "Look: <I> Does it show <P>?"\n',
        encoding="utf-8",
    )


def benchmark_content() -> dict[str, Any]:
    """Return a benchmark that is right; tests change one thing in it."""
    return {
        "name": "small",
        "prompts": "prompts.txt",
        "seeds": {"start": 3, "count": 2},
        "baseline": "CFG",
        "models": {
            "A": {
                "pipeline": "sdxl",
                "lora": {"path": "lora", "scale": 0.8},
                "num_inference_steps": 10,
                "guidance_scale": 5.0,
            }
        },
        "methods": {"CFG": {"guider": "cfg"}, "AutoLoRA": {"guider": "autolora"}},
        "features": {"model": "dino"},
        "judge": {"rubric": "rubric.yaml", "model": "some-vlm"},
    }


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the benchmark of `benchmark_data` names, and nothing else in sight."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def benchmark_data() -> dict[str, Any]:
    """A benchmark that is right; tests change one thing in it."""
    return benchmark_content()


@pytest.fixture
def write_benchmark(workplace: Path) -> Callable[[object], Path]:
    """A function that writes a benchmark, given as data or as YAML text, and returns its file."""

    def write(content: object) -> Path:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path = workplace / "bench.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def problem(write_benchmark: Callable[[object], Path]) -> Callable[[object], str]:
    """A function that loads a benchmark which has one problem, and returns its line."""

    def load(content: object) -> str:
        path = write_benchmark(content)
        with pytest.raises(UsageError) as caught:
            load_benchmark(path)
        assert caught.value.exit_code == 2
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(str(path))
        return message

    return load


@pytest.fixture
def planned(
    write_benchmark: Callable[[object], Path], benchmark_data: dict[str, Any]
) -> Callable[..., Plan]:
    """A function that plans the benchmark of `benchmark_data` with other sections."""
    return lambda **sections: make_plan(load_benchmark(write_benchmark(benchmark_data | sections)))


@pytest.fixture
def with_model(benchmark_data: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function that returns `benchmark_data` with other keys of its model."""

    def change(**keys: object) -> dict[str, Any]:
        return {**benchmark_data, "models": {"A": benchmark_data["models"]["A"] | keys}}

    return change
