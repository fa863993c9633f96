"""A scored run folder, and a file outside it that nothing may touch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scored_run import scored

from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import RunFolder


@pytest.fixture
def plan(planned: Callable[..., Plan]) -> Plan:
    return planned()


@pytest.fixture
def folder(plan: Plan, workplace: Path) -> RunFolder:
    return scored(plan, RunFolder(workplace / "run"))


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file, `mine.png`."""
    path = tmp_path_factory.mktemp("outside")
    (path / "mine.png").write_bytes(b"my picture")
    return path
