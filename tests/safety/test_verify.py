"""Content is trusted, not names: replies, features and tables that were edited are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import run_command
from safetensors import safe_open
from safetensors.numpy import save_file
from scored_run import tables

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import read_jsonl, write_jsonl
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


def change_features(plan: Plan, folder: RunFolder) -> str:
    file = folder.features(plan.cells[0].id)
    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["features"][0] = 0.0
    save_file(tensors, file)
    return file.relative_to(folder.path).as_posix()


def test_features_that_were_changed_are_refused(plan: Plan, folder: RunFolder) -> None:
    file = change_features(plan, folder)
    with pytest.raises(
        AutoLoRAEvalError, match=r"Cannot read features .* do not match its checksum"
    ):
        read_features(folder.path / file)


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


def edit_table(plan: Plan, folder: RunFolder) -> str:
    folder.table("tex").write_text("1000 %")
    return "changed: table.tex (after the tables were written)"


def lose_image(plan: Plan, folder: RunFolder) -> str:
    name = f"{plan.cells[0].id}/{plan.jobs[0].file}"
    (folder.path / "images" / name).unlink()
    return f"missing: images/{name}"


def change_image(plan: Plan, folder: RunFolder) -> str:
    name = f"{plan.cells[0].id}/{plan.jobs[0].file}"
    (folder.path / "images" / name).write_bytes(b"another")
    return f"changed: images/{name} (changed_image)"


def add_image(plan: Plan, folder: RunFolder) -> str:
    name = f"images/{plan.cells[0].id}/more.png"
    (folder.path / name).write_bytes(b"more")
    return f"extra: {name}"


def lose_features(plan: Plan, folder: RunFolder) -> str:
    folder.features(plan.cells[0].id).unlink()
    return f"missing: features/{plan.cells[0].id}.safetensors"


def add_code(plan: Plan, folder: RunFolder) -> str:
    (folder.path / "theirs.py").write_text("")
    return "extra: theirs.py"


@pytest.mark.parametrize(
    "change", [edit_table, lose_image, change_image, add_image, lose_features, add_code]
)
def test_verify_says_what_is_missing_changed_or_extra(plan, folder, change) -> None:
    expected = change(plan, folder)
    done = run_command("verify", folder.path)
    assert (done.code, done.stdout) == (1, f"{expected}\n")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    failed = run_command("verify", tmp_path)
    assert (failed.code, "is not a run folder" in failed.stderr) == (2, True)
