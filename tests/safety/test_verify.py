"""Content is trusted, not names: replies, features and tables that were edited are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import run_command
from json_lines import read_jsonl
from safetensors import safe_open
from safetensors.numpy import save_file
from scored_run import tables

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import write_jsonl
from autolora_eval.analysis.compare_runs import join_runs
from autolora_eval.config.plan import Plan
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder


def test_scores_are_those_of_the_reply_and_not_of_the_copy_beside_it(plan, folder) -> None:
    before = pd.read_parquet(folder.scores)
    for cell in plan.cells:
        rows = read_jsonl(folder.judgements(cell.id))
        for row in rows:
            row["scores"] = {"pc": 5.0}
        write_jsonl(folder.judgements(cell.id), rows)
    tables(plan, folder)
    assert pd.read_parquet(folder.scores)["pc"].equals(before["pc"])
    printed = run_command("verify", folder.path)
    assert printed.code == 1
    assert "are not those of the reply" in printed.stdout


def test_features_that_were_changed_are_refused(plan: Plan, folder: RunFolder) -> None:
    file = folder.features(plan.cells[0].id)
    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["features"][0] = 0.0
    save_file(tensors, file)
    with pytest.raises(
        AutoLoRAEvalError, match=r"Cannot read features .* do not match its checksum"
    ):
        read_features(file)


@pytest.mark.parametrize("name", ["scores.parquet", "table.csv", "comparisons.csv", "timings.csv"])
def test_report_explain_and_compare_refuse_an_edited_table(plan, folder, name) -> None:
    with (folder.path / name).open("ab") as stream:
        stream.write(b" ")
    says = f"{name} was changed after scoring. Write the tables again with: autolora-eval score"
    for command in (("report", folder.path), ("explain", folder.path, plan.cells[0].id)):
        failed = run_command(*command)
        assert (failed.code, says in failed.stderr) == (2, True)
    other = folder.path.with_name("other")
    shutil.copytree(folder.path, other)
    with pytest.raises(AutoLoRAEvalError, match=name):
        join_runs([folder.path, other], folder.path.with_name("joint"), lambda _: None)


# A file, its new content (None: it is removed), and what is said of it.
CHANGES = [
    ("table.tex", "1000 %", "changed: table.tex (after the tables were written)"),
    ("images/{image}", None, "missing: images/{image}"),
    ("images/{image}", "another", "changed: images/{image} (changed_image)"),
    ("images/{cell}/more.png", "more", "extra: images/{cell}/more.png"),
    ("features/{cell}.safetensors", None, "missing: features/{cell}.safetensors"),
    ("theirs.py", "", "extra: theirs.py"),
]


@pytest.mark.parametrize(("file", "content", "says"), CHANGES)
def test_verify_says_what_is_missing_changed_or_extra(plan, folder, file, content, says) -> None:
    cell = plan.cells[0].id
    names = {"cell": cell, "image": f"{cell}/{plan.jobs[0].file}"}
    path = folder.path / file.format(**names)
    path.unlink() if content is None else path.write_text(content)
    done = run_command("verify", folder.path)
    assert (done.code, done.stdout) == (1, f"{says.format(**names)}\n")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    failed = run_command("verify", tmp_path)
    assert (failed.code, "is not a run folder" in failed.stderr) == (2, True)
