"""A cell's judgements on disk: appended whole, read one by one, put into order, never lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judgement_store import JudgementFile, JudgementKey, JudgementStatus


def row(image: str, repeat: int = 0, *, key: str = "k", sha256: str = "s", **more: object) -> dict:
    scores = {"pc": 3.0} if more.get("reason") is None else None
    asked = {"image_id": image, "sha256": sha256, "repeat": repeat, "judge_key": key}
    return {**asked, "reason": None, "scores": scores, **more}


@pytest.fixture
def file(tmp_path: Path) -> JudgementFile:
    return JudgementFile(tmp_path / "cell.jsonl")


def test_a_file_that_is_not_there_is_empty(file: JudgementFile) -> None:
    assert list(file.rows()) == []
    assert file.known("k") == {}
    file.compact(["a"])
    assert not file.path.exists()


def test_the_last_row_counts_and_a_failed_call_is_not_final(file: JudgementFile) -> None:
    file.append([row("a", reason="http_500"), row("b", reason="no_json", attempt=2)])
    file.append([row("a", attempt=3), row("c", reason="timeout"), row("a", key="other")])
    assert file.known("k") == {
        JudgementKey("a", "s", 0).digest: JudgementStatus(final=True, scored=True, attempts=3),
        JudgementKey("b", "s", 0).digest: JudgementStatus(final=True, scored=False, attempts=2),
        JudgementKey("c", "s", 0).digest: JudgementStatus(final=False, scored=False, attempts=1),
    }


def test_repeats_images_and_their_contents_are_told_apart() -> None:
    asked = [
        JudgementKey("a", "s", 0),
        JudgementKey("a", "s", 1),
        JudgementKey("a", "t", 0),
        JudgementKey("b", "s", 0),
    ]
    asked += [
        JudgementKey("a", None, 0),
        JudgementKey("a", "s\x001", 0),
        JudgementKey("a\x00s", "", 0),
    ]
    assert len({each.digest for each in asked}) == len(asked)


def test_rows_written_before_there_were_repeats_are_the_first(file: JudgementFile) -> None:
    old = row("a")
    del old["repeat"]
    file.append([old])
    assert JudgementKey("a", "s", 0).digest in file.known("k")


def test_they_are_put_into_the_order_of_the_plan(file: JudgementFile) -> None:
    file.append([row("c"), row("a", 1), row("gone"), row("b"), row("a", 0), row("a", 0, key="o")])
    file.compact(["a", "b", "c"])
    found = [(r["image_id"], r["repeat"], r["judge_key"]) for r in file.rows()]
    assert found == [
        ("a", 0, "k"),
        ("a", 0, "o"),
        ("a", 1, "k"),
        ("b", 0, "k"),
        ("c", 0, "k"),
        ("gone", 0, "k"),
    ]


def test_of_two_rows_on_the_same_the_later_is_kept(file: JudgementFile) -> None:
    file.append([row("a", reason="http_500"), row("b"), row("a", raw="at last")])
    file.compact(["a", "b"])
    assert [(r["image_id"], r.get("raw")) for r in file.rows()] == [("a", "at last"), ("b", None)]


def test_what_is_in_order_is_left_alone(file: JudgementFile) -> None:
    file.append([row("a"), row("b")])
    before = file.path.stat()
    file.compact(["a", "b"])
    assert file.path.stat().st_ino == before.st_ino
    assert file.path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("cut", [1, 5, 60, 100_000])
def test_a_torn_last_line_is_no_row_and_spoils_none(file: JudgementFile, cut: int) -> None:
    """Also one longer than what is looked through at a time."""
    file.append([row("a")])
    torn = json.dumps(row("b", raw="é" * 200_000), ensure_ascii=False).encode()[:-cut]
    with file.path.open("ab") as stream:
        stream.write(torn)
    assert [r["image_id"] for r in file.rows()] == ["a"]
    file.append([row("c")])
    assert [r["image_id"] for r in file.rows()] == ["a", "c"]
    assert file.path.read_bytes().count(b"\n") == 2


def test_a_file_that_is_torn_from_its_first_line_on(file: JudgementFile) -> None:
    file.path.write_bytes(b'{"image_id": "a", "sha')
    file.append([row("b")])
    assert [r["image_id"] for r in file.rows()] == ["b"]


def test_a_torn_line_goes_when_rows_are_put_into_order(file: JudgementFile) -> None:
    file.append([row("a")])
    with file.path.open("ab") as stream:
        stream.write(b'{"image')
    file.compact(["a"])
    assert file.path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("line", ["{}", "no JSON", "[1]", "null", '{"image_id": "a"}', "{torn"])
def test_a_whole_line_that_is_no_judgement_is_named(file: JudgementFile, line: str) -> None:
    file.append([row("a")])
    with file.path.open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(AutoLoRAEvalError, match=rf"{file.path.name}:2: not a judgement"):
        list(file.rows())


def test_text_is_kept_as_it_is(file: JudgementFile) -> None:
    raw = 'a\u2028b\x85c "quoted" \\ \x00 é 猫'
    file.append([row("a", raw=raw), row("b")])
    assert next(file.rows())["raw"] == raw
    assert len(list(file.rows())) == 2


def test_what_is_put_in_order_is_on_disk_and_closed_before_it_takes_the_files_place(
    file: JudgementFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine leaves one or the other; Windows renames onto no open file."""
    file.append([row("b"), row("a")])
    events: list[object] = []
    opened = []
    fsync, replace, path_open = os.fsync, Path.replace, Path.open

    def opening(self: Path, *arguments: Any) -> Any:
        opened.append(path_open(self, *arguments))
        return opened[-1]

    def replacing(self: Path, target: Path) -> Path:
        events.append([stream.closed for stream in opened])
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda number: events.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "open", opening)
    file.compact(["a", "b"])
    assert events[0] == "fsync"
    assert events[1]
    assert all(events[1])
    assert [row["image_id"] for row in file.rows()] == ["a", "b"]
