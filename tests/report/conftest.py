"""The synthetic run, and one drawn report for each shape of run."""

from collections.abc import Callable

import pytest
from report.readers import reported
from report.synthetic_run import Tables, make_tables
from report.table1_run import write_table1_run

from autolora_eval.report import write_report
from autolora_eval.runs.folder import RunFolder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Tables]:
    """Return the maker of synthetic runs."""
    return make_tables


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A drawn report: four methods with two scores, nothing is missing."""
    return reported(make_tables(), tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture(scope="session")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A drawn report of a run without a judge."""
    return reported(make_tables(judged=False), tmp_path_factory.mktemp("unjudged") / "run")


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A drawn report: the paper's Table 1 with 9 seeds, drawn from its published values."""
    folder = write_table1_run(tmp_path_factory.mktemp("sweep") / "run", n_seeds=9)
    write_report(folder)
    return folder
