"""Replies of earlier runs, by the content of what was asked: shared between runs and processes."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from autolora_eval.files import Json, sha256_bytes
from autolora_eval.rubric import Question

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
