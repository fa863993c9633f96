"""A cell's judgements on disk: one JSON object a line, appended durably as replies come."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, atomic_write, sha256_bytes
from autolora_eval.scoring.judges.base import is_transient
from autolora_eval.scoring.rubric import Question


class JudgementKey(NamedTuple):
    """What one judgement answers.

    Attributes:
        image_id: of the image.
        sha256: of its file when it was judged; None if there was none.
        repeat: which asking of the same question, from 0.
    """

    image_id: str
    sha256: str | None
    repeat: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> JudgementKey:
        """Return the key of a row of a judgements file."""
        return cls(row["image_id"], row["sha256"], int(row.get("repeat", 0)))

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for it, so that very many take little memory."""
        text = f"{self.image_id}\0{self.sha256}\0{self.repeat}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


class JudgementStatus(NamedTuple):
    """What is known of an asking.

    Attributes:
        final: it need not be asked again.
        scored: it has scores.
        attempts: calls made for it.
    """

    final: bool
    scored: bool
    attempts: int


class JudgementFile:
    """The judgements of one cell.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, key: str | None = None) -> Iterator[Json]:
        """Yield the rows, read one by one.

        A last line without its line break is what a killed writer leaves: it is not a row.

        Args:
            key: of judge and rubric: only their rows.

        Raises:
            AutoLoRAEvalError: a whole line is not a judgement.
        """
        for row, _ in self._placed():
            if key is None or row["judge_key"] == key:
                yield row

    def known(self, key: str) -> dict[bytes, JudgementStatus]:
        """Return each judgement's status by `JudgementKey.digest`; the last row counts."""
        found = {}
        for row in self.rows(key):
            final, scored = not is_transient(row["reason"]), row["scores"] is not None
            found[JudgementKey.of(row).digest] = JudgementStatus(
                final, scored, int(row.get("attempt", 1))
            )
        return found

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows durably: a killed run repeats no finished call."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        with self.path.open("ab+") as stream:
            _cut_torn_line(stream)
            stream.write("".join(lines).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def compact(self, image_ids: Iterable[str]) -> None:
        """Put the rows into the order of the images; of rows that answer the same keep the last.

        Rows are copied one by one, from their places in the file.

        Args:
            image_ids: in the order of the plan. Rows of other images come after.
        """
        if not self.path.exists():
            return
        place = {image_id: index for index, image_id in enumerate(image_ids)}
        last: dict[tuple[bytes, str], tuple[int, int, int, int]] = {}
        for number, (row, start) in enumerate(self._placed()):
            what = JudgementKey.of(row)
            order = place.get(what.image_id, len(place)), what.repeat
            first = last.get((what.digest, row["judge_key"]), (0, 0, number, 0))[2]
            last[what.digest, row["judge_key"]] = (*order, first, start)
        starts = [start for *_, start in sorted(last.values())]
        if starts == sorted(starts) and len(starts) == number_of_lines(self.path):
            return
        with atomic_write(self.path) as temporary:
            self._copy(starts, temporary)

    def _copy(self, starts: Iterable[int], path: Path) -> None:
        with self.path.open("rb") as source, path.open("wb") as target:
            for start in starts:
                source.seek(start)
                target.write(source.readline())
            target.flush()
            os.fsync(target.fileno())

    def _placed(self) -> Iterator[tuple[Json, int]]:
        """Yield each row with the byte where its line begins."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            start = 0
            for number, line in enumerate(stream, 1):
                if line.endswith(b"\n") and line.strip():
                    yield self._row(line, number), start
                start += len(line)

    def _row(self, line: bytes, number: int) -> Json:
        try:
            row = json.loads(line)
            JudgementKey.of(row), row["judge_key"], row["reason"], row["scores"]
        except (ValueError, LookupError, TypeError) as error:
            raise AutoLoRAEvalError(
                f"{self.path}:{number}: not a judgement; the file was damaged or edited. Remove "
                "that line: its image is then judged again."
            ) from error
        return dict(row)


@contextmanager
def judging_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from judging into a run folder; its end frees it, however it comes.

    What one appends while another puts rows in order would be lost. Windows, and file systems
    without locks, keep nobody out.

    Raises:
        AutoLoRAEvalError: another process is judging into it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AutoLoRAEvalError(
                    f"another process is judging the images of '{folder}'. Wait for it to end, "
                    "and run the same command again."
                ) from error
        yield
    finally:
        os.close(handle)


def number_of_lines(path: Path) -> int:
    """Return how many line breaks a file has, and one more if its last line is torn."""
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _cut_torn_line(stream: BinaryIO) -> None:
    """Cut off a last line that a killed writer left torn, so that it spoils no new row."""
    size = stream.seek(0, os.SEEK_END)
    end = size
    while end:
        start = max(0, end - 65_536)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        stream.truncate(end)
    stream.seek(0, os.SEEK_END)


# --------------------
# Replies of earlier runs, by the content of what was asked: shared between runs and processes.


WAIT_SECONDS = 30.0  # for another process that is writing
ENVIRONMENT = "AUTOLORA_EVAL_CACHE"


def cache_folder() -> Path:
    """Return where caches lie: `AUTOLORA_EVAL_CACHE`, or the user's cache folder."""
    stated = os.environ.get(ENVIRONMENT)
    if stated:
        return Path(stated).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "autolora-eval"


def reply_key(judge_key: str, image_sha256: str, question: Question, repeat: int) -> str:
    """Return the content key of one reply: judge, rubric, sampling, image, question, repeat."""
    asked = [judge_key, image_sha256, question.before, question.after, repeat]
    return sha256_bytes(json.dumps(asked).encode())


class JudgementCache:
    """Replies on disk.

    SQLite keeps it whole under several processes. A cache that cannot be used, such as one on a
    full or read-only disk, is done without: it saves calls, and decides nothing.

    Args:
        folder: where its file lies; None is a cache that holds nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._connection: sqlite3.Connection | None = None
        self.problem: str | None = None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(folder / "judgements.sqlite", timeout=WAIT_SECONDS)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies "
                    "(key TEXT PRIMARY KEY, reply TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def get(self, key: str) -> Json | None:
        """Return what is kept under a key; None if there is nothing."""
        if self._connection is None:
            return None
        try:
            found = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,))
            row = found.fetchone()
            kept = None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:
            self._give_up(error)
            return None
        return kept if isinstance(kept, dict) else None

    def put(self, replies: Iterable[tuple[str, Json]]) -> None:
        """Keep replies by key; what is there already stays."""
        if self._connection is None:
            return
        now = time.time()
        rows = [(key, json.dumps(reply, allow_nan=False), now) for key, reply in replies]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: Exception) -> None:
        self.problem = f"{type(error).__name__}: {error}"
        self.close()
