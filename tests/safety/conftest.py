"""A scored run folder, and a file outside it that nothing may touch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scored_run import scored

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.runs.folder import RunFolder


@pytest.fixture
def plan(write_benchmark: Callable[[object], Path], benchmark_data: dict[str, Any]) -> Plan:
    return make_plan(load_benchmark(write_benchmark(benchmark_data)))


@pytest.fixture
def folder(plan: Plan, workplace: Path) -> RunFolder:
    return scored(plan, RunFolder(workplace / "run"))


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file, `mine.png`."""
    path = tmp_path_factory.mktemp("outside")
    (path / "mine.png").write_bytes(b"my picture")
    return path
