"""Judgements as a run writes them, and the gallery that is made of a run."""

from __future__ import annotations

import json
from typing import Any

from autolora_eval.report.gallery import Gallery, build_gallery
from autolora_eval.report.run_view import read_run_view
from autolora_eval.runs.folder import RunFolder

Json = dict[str, Any]
JUDGE_KEY = "50114b2721e440db"  # of the synthetic run


def judgement(row: Any, **changed: object) -> Json:
    """Return what the judge replied to an image, as a run writes it."""
    scores = {key: row[key] for key in ("pc", "sa") if key in row}
    return {
        "image_id": row["image_id"],
        "sha256": row["sha256"],
        "repeat": 0,
        "scores": scores,
        "reason": None,
        "raw": f"reply to {row['file']}",
        "model": "a-judge",
        "latency_seconds": 0.25,
        "cached": False,
        "judge_key": JUDGE_KEY,
        "attempt": 1,
    } | changed


def write_judgements(folder: RunFolder, rows: list[tuple[str, Json]]) -> None:
    """Write judgements by cell; JSON escapes let even a lone surrogate through."""
    for cell, row in rows:
        path = folder.judgements(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def gallery_of(folder: RunFolder) -> Gallery:
    return build_gallery(read_run_view(folder))
