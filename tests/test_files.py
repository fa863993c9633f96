"""Atomic writes, content hashes, names that stay inside their folder, and the lock of a folder."""

from __future__ import annotations

import errno
import hashlib
import math
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import (
    atomic_write,
    cache_folder,
    content_hash,
    iterate_jsonl,
    path_inside,
    prompt_folder,
    sha256_file,
    sha256_folder,
    slug,
    write_json,
    write_jsonl,
    write_text,
    writing,
)
from autolora_eval.pipeline.run_pipeline import RunPipeline

SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+._-")
HOSTILE = [
    *("", " ", ".", "..", "...", "../../x", "..\\..\\x", "/etc/passwd", "C:\\x", "~/x"),
    *('<>:"/\\|?*', "con", "NUL.txt", "a\nb", "a\0b", "trailing dot.", "trailing space "),
    *("-rf", ".hidden", "кошка", "猫", "🐱", "e\u0301", "\u202egnp.exe", "%2e%2e%2f", "$(reboot)"),
    "x" * 10_000,
    "日" * 10_000,
]


def write_half(path: Path, error: BaseException) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt())
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"):
        write_half(path, RuntimeError("half-way"))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "image.png"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"content")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is atomic within one file system only"
        assert temporary.suffix == ".png"
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["image.png"]


def test_text_is_utf8_with_unix_line_breaks_and_readable_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "γ\nε\n")
    assert (tmp_path / "a.txt").read_bytes() == "γ\nε\n".encode()
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_not_written_as_json(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": value})
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(tmp_path / "a.jsonl", [{"value": 1}, {"value": value}])
    assert list(tmp_path.iterdir()) == []


ROWS = [{"raw": "line\nbreak\r\u2028 \u0085 'γ'"}, {"score": 4.5, "reason": None}, {"raw": "猫"}]


def test_a_file_cut_at_any_byte_gives_its_complete_rows(tmp_path: Path) -> None:
    path, torn = tmp_path / "a.jsonl", tmp_path / "torn.jsonl"
    assert list(iterate_jsonl(path)) == []
    write_jsonl(path, ROWS)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        torn.write_bytes(content[:size])
        assert list(iterate_jsonl(torn)) == ROWS[: content[:size].count(b"\n")], size


def test_a_content_hash_depends_on_values_and_not_on_key_order() -> None:
    value = {"a": 1, "b": {"c": [1, 2], "d": "γ"}}
    assert content_hash(value) == content_hash({"b": {"d": "γ", "c": [1, 2]}, "a": 1})
    others = [
        {"a": 2, "b": {"c": [1, 2], "d": "γ"}},
        {"a": 1, "b": {"c": [2, 1], "d": "γ"}},
        {"a": 1, "b": {"c": [1, 2], "d": "y"}},
        {"a": 1, "b": {"c": [1, 2]}, "d": "γ"},
        {"a": "1", "b": {"c": [1, 2], "d": "γ"}},
    ]
    assert len({content_hash(other) for other in [value, *others]}) == 6
    assert len(content_hash(value)) == 16


def test_a_folder_hash_covers_names_and_contents_of_the_suffixes(tmp_path: Path) -> None:
    def make(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            write_text(tmp_path / name / file, text)
        return sha256_folder(tmp_path / name, (".json",))

    first = make("a", {"x.json": "1", "b/y.json": "2"})
    assert make("same", {"b/y.json": "2", "x.json": "1", "note.txt": "3"}) == first
    assert make("renamed", {"z.json": "1", "b/y.json": "2"}) != first
    assert make("changed", {"x.json": "1", "b/y.json": "3"}) != first
    expected = hashlib.sha256(b"1").hexdigest()
    assert sha256_file(tmp_path / "a" / "x.json") == expected


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("make", [slug, prompt_folder])
def test_a_name_is_one_safe_path_component(tmp_path: Path, make, name: str) -> None:
    made = make(name)
    assert set(made) <= SAFE
    assert made.strip(".-") == made != ""
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    if make is prompt_folder:
        assert len(made) <= 64
        assert made.split("-")[-1] == hashlib.sha256(name.encode()).hexdigest()[:12]
        (tmp_path / made).mkdir()


def test_similar_prompts_have_different_folders() -> None:
    alike = ["a cat", "A cat", "a  cat", "a cat ", "a-cat", "a/cat", "é", "e\u0301", *HOSTILE]
    alike += ["x" * 9_999, "x" * 9_998 + "y"]
    assert len({prompt_folder(prompt).lower() for prompt in alike}) == len(set(alike))


SLUGS = {"AutoLoRA+CFG": "AutoLoRA+CFG", "SD3 Medium": "SD3-Medium", "γ = 1.5": "1.5"}
SLUGS |= {"../../x": "x", "猫": "unnamed"}


@pytest.mark.parametrize(("name", "expected"), SLUGS.items())
def test_a_slug_is_readable(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "link/x"])
def test_a_path_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert path_inside(folder, "a/../b.png") == folder.resolve() / "b.png"
    with pytest.raises(ValueError, match="points outside its folder"):
        path_inside(folder, name)


# Two processes never write into one run folder.

LOCKED = pytest.mark.skipif(sys.platform == "win32", reason="has no lock there")
HOLD = """
import sys, time
from pathlib import Path
from autolora_eval._files import writing
with writing(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(30)
"""


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Let another process write into a folder, until it is killed at the end of the block."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        try:
            yield other.pid
        finally:
            other.kill()


@LOCKED
def test_a_second_run_is_refused_before_it_does_anything(
    write_benchmark, benchmark_data, tmp_path
) -> None:
    folder = tmp_path / "run"
    pipeline = RunPipeline(write_benchmark(benchmark_data), folder)
    with held(folder) as pid:
        message = (
            f"process {pid} on {socket.gethostname()} is writing into '{folder}'. Wait until it "
            "ends, then run the same command again."
        )
        with pytest.raises(AutoLoRAEvalError, match=f"^{re.escape(message)}$"):
            pipeline.run()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    # The files of the killed process do no harm.
    with writing(folder), writing(folder):
        pass
    assert list(folder.iterdir()) == []


@LOCKED
def test_a_new_folder_is_removed_if_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "new" / "run"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_has_its_own_name_in_the_error(tmp_path, monkeypatch):
    def touch(self: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(OSError, match="mine") as caught, atomic_write(tmp_path / "mine.zip"):
        pass
    assert caught.value.filename == str(tmp_path / "mine.zip")


@LOCKED
def test_the_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    refused = pytest.raises(AutoLoRAEvalError, match=r"cannot be written: .*name another --output")
    with refused, writing(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_location_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("AUTOLORA_EVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "autolora-eval"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "autolora-eval"
