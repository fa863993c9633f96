"""What is printed and written: no control characters, no formulas, and a message for a failure."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command import run_command
from conftest import ROOT
from safetensors import SafetensorError
from scored_run import accept_tables

from autolora_eval import cli
from autolora_eval._progress import SafeConsole
from autolora_eval.config.plan import Plan
from autolora_eval.runs.columns import read_csv, write_csv

HOSTILE = "a\x1b]0;owned\x07 \x9b31m cat\u202e"


def is_clean(text: str) -> bool:
    return not any(c in text for c in "\x1b\x07\x9b\u202e")


def test_third_party_text_cannot_control_the_terminal() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=True, color_system="truecolor")
    console.print(HOSTILE, style="bold red", markup=False, highlight=False)
    printed = stream.getvalue()
    assert "a\ufffd]0;owned \ufffd31m cat\ufffd" in printed
    assert "\x07" not in printed
    assert printed.startswith("\x1b[1;31m"), "its own colours stay"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_commands_print_no_control_characters(folder, plan, options) -> None:
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


NO_SPACE = "Error while serializing: No space left on device (os error 28)"
FAILURES: list[tuple[Exception, str]] = [
    (
        ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"),
        r"package 'torch' is not installed.* pip install 'autolora-eval\[models\]'",
    ),
    (
        OSError(21, "Is a directory", "a/y.png", None, "a/x.png"),
        "'a/x.png' cannot be used: Is a directory. Correct the path",
    ),
    (OSError(28, "No space left on device"), "the disk is full. Free some space"),
    (OSError(27, "File too large"), "cannot be written: File too large. Finished work is kept"),
    (SafetensorError(NO_SPACE), "the disk is full. Free some space"),
    (
        IndexError("list index out of range"),
        "an unexpected IndexError: list index out of range .*\n.*--debug",
    ),
]


@pytest.mark.parametrize(("error", "says"), FAILURES)
def test_one_function_gives_every_failure_a_message(monkeypatch, error, says) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    failed = run_command()
    assert failed.code == 1
    assert re.search(says, failed.stderr), failed.stderr


def test_an_output_that_is_not_a_folder_is_refused(plan: Plan, workplace: Path) -> None:
    (workplace / "link").symlink_to(workplace / "gone")
    failed = run_command("generate", plan.benchmark.file, "--output", workplace / "link")
    assert (failed.code, failed.stderr) == (
        2,
        f"error: '{workplace / 'link'}' is a link to nothing, not a run folder. Name another "
        "--output.\n",
    )
    failed = run_command("generate", plan.benchmark.file, "--output", "")
    assert failed.code == 2
    assert "expected the name of a file or folder (got an empty" in failed.stderr


LONG = "9" * 5000
LINE = f'{{"seed": {LONG}, "repeat": {LONG}, "format_version": {LONG}}}\n'
CSV = f"file_name,prompt,seed\na.png,a cat,{LONG}\n"
SCORE = "score bench.yaml --images mine/list.csv --output other"
# A file, its new content (None: a folder; a number: where it is cut), a command, its message.
BAD: list[tuple[str, str | int | None, str, str]] = [
    ("run/manifest.json", LINE, "report run", "damaged manifest.json"),
    ("run/manifest.json", None, "verify run", "manifest.json' cannot be used: Is a directory"),
    ("run/images/A--CFG/metadata.jsonl", LINE, "verify run", "metadata.jsonl:1: not valid JSON"),
    ("run/judgements/A--CFG.jsonl", LINE, "explain run A--CFG", ".jsonl:1: not a judgement"),
    ("run/features/A--CFG.safetensors", -10, "explain run A--CFG", "Cannot read features from '"),
    ("unread", "", f"explain run A--CFG {LONG}", "The run has no prompt '99999"),
    ("mine/list.csv", CSV, SCORE, "list.csv, row 1': seed '99999"),
    (
        "lora/style.safetensors",
        -4,
        "plan bench.yaml",
        "style.safetensors' is not a whole .safetensors file",
    ),
]


@pytest.mark.parametrize(("file", "content", "command", "says"), BAD)
def test_bad_input_is_reported_with_file_and_cause(folder, workplace, file, content, command, says):
    path = workplace / file
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
        path.mkdir()
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[:content])
    else:
        path.write_text(content)
    if command.startswith("explain"):
        accept_tables(folder)  # else the change alone is reported
    assert_reported(command, says)


def test_a_long_number_in_yaml_is_reported_with_its_line(plan: Plan) -> None:
    with plan.benchmark.file.open("a") as stream:
        stream.write(f"batch_size: {LONG}\n")
    assert_reported("plan bench.yaml", "not valid YAML: line 25: a number of 5,000 characters")


def assert_reported(command: str, says: str) -> None:
    failed = run_command(*command.split())
    assert failed.code in (1, 2)
    assert says in failed.stderr
    assert "an unexpected" not in failed.stderr
    assert len(failed.stderr) < 2000


def test_without_the_extra_models_it_is_named_once(plan: Plan) -> None:
    code = """
import sys
missing = ("torch", "diffusers", "peft", "transformers", "accelerate")
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
from autolora_eval import cli
cli.main()
"""
    for words in (["check", "cfg"], ["run", str(plan.benchmark.file)]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("pip install 'autolora-eval[models]'") == 1, done.stderr
        assert "ModuleNotFoundError" not in done.stderr
