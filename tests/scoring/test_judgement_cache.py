"""The cache of replies: by content hash, shared by runs and processes, optional."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from autolora_eval._files import cache_folder
from autolora_eval.scoring.judgement_store import JudgementCache, reply_key
from autolora_eval.scoring.rubric import Question

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


def test_location_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("AUTOLORA_EVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "autolora-eval"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "autolora-eval"


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
