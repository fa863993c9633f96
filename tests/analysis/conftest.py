"""Tests of tables and comparisons draw no report, unless they are marked `report`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scored_run import scored

from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import Run, RunFolder, open_run


@pytest.fixture(autouse=True)
def _no_report_but_where_it_is_tested(request) -> None:
    if request.node.get_closest_marker("report") is None:
        request.getfixturevalue("no_report")


@pytest.fixture
def make(planned: Callable[..., Plan], tmp_path: Path) -> Callable[..., tuple[Plan, RunFolder]]:
    """A function that returns the plan and the run folder of a benchmark with other sections."""
    return lambda name, **sections: (planned(**sections), RunFolder(tmp_path / name))


@pytest.fixture
def run_of(make: Callable[..., tuple[Plan, RunFolder]]) -> Callable[..., Run]:
    """A function that returns a finished run of a benchmark with other sections."""
    return lambda **sections: open_run(scored(*make("run", **sections)).path)
