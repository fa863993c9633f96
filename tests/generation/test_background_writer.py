"""Images are written beside the making of the next: nothing is lost, torn or silently missing."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from json_lines import read_jsonl
from scored_run import SETTINGS, picture

from autolora_eval._files import sha256_file
from autolora_eval.config.plan import Plan
from autolora_eval.generation.dataset import ImageDataset, background_writer
from autolora_eval.runs.folder import RunFolder


@pytest.fixture
def plan(planned: Callable[..., Plan]) -> Plan:
    return planned()


def open_dataset(plan: Plan, folder: Path) -> ImageDataset:
    return ImageDataset.open(RunFolder(folder), plan.cells[0], SETTINGS)


def write_one_by_one(plan: Plan, write: Any) -> None:
    for job in plan.jobs:
        write([job], [picture(("x", job.prompt_index, job.seed))], 7, [{"seconds": 1.5}])


def unseen(n: int, note: str = "") -> None:
    """Show no progress."""


def files(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_images_and_rows_are_those_of_writing_in_turn(plan, tmp_path):
    write_one_by_one(plan, open_dataset(plan, tmp_path / "in_turn").write)
    done: list[int] = []
    dataset = open_dataset(plan, tmp_path / "beside")
    with background_writer(dataset, lambda n, _="": done.append(n)) as write:
        write_one_by_one(plan, write)
    assert files(tmp_path / "beside") == files(tmp_path / "in_turn")
    assert done == [1] * len(plan.jobs)


def test_the_next_image_is_made_while_one_is_written(plan, tmp_path, monkeypatch):
    dataset, next_is_made = open_dataset(plan, tmp_path), threading.Event()
    put = dataset.write

    def slow(*args: Any) -> None:
        assert next_is_made.wait(20)
        put(*args)

    monkeypatch.setattr(dataset, "write", slow)
    with background_writer(dataset, unseen) as write:
        write(plan.jobs[:1], [picture(("x", 0, 0))], 7, [{}])
        next_is_made.set()
    assert len(dataset.missing(plan.jobs)) == len(plan.jobs) - 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_queued_images_are_written_if_the_next_one_fails(plan, tmp_path, error):
    dataset = open_dataset(plan, tmp_path)

    def fail_after_two() -> None:
        with background_writer(dataset, unseen) as write:
            write(plan.jobs[:2], [picture(("x", 0, n)) for n in (0, 1)], 7, [{}, {}])
            raise error

    with pytest.raises(error):
        fail_after_two()
    assert open_dataset(plan, tmp_path).missing(plan.jobs) == list(plan.jobs[2:])


def test_a_full_disk_stops_the_run_and_leaves_no_row_without_an_image(plan, tmp_path, monkeypatch):
    dataset, calls = open_dataset(plan, tmp_path), []

    def full(*args: object, **kwargs: object) -> str:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sha256_file(*args, **kwargs)

    monkeypatch.setattr("autolora_eval.generation.dataset.sha256_file", full)
    with (
        pytest.raises(OSError, match="No space left"),
        background_writer(dataset, unseen) as write,
    ):
        write_one_by_one(plan, write)
    rows = read_jsonl(dataset.folder / "metadata.jsonl")
    assert {row["file_name"] for row in rows} >= {job.file for job in plan.jobs[:2]}
    assert plan.jobs[2].file not in {row["file_name"] for row in rows}
    assert all(sha256_file(dataset.folder / row["file_name"]) == row["sha256"] for row in rows)
