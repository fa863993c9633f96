"""Helpers that ask a judge on a server and collect its replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judge import Reply, Request
from autolora_eval.scoring.judges.openai_judge import OpenAIJudge
from autolora_eval.scoring.rubric import Question

Make = Callable[..., OpenAIJudge]
QUESTION = Question("Before the image.", "After it, and <b>ünïcode</b> {braces}.")


def ask(asked: OpenAIJudge, requests: Sequence[Request]) -> list[Reply]:
    """Return the replies in the order of the requests."""
    found = {id(request): reply for group in asked.replies(requests) for request, reply in group}
    assert len(found) == len(requests)
    return [found[id(request)] for request in requests]


def until_it_stops(asked: OpenAIJudge, requests: Sequence[Request]) -> tuple[list[Reply], str]:
    """Return the replies before the judge stopped, and its error message."""
    came: list[Reply] = []
    try:
        for group in asked.replies(requests):
            came += [reply for _, reply in group]
    except AutoLoRAEvalError as error:
        return came, str(error)
    raise AssertionError("it did not stop")


def questions(folder: Path, count: int) -> list[Request]:
    """Requests about images that are all different."""
    made = []
    for n in range(count):
        Image.new("RGB", (8, 8), (n % 256, n // 256, 0)).save(path := folder / f"{n}.png")
        made.append(Request(path, QUESTION, tag=n))
    return made
