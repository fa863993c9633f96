"""Rubrics for tests: the shipped ones, one with chosen scores, and one to change."""

from __future__ import annotations

from typing import Any

from autolora_eval.scoring.rubric import Rubric, read_rubric
from autolora_eval.sources.lookup import shipped_root

GOOD = """\
name: mine
placeholders: {image: "<I>", prompt: "<P>"}
scores:
  pc: {key: correspondence, display_name: Prompt correspondence}
  sa: {key: style, display_name: Style, min: 1, max: 7}
text: |
  First <P>.
  <I>
  Does it show <P>, or {not}?
"""


def shipped(name: str) -> Rubric:
    return read_rubric(shipped_root() / "prompts" / "rubrics" / f"{name}.yaml")


def rubric_of(*scores: tuple[str, float, float, str], **remarks: Any) -> Rubric:
    """A rubric of (key, min, max, type); its columns are a, b, …"""
    return Rubric.model_validate(
        {
            "name": "r",
            "placeholders": {"image": "<I>"},
            "text": "<I>",
            "remarks": remarks,
            "scores": {
                chr(ord("a") + n): {
                    "key": key, "display_name": key, "min": low, "max": high, "type": kind
                }
                for n, (key, low, high, kind) in enumerate(scores)
            },
        }
    )  # fmt: skip
