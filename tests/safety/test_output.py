"""What is printed and written: no control characters, no formulas, and a message for a failure."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command import run_command

from autolora_eval import cli
from autolora_eval._terminal import SafeConsole
from autolora_eval.config.plan import Plan
from autolora_eval.runs.csv_file import read_csv, write_csv
from autolora_eval.runs.folder import RunFolder

HOSTILE = "a\x1b]0;owned\x07 \x9b31m cat\u202e"


def is_clean(text: str) -> bool:
    return not any(c in text for c in "\x1b\x07\x9b\u202e")


def test_text_of_others_cannot_control_the_terminal() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=True, color_system="truecolor")
    console.print(HOSTILE, style="bold red", markup=False, highlight=False)
    printed = stream.getvalue()
    assert "a\ufffd]0;owned \ufffd31m cat\ufffd" in printed
    assert "\x07" not in printed
    assert printed.startswith("\x1b[1;31m"), "its own colours stay"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_commands_print_no_control_characters(
    folder: RunFolder, plan: Plan, options: list[str]
) -> None:
    file = folder.manifest
    cell = plan.cells[0].id
    data = json.loads(file.read_text())
    data["models"]["A"]["pipeline"]["name"] = HOSTILE
    file.write_text(json.dumps(data))
    found = run_command("explain", folder.path, cell, *options)
    assert (found.code, is_clean(found.stdout)) == (0, True)
    assert "owned" in found.stdout
    failed = run_command("explain", folder.path, HOSTILE)
    assert (failed.code, is_clean(failed.stderr)) == (2, True)


FORMULAS = ["=1+1", "+x", "-x", "@x", "\tx", "'=x", "''-x", "'x", "plain", "1-2", ""]


def test_no_cell_of_a_csv_file_is_a_formula_and_all_are_read_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"prompt": FORMULAS, "=name": FORMULAS, "value": [-1.5] * len(FORMULAS)})
    write_csv(tmp_path / "a.csv", table)
    raw = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    texts = [*raw.columns, *raw["prompt"], *raw["'=name"]]
    assert [text for text in texts if text.startswith(("=", "+", "-", "@", "\t"))] == []
    assert set(raw["value"]) == {"-1.5"}, "a number is no formula"
    back = read_csv(tmp_path / "a.csv").fillna("")
    assert list(back.columns) == list(table.columns)
    assert list(back["prompt"]) == list(back["=name"]) == FORMULAS


def missing(tmp_path: Path) -> Exception:
    return ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")


def a_folder(tmp_path: Path) -> Exception:
    try:
        (tmp_path / "x.png").mkdir()
        (tmp_path / "y.png").write_bytes(b"")
        (tmp_path / "y.png").replace(tmp_path / "x.png")
    except OSError as error:
        return error
    raise AssertionError


def full(tmp_path: Path) -> Exception:
    return OSError(28, "No space left on device")


def defect(tmp_path: Path) -> Exception:
    try:
        cli.typer.Exit(code=[][0])
    except IndexError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "package 'torch' is not installed.* pip install 'autolora-eval\\[models\\]'"),
        (a_folder, "x.png' cannot be used: Is a directory. Correct the path"),
        (full, "the disk is full. Free some space"),
        (defect, "does not expect: IndexError: list index out of range .*\n.*--debug"),
    ],
)
def test_one_function_gives_every_failure_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Exception],
    says: str,
) -> None:
    error = make(tmp_path)

    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    failed = run_command()
    assert failed.code == 1
    with pytest.raises(ValueError, match=says):
        raise ValueError(failed.stderr)


def test_an_output_that_is_no_folder_is_refused(plan: Plan, workplace: Path) -> None:
    (workplace / "link").symlink_to(workplace / "gone")
    failed = run_command("generate", plan.benchmark.file, "--output", workplace / "link")
    assert (failed.code, failed.stderr) == (
        2,
        f"error: '{workplace / 'link'}' is a link to nothing, not a run folder. Name another "
        "--output.\n",
    )
    failed = run_command("generate", plan.benchmark.file, "--output", "")
    assert failed.code == 2
    assert "expected the name of a folder (got an empty" in failed.stderr
