"""Loading a benchmark that is given as data, and its lines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autolora_eval._files import Json, content_hash
from autolora_eval.config.inputs import LoadedBenchmark
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Cell, Plan, make_plan
from autolora_eval.generation.model_on_device import ModelOnDevice


@pytest.fixture
def load(write_benchmark: Callable[[object], Path]) -> Callable[[object], LoadedBenchmark]:
    """A function that writes a benchmark and loads it."""
    return lambda content: load_benchmark(write_benchmark(content))


@pytest.fixture
def plan_of(load: Callable[[object], LoadedBenchmark]) -> Callable[[object], Plan]:
    """A function that writes a benchmark and plans it."""
    return lambda content: make_plan(load(content))


@pytest.fixture
def image_key() -> Callable[..., str]:
    """A function that returns the hash of all that decides a cell's images but its files."""

    def key(
        cell: Cell, identities: Json, dtype: str = "float32", batching: str = "separate"
    ) -> str:
        here = ModelOnDevice(cell.model, [cell], "cpu", dtype, 8, batching)
        vars(here)["identities"] = identities  # instead of hashing files
        return content_hash(here.settings(cell))

    return key


@pytest.fixture
def line_of(workplace: Path) -> Callable[[str], int]:
    """A function that returns the number of the one line with a key in the written benchmark."""

    def find(key: str) -> int:
        lines = (workplace / "bench.yaml").read_text(encoding="utf-8").split("\n")
        (found,) = [n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:")]
        return found

    return find
