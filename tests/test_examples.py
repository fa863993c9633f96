"""The examples run, each in seconds on the miniatures; of the Slurm job, the words are checked."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from command import run_command
from conftest import ROOT
from docs_page import run_line

from autolora_eval.config.load import find_benchmark

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def _copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the examples, in the current folder."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def table(run: str) -> pd.DataFrame:
    return pd.read_parquet(Path("reports") / run / "table.parquet")


def test_own_guider() -> None:
    run_line("autolora-eval generate examples/own_guider/benchmark.yaml")
    run_line("autolora-eval score examples/own_guider/benchmark.yaml")
    assert table("own_guider")["method"].tolist() == ["CFG", "Rising CFG"]
    assert table("own_guider")["diversity"].nunique() == 2


def test_own_score() -> None:
    run_line("autolora-eval generate examples/own_score/benchmark.yaml")
    run_line("autolora-eval score examples/own_score/benchmark.yaml")
    assert table("own_score")[["farthest_pair", "cm", "div_cm"]].notna().all(axis=None)


def test_image_folder() -> None:
    runpy.run_path("examples/image_folder/score_folder.py", run_name="__main__")
    assert table("image_folder")["method"].tolist() == ["Drawn"]
    assert table("image_folder")["div_pc"].notna().all()


def test_the_notebook_runs() -> None:
    """With 4 of its 20 steps."""
    few = find_benchmark("quickstart").read_text(encoding="utf-8").replace("steps: 20", "steps: 4")
    Path("few_steps.yaml").write_text(few, encoding="utf-8")
    notebook = json.loads(Path("examples/first_run.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    with mpl.rc_context({"backend": "agg"}):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], "clear the outputs before you commit the notebook"
                source = "".join(cell["source"])
                exec(source.replace('"quickstart"', '"few_steps.yaml"'), names)
    assert Path("reports/notebook/report.html").is_file()


def test_the_slurm_job_is_bash_and_uses_options_that_exist() -> None:
    script = Path("examples/slurm.sbatch")
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    page = (ROOT / "docs" / "how_to" / "cluster.md").read_text(encoding="utf-8")
    assert f"```sh\n{text}```\n" in page
    _, _, line = text.replace("\\\n", "").partition("symmetric-run")
    ray_options, command = (shlex.split(part) for part in line.split(" -- "))
    names = {word for word in command if word.startswith("--")}
    assert names == {"--output", "--ray-address"}
    assert all(name in run_command("run", "--help").stdout for name in names)
    ray = pytest.importorskip("ray.scripts.scripts")
    known = {o for one in (ray.symmetric_run, ray.start) for p in one.params for o in p.opts}
    assert {word for word in ray_options if word.startswith("--")} <= known
