"""From a judge's reply to scores, or to the reason why it has none."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autolora_eval.rubric import Rubric, Score

MAX_REPLY = 20_000
MAX_PYTHON_OBJECT = 1_000
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_FRACTION = re.compile(r"^\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*(\d+(?:\.\d+)?))?\s*$")


@dataclass(frozen=True)
class Verdict:
    """The scores of one reply by column, or the reason why there are none.

    Attributes:
        scores: column → value; None if unscored.
        reason: `no_json`, `missing_score`, `not_a_number`, `out_of_range` or `too_long`, with
            the score concerned after a colon; None if scored.
    """

    scores: dict[str, float] | None
    reason: str | None = None


def parse_reply(text: str, rubric: Rubric) -> Verdict:
    """Return the scores of a reply: those of the last JSON object that has any of the keys.

    Accepted around the JSON: code fences, text, and objects or lists that hold it; within it:
    trailing commas (the paper's own example has one), single quotes, a number as text, as `4/5`
    of the same range, or alone in a list. Ranges are strict: nothing is clamped.

    Args:
        text: the reply.
        rubric: whose scores are read.
    """
    text = text.strip()  # a judge that does not find its end fills up with white space
    if len(text) > MAX_REPLY:
        return Verdict(None, "too_long")
    keys = {score.key for score in rubric.scores.values()}
    objects = list(_json_objects(text))
    verdicts = [verdict for found in objects for verdict in _with_keys(found, keys)]
    if not verdicts:
        return Verdict(None, "missing_score" if objects else "no_json")
    verdict = verdicts[-1]
    scores = {}
    for column, score in rubric.scores.items():
        if score.key not in verdict:
            return Verdict(None, f"missing_score:{column}")
        value = _number(verdict[score.key], score)
        if value is None:
            return Verdict(None, f"not_a_number:{column}")
        if not score.min <= value <= score.max:
            return Verdict(None, f"out_of_range:{column}")
        scores[column] = value
    return Verdict(scores)


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in a text, outermost only, in order."""
    text = _TRAILING_COMMA.sub(r"\1", text)
    decoder = json.JSONDecoder(parse_int=float)  # an int may have more digits than Python reads
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            found, end = _python_dict(text, at)
        if isinstance(found, dict):
            yield found
        at = text.find("{", end)


def _with_keys(found: dict[str, Any], keys: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the outermost objects within `found`, itself included, that have any of the keys."""
    waiting: list[object] = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and keys & value.keys():
            yield value
        elif isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            waiting += reversed(list(inner))


def _python_dict(text: str, at: int) -> tuple[object, int]:
    """Read an object in single quotes up to its first closing brace, or step over the opening."""
    end = text.find("}", at, at + MAX_PYTHON_OBJECT) + 1
    if end == 0:
        return None, at + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash that escapes nothing
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.literal_eval(text[at:end]), end
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None, at + 1


def _number(value: object, score: Score) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        match = _FRACTION.match(value)
        if match is None or (match[2] is not None and float(match[2]) != score.max):
            return None
        return float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
