"""Judgements on disk: a JSON Lines file for each cell, and a cache that all runs share."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, atomic_write, sha256_bytes
from autolora_eval.scoring.judge import is_transient
from autolora_eval.scoring.rubric import Question

_TYPES: dict[str, Any] = {
    **{"image_id": str, "repeat": int, "attempt": int | None},
    **dict.fromkeys(("sha256", "reason", "raw"), str | None),
    **dict.fromkeys(("scores", "expected"), dict | None),
}
CACHE_TIMEOUT = 30.0  # seconds to wait for another process that writes to the cache


class JudgementKey(NamedTuple):
    """Identifies what one judgement is about.

    Attributes:
        image_id: the image.
        sha256: hash of the image file when it was judged; None if the file was missing.
        repeat: index of the repetition of the same question, from 0.
    """

    image_id: str
    sha256: str | None
    repeat: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> JudgementKey:
        """Return the key of a row of a judgements file."""
        return cls(row["image_id"], row["sha256"], row["repeat"])


class JudgementStatus(NamedTuple):
    """The calls made for one judgement, and whether it is scored and need not be asked again."""

    final: bool
    scored: bool
    attempts: int


class JudgementFile:
    """The judgements of one cell, one JSON object per line; the file need not exist yet.

    Rows are appended and flushed to disk in groups. A killed process leaves an incomplete last line
    at worst, which is ignored and then overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, key: str | None = None) -> Iterator[Json]:
        """Yield the rows, or only those with this `judge_key`, reading one at a time.

        Raises:
            AutoLoRAEvalError: if a complete line is not a judgement.
        """
        for row, _ in self._rows_with_lines():
            if key is None or row["judge_key"] == key:
                yield row

    def status(self, key: str) -> dict[JudgementKey, JudgementStatus]:
        """Return the status of the judgements by one judge and rubric; the last row counts."""
        found = {}
        for row in self.rows(key):
            final, scored = not is_transient(row["reason"]), row["scores"] is not None
            found[JudgementKey.of(row)] = JudgementStatus(final, scored, row.get("attempt") or 1)
        return found

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and flush them to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        with self.path.open("ab+") as stream:
            _truncate_torn_line(stream)
            stream.write("".join(lines).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def compact(self, image_ids: Iterable[str]) -> None:
        """Keep only the last row of each judgement, sorted by image as given, then by repeat.

        Rows of other images are put last.
        """
        if not self.path.exists():
            return
        position = {image_id: index for index, image_id in enumerate(image_ids)}
        last = {(JudgementKey.of(r), r["judge_key"]): line for r, line in self._rows_with_lines()}

        def order(key: tuple[JudgementKey, str]) -> tuple[int, int]:
            return position.get(key[0].image_id, len(position)), key[0].repeat

        data = b"".join(last[key] for key in sorted(last, key=order))
        if data == self.path.read_bytes():
            return
        with atomic_write(self.path) as temporary, temporary.open("wb") as target:
            target.write(data)
            target.flush()
            os.fsync(target.fileno())

    def _rows_with_lines(self) -> Iterator[tuple[Json, bytes]]:
        """Yield each row with its line, ignoring an incomplete last line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.endswith(b"\n") and line.strip():
                    yield self._row(line, number), line

    def _row(self, line: bytes, number: int) -> Json:
        try:
            row = json.loads(line)
            values = [*(row["scores"] or {}).values(), *(row.get("expected") or {}).values()]
            row["sha256"], row["judge_key"], row["reason"]
            is_valid = [isinstance(row.get(name), kind) for name, kind in _TYPES.items()]
            is_valid += [isinstance(value, int | float) for value in values]
            if not (all(is_valid) and row["repeat"] >= 0):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise AutoLoRAEvalError(
                f"{self.path}:{number}: not a judgement; the file was damaged or edited. Remove "
                "that line, and its image is judged again."
            ) from error
        return dict(row)


def judgements_by_image(rows: Iterable[Json]) -> dict[tuple[str, str | None], list[Json]]:
    """Return judgements by (image id, SHA-256), ordered by repeat; the last of a repeat counts.

    They include failed calls, which a later run repeats.
    """
    found: dict[tuple[str, str | None], dict[int, Json]] = {}
    for row in rows:
        image_id, sha256, repeat = JudgementKey.of(row)
        found.setdefault((image_id, sha256), {})[repeat] = row
    return {image: [by_repeat[n] for n in sorted(by_repeat)] for image, by_repeat in found.items()}


def _truncate_torn_line(stream: BinaryIO) -> None:
    """Remove an incomplete last line, so that it does not spoil the next row."""
    if stream.seek(0, os.SEEK_END) == 0:
        return
    stream.seek(-1, os.SEEK_END)
    if stream.read(1) != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
    stream.seek(0, os.SEEK_END)


def reply_key(judge_key: str, image_sha256: str, question: Question, repeat: int) -> str:
    """Return the content hash of one reply: judge, rubric, sampling, image, question, repeat."""
    parts = [judge_key, image_sha256, question.before, question.after, repeat]
    return sha256_bytes(json.dumps(parts).encode())


class JudgementCache:
    """Replies of earlier runs by content hash, in an SQLite file that processes can share.

    Without a folder, the cache is always empty.

    The cache only saves calls. If it cannot be used, for example on a full or read-only disk, the
    run continues without it, and `problem` says why.
    """

    def __init__(self, folder: Path | None) -> None:
        self._connection: sqlite3.Connection | None = None
        self.problem: str | None = None
        if folder is None:
            return
        with self._disabled_on_error():
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(folder / "judgements.sqlite", timeout=CACHE_TIMEOUT)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies "
                    "(key TEXT PRIMARY KEY, reply TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
                )

    def get(self, key: str) -> Json | None:
        """Return the reply with this key, or None."""
        reply = None
        if self._connection is not None:
            with self._disabled_on_error():
                found = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,))
                row = found.fetchone()
                reply = row and json.loads(row[0])
        return reply if isinstance(reply, dict) else None

    def put(self, replies: Iterable[tuple[str, Json]]) -> None:
        """Store replies by key. Existing replies are kept."""
        if self._connection is None:
            return
        now = time.time()
        rows = [(key, json.dumps(reply, allow_nan=False), now) for key, reply in replies]
        with self._disabled_on_error(), self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _disabled_on_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, sqlite3.Error) as error:
            self.problem = f"{type(error).__name__}: {error}"
            self.close()
