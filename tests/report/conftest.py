"""The synthetic run, and one drawn report for each shape of run."""

import pytest
from report.hostile_run import write_hostile_run
from report.readers import reported
from report.synthetic_run import make_tables
from report.table1_run import write_table1_run

from autolora_eval.report import write_report
from autolora_eval.runs.folder import RunFolder


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A drawn report: four methods with two scores, nothing is missing."""
    return reported(make_tables(), tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture(scope="session")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A drawn report of a run without a judge."""
    return reported(make_tables(judged=False), tmp_path_factory.mktemp("unjudged") / "run")


@pytest.fixture(scope="session")
def undrawn_sweep(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The paper's Table 1 with 9 seeds, up to its tables."""
    return write_table1_run(tmp_path_factory.mktemp("sweep") / "run", n_seeds=9)


@pytest.fixture(scope="session")
def sweep(undrawn_sweep: RunFolder) -> RunFolder:
    """A drawn report of the paper's Table 1."""
    write_report(undrawn_sweep)
    return undrawn_sweep


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A drawn report of the run of `hostile_run`."""
    folder = write_hostile_run(tmp_path_factory.mktemp("hostile") / "run")
    write_report(folder)
    return folder
