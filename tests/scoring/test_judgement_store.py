"""Judgements on disk, appended and compacted without loss; and the cache that all runs share."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judgement_store import (
    JudgementCache,
    JudgementFile,
    JudgementKey,
    JudgementStatus,
    reply_key,
)
from autolora_eval.scoring.rubric import Question


def row(image: str, repeat: int = 0, *, key: str = "k", sha256: str = "s", **more: object) -> dict:
    scores = {"pc": 3.0} if more.get("reason") is None else None
    asked = {"image_id": image, "sha256": sha256, "repeat": repeat, "judge_key": key}
    return {**asked, "reason": None, "scores": scores, **more}


@pytest.fixture
def file(tmp_path: Path) -> JudgementFile:
    return JudgementFile(tmp_path / "cell.jsonl")


def test_missing_file_is_empty(file: JudgementFile) -> None:
    assert list(file.rows()) == []
    assert file.status("k") == {}
    file.compact(["a"])
    assert not file.path.exists()


def test_last_row_counts_and_failed_call_is_not_final(file: JudgementFile) -> None:
    file.append([row("a", reason="http_500"), row("b", reason="no_json", attempt=2)])
    file.append([row("a", attempt=3), row("c", reason="timeout"), row("a", key="other")])
    assert file.status("k") == {
        JudgementKey("a", "s", 0): JudgementStatus(final=True, scored=True, attempts=3),
        JudgementKey("b", "s", 0): JudgementStatus(final=True, scored=False, attempts=2),
        JudgementKey("c", "s", 0): JudgementStatus(final=False, scored=False, attempts=1),
    }


def test_compact_sorts_rows_by_the_plan(file: JudgementFile) -> None:
    file.append([row("c"), row("a", 1), row("gone"), row("b"), row("a", 0), row("a", 0, key="o")])
    file.compact(["a", "b", "c"])
    found = [f"{r['image_id']} {r['repeat']} {r['judge_key']}" for r in file.rows()]
    assert found == ["a 0 k", "a 0 o", "a 1 k", "b 0 k", "c 0 k", "gone 0 k"]


def test_compact_keeps_the_last_row_of_a_judgement(file: JudgementFile) -> None:
    file.append([row("a", reason="http_500"), row("b"), row("a", raw="at last")])
    file.compact(["a", "b"])
    assert [(r["image_id"], r.get("raw")) for r in file.rows()] == [("a", "at last"), ("b", None)]


def test_compact_does_not_rewrite_a_sorted_file(file: JudgementFile) -> None:
    file.append([row("a"), row("b")])
    before = file.path.stat()
    file.compact(["a", "b"])
    assert file.path.stat().st_ino == before.st_ino
    assert file.path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("before", [[], ["a"]])
@pytest.mark.parametrize("cut", [1, 5, 60, 100_000])
def test_incomplete_last_line_is_ignored_and_overwritten(file, before, cut) -> None:
    torn = json.dumps(row("b", raw="é" * 200_000), ensure_ascii=False).encode()[:-cut]
    complete = "".join(f"{json.dumps(row(image))}\n" for image in before).encode()
    file.path.write_bytes(complete + torn)
    assert [r["image_id"] for r in file.rows()] == before
    file.append([row("c")])
    assert [r["image_id"] for r in file.rows()] == [*before, "c"]
    assert file.path.read_bytes().count(b"\n") == len(before) + 1
    file.path.write_bytes(complete + torn)
    file.compact(["a"])
    assert file.path.read_bytes() == complete


EDITED = [{"scores": {"pc": "4"}}, {"scores": "4"}, {"expected": {"pc": None}}, {"attempt": "x"}]
EDITED += [{"repeat": -1}, {"repeat": "0"}, {"raw": 4}]
BROKEN = ["{}", "no JSON", "[1]", "null", '{"image_id": "a"}', "{torn"]


@pytest.mark.parametrize("line", [*BROKEN, *(json.dumps(row("a") | edit) for edit in EDITED)])
def test_complete_line_that_is_not_a_judgement_is_reported(file: JudgementFile, line: str) -> None:
    file.append([row("a")])
    with file.path.open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(AutoLoRAEvalError, match=rf"{file.path.name}:2: not a judgement"):
        list(file.rows())


def test_text_is_kept_verbatim(file: JudgementFile) -> None:
    raw = 'a\u2028b\x85c "quoted" \\ \x00 é 猫'
    file.append([row("a", raw=raw), row("b")])
    assert next(file.rows())["raw"] == raw
    assert len(list(file.rows())) == 2


def test_compacted_file_is_flushed_before_it_replaces_the_old_one(file, monkeypatch) -> None:
    """A crash leaves the old or the new file."""
    file.append([row("b"), row("a")])
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda *to: events.append("replace") or replace(*to))
    file.compact(["a", "b"])
    assert events == ["fsync", "replace"]
    assert [row["image_id"] for row in file.rows()] == ["a", "b"]


# The cache of replies.

QUESTION = Question("before", "after")


def test_stored_replies_are_found_again(tmp_path: Path) -> None:
    cache = JudgementCache(tmp_path)
    cache.put([("a", {"raw": "é"}), ("b", {"raw": "2"})])
    cache.close()
    again = JudgementCache(tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c")) == ({"raw": "é"}, {"raw": "2"}, None)
    again.put([("a", {"raw": "another"})])
    assert again.get("a") == {"raw": "é"}
    again.close()


def test_key_depends_on_judge_image_question_and_repeat() -> None:
    keys = {
        reply_key("judge", "image", QUESTION, 0),
        reply_key("other", "image", QUESTION, 0),
        reply_key("judge", "other", QUESTION, 0),
        reply_key("judge", "image", Question("before", "after "), 0),
        reply_key("judge", "image", Question("befor", "eafter"), 0),
        reply_key("judge", "image", QUESTION, 1),
    }
    assert len(keys) == 6
    assert reply_key("judge", "image", QUESTION, 0) in keys


def test_without_folder_nothing_is_stored() -> None:
    cache = JudgementCache(None)
    cache.put([("a", {})])
    assert cache.get("a") is None
    assert cache.problem is None


def test_damaged_file_or_unwritable_folder_disables_the_cache(tmp_path: Path) -> None:
    (tmp_path / "judgements.sqlite").write_bytes(b"no database, " * 1000)
    for folder, problem in ((tmp_path, "not a database"), (tmp_path / "judgements.sqlite", "")):
        cache = JudgementCache(folder)
        cache.put([("a", {})])
        assert cache.get("a") is None
        assert cache.problem is not None
        assert problem in str(cache.problem)


@pytest.mark.parametrize("kept", ["not JSON", "[1]", "null"])
def test_damaged_entry_counts_as_missing(tmp_path: Path, kept: str) -> None:
    JudgementCache(tmp_path).close()
    with sqlite3.connect(tmp_path / "judgements.sqlite") as connection:
        connection.execute("INSERT INTO replies VALUES ('a', ?, 0)", (kept,))
    connection.close()
    assert JudgementCache(tmp_path).get("a") is None


WRITER = """
import sys
from pathlib import Path
from autolora_eval.scoring.judgement_store import JudgementCache
cache = JudgementCache(Path(sys.argv[1]))
for n in range(50):
    cache.put([(f"{sys.argv[2]}-{n}", {"raw": sys.argv[2]}), (f"both-{n}", {"raw": "same"})])
assert cache.problem is None, cache.problem
"""


def test_two_processes_write_at_the_same_time(tmp_path: Path) -> None:
    """No reply is lost, and equal keys are stored once."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    cache = JudgementCache(tmp_path)
    for name, raw in (("one", "one"), ("two", "two"), ("both", "same")):
        assert all(cache.get(f"{name}-{n}") == {"raw": raw} for n in range(50)), name
    with sqlite3.connect(tmp_path / "judgements.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM replies").fetchone() == (150,)
    connection.close()
