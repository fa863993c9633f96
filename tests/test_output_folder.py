"""A run is written into a new or empty folder, or an earlier run; nothing else is written over."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run_command
from image_files import save

from autolora_eval._errors import UsageError
from autolora_eval.runs.folder import output_folder

pytestmark = pytest.mark.e2e

COMMANDS = ("plan", "run", "generate", "score", "report")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it", encoding="utf-8")
    return tmp_path / "mine"


@pytest.mark.parametrize("command", [*COMMANDS, "score --images set"])
def test_a_folder_of_something_else_is_refused_before_anything_is_written(mine, command) -> None:
    save(mine.parent / "set" / "a" / "0.png", 0)
    name, *options = command.split()
    done = run_command(name, "quickstart", *options, "--output", "mine")
    assert done.code == 2
    assert "'mine' is not a run folder: it contains 'thesis.txt' and no manifest" in done.stderr
    assert (
        "expected a new or empty folder, or an earlier run. Name another --output." in done.stderr
    )
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_the_default_folder_is_refused_too(mine) -> None:
    mine.rename("reports")
    Path("reports/thesis.txt").rename(Path("reports/quickstart"))
    assert "'reports/quickstart' is a file" in run_command("plan", "quickstart").stderr
    Path("reports/quickstart").unlink()
    Path("reports/quickstart/thesis").mkdir(parents=True)
    done = run_command("plan", "quickstart")
    assert (done.code, "it contains 'thesis' and no manifest" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "names",
    [
        (),
        (".lock", ".partial-0a1b.json"),  # of a run that was killed before its manifest
        (".partial-0a1b.yaml", "benchmark.yaml"),  # of `score --images`
        (".gitignore", ".DS_Store"),
        (".lock", "images", "judgements"),  # fetched from a URL before its manifest was there
    ],
)
def test_a_new_empty_or_interrupted_run_is_accepted(tmp_path, names) -> None:
    assert output_folder(tmp_path / "new" / "run").path == tmp_path / "new" / "run"
    for name in names:
        (tmp_path / name).touch()
    assert output_folder(tmp_path).path == tmp_path


def test_a_benchmark_that_something_lies_beside_is_not_a_run(tmp_path) -> None:
    (tmp_path / "benchmark.yaml").touch()
    (tmp_path / "lora.safetensors").touch()
    with pytest.raises(UsageError, match=r"contains 'lora\.safetensors' and no manifest"):
        output_folder(tmp_path)
