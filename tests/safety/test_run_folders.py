"""A run folder of someone else: nothing outside it is read, moved or written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import run_command
from json_lines import read_jsonl
from scored_run import SETTINGS, picture, write_images

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import write_jsonl
from autolora_eval.analysis.compare_runs import join_runs
from autolora_eval.config.plan import Plan
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images


def only_mine(outside: Path) -> bool:
    """Return True if the folder has the one file that was there before."""
    return {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "mine.png": b"my picture"
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"file_name": "{outside}/mine.png", "settings_key": "0" * 16}, "file_name"),
        ({"file_name": "../../../outside/mine.png", "settings_key": "0" * 16}, "file_name"),
        ({"file_name": "a/../../../0.png"}, "file_name"),
        ({"file_name": "a/0.png", "settings_key": "../../../moved"}, "settings_key"),
        ({"settings_key": None}, "settings_key"),
    ],
)
def test_a_row_with_another_name_than_a_plans_is_refused(
    plan: Plan, folder: RunFolder, outside: Path, change: dict[str, str], says: str
) -> None:
    cell = plan.cells[0]
    rows = read_jsonl(folder.metadata(cell.id))
    changed = {k: v and v.replace("{outside}", str(outside)) for k, v in change.items()}
    write_jsonl(folder.metadata(cell.id), [rows[0] | changed, *rows[1:]])
    job = plan.jobs[0]

    def write() -> None:
        dataset = ImageDataset.open(folder, cell, SETTINGS)
        dataset.write([job], [picture(("x", 0, 0))], 1, [{}])

    with pytest.raises(AutoLoRAEvalError, match=rf"metadata\.jsonl: {says} .* Remove that line"):
        write()
    with pytest.raises(AutoLoRAEvalError, match=says):
        list(cell_images(folder.read_manifest(), folder.read_manifest().cells[0], folder))
    assert only_mine(outside)
    assert not (folder.path.parent / "moved").exists()


def hash_images(plan: Plan, folder: RunFolder) -> None:
    manifest = folder.read_manifest()
    cell_images(manifest, manifest.cells[0], folder)


def report(plan: Plan, folder: RunFolder, *command: object) -> None:
    finished = run_command(*command or ("report", folder.path))
    if finished.code:
        raise AutoLoRAEvalError(finished.stderr)


def explain(plan: Plan, folder: RunFolder) -> None:
    report(plan, folder, "explain", folder.path, plan.cells[0].id, "0", "3")


def compare(plan: Plan, folder: RunFolder) -> None:
    other = folder.path.with_name("other")
    shutil.copytree(folder.path, other, symlinks=True)
    join_runs([folder.path, other], folder.path.with_name("joint"), lambda _: None)


@pytest.mark.parametrize(
    ("place", "use"),
    [
        ("images/{cell}", write_images),
        ("images/{cell}/{prompt}", write_images),
        ("images/{cell}/{prompt}", hash_images),
        ("images/{cell}/{image}", hash_images),
        ("images", hash_images),
        ("judgements/{cell}.jsonl", explain),
        ("features/{cell}.safetensors", explain),
        ("scores.parquet", report),
        ("table.parquet", report),
        ("figures", report),
        ("judgements/{cell}.jsonl", compare),
        ("images/{cell}/{prompt}", compare),
    ],
)
def test_a_link_that_leads_out_is_refused_and_nothing_outside_is_touched(
    plan: Plan, folder: RunFolder, outside: Path, place: str, use: Callable[[Plan, RunFolder], None]
) -> None:
    cell, file = plan.cells[0].id, plan.jobs[0].file
    names = {"cell": cell, "image": file, "prompt": file.split("/")[0]}
    path = folder.path / place.format(**names)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "mine.png" if path.suffix else outside)
    with pytest.raises(AutoLoRAEvalError, match="points outside its run folder"):
        use(plan, folder)
    assert only_mine(outside)


def test_a_run_folder_may_itself_be_a_link(plan: Plan, folder: RunFolder, outside: Path) -> None:
    moved = outside / "run"
    shutil.move(folder.path, moved)
    folder.path.symlink_to(moved)
    hash_images(plan, folder)
    explain(plan, folder)


def test_a_damaged_line_is_reported_with_its_file_and_number(plan: Plan, folder: RunFolder) -> None:
    file = folder.metadata(plan.cells[0].id)
    lines = file.read_text().splitlines()
    for damaged, says in (("{", "not valid JSON"), ("[1]", "expected a JSON object")):
        file.write_text("\n".join([lines[0], damaged, *lines[2:], ""]))
        with pytest.raises(AutoLoRAEvalError, match=rf"metadata\.jsonl:2: {says}"):
            hash_images(plan, folder)


def test_files_have_the_mode_of_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_jsonl(tmp_path / "a.jsonl", [{}])
    finally:
        os.umask(before)
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o600
