"""Reads JSON Lines files whole."""

from __future__ import annotations

from pathlib import Path

from autolora_eval._files import Json, iterate_jsonl


def read_jsonl(path: Path) -> list[Json]:
    """Return the JSON objects of a file, one per line. A missing file has none."""
    return list(iterate_jsonl(path))
