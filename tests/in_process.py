"""Helpers that ask the judge in this process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rubrics import shipped
from scored_run import picture

from autolora_eval.scoring.judge import Reply, Request
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge
from autolora_eval.scoring.rubric import Question, Rubric
from autolora_eval.sources.model_source import Source

PROMPTS = ["a red house in front of a blue background", "a", "a green tree, pixel art " * 3]


def judge(
    model: Path, rubric: Rubric | None = None, device: str = "cpu", **changes: Any
) -> TransformersJudge:
    """Without a rubric, its replies are free."""
    settings = {"backend": "transformers", "max_tokens": 12} | changes
    if rubric is None:
        settings |= {"constraint": "plain"}
    spec = JudgeConfig(rubric="r", model=str(model), **settings)
    source = Source(str(model), "folder", str(model))
    return TransformersJudge(spec, source, torch.device(device), rubric or shipped("pixel_art"))


def ask(judge: TransformersJudge, requests: Iterable[Request]) -> list[Reply]:
    return [reply for group in judge.replies(requests) for _, reply in group]


def said(judge: TransformersJudge, requests: Iterable[Request]) -> list[str | None]:
    return [reply.text for reply in ask(judge, requests)]


def pictured(folder: Path, questions: Iterable[Question]) -> list[Request]:
    found = []
    for n, question in enumerate(questions):
        path = folder / f"{n}.png"
        picture(("cell", n, 0), (64, 64)).save(path)
        found.append(Request(path, question, tag=n))
    return found
