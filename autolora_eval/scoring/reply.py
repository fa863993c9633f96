"""From a judge's reply to scores, or to the reason why it has none."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autolora_eval.scoring.judges.base import Token
from autolora_eval.scoring.rubric import Rubric, Score

MAX_REPLY = 20_000
# What bounds the work: openings of an object that are tried, from the end; and, for an object that
# is not JSON, its length and the closing braces that are tried.
MAX_OPENINGS = 200
MAX_PYTHON_OBJECT, MAX_CLOSINGS = 1_000, 8
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_FRACTION = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(?:\s*(?:/|out of)\s*([0-9]+(?:\.[0-9]+)?))?")
# As `"score": 4/5`, which is no JSON; read only where the object cannot be read otherwise.
_BARE_FRACTION = re.compile(r"(:\s*)([0-9.]{1,20}\s*/\s*[0-9.]{1,20})(?=\s*[,}])")
_MEMBER = re.compile(r"""\{\s*("[^"{}]{1,200}"|'[^'{}]{1,200}')\s*:""")
# An int may have more digits than Python reads; judges break lines within a text.
_DECODER = json.JSONDecoder(parse_int=float, strict=False)


@dataclass(frozen=True)
class ParsedReply:
    """The scores of one reply by column, or the reason why there are none.

    Attributes:
        scores: column → value; None if unscored.
        reason: `no_json`, `missing_score`, `not_a_number`, `out_of_range` or `too_long`, with
            the score concerned after a colon; None if scored.
    """

    scores: dict[str, float] | None
    reason: str | None = None


def parse_reply(text: str, rubric: Rubric) -> ParsedReply:
    """Return the scores of a reply: those of the last JSON object that has any of the keys.

    Accepted around the JSON: code fences, text, and objects or lists that hold it; within it:
    trailing commas (the paper's own example has one), single quotes, line breaks within a text,
    and a number as text, as `4/5` or `4 out of 5` of the same range (`4/5` also without quotation
    marks), or alone in a list.

    The last verdict that can be read stands, and so does the last of a key that stands twice in
    it: a judge that corrects itself does so at the end. Ranges are strict: nothing is clamped or
    converted, and of an incomplete last verdict nothing is filled up from an earlier one. What
    stands within an object that cannot be read is no verdict: it may be a quotation.

    The work is proportional to the reply's length, whatever the reply: of more than MAX_OPENINGS
    opening braces the last are tried.

    Args:
        text: the reply.
        rubric: whose scores are read.
    """
    text = text.strip()  # a judge that does not find its end fills up with white space
    if len(text) > MAX_REPLY:
        return ParsedReply(None, "too_long")
    keys = {score.key for score in rubric.scores.values()}
    objects = list(_json_objects(text))
    verdicts = [verdict for found in objects for verdict in _with_keys(found, keys)]
    if not verdicts:
        return ParsedReply(None, "missing_score" if objects else "no_json")
    verdict = verdicts[-1]
    scores = {}
    for column, score in rubric.scores.items():
        if score.key not in verdict:
            return ParsedReply(None, f"missing_score:{column}")
        value = _number(verdict[score.key], score)
        if value is None:
            return ParsedReply(None, f"not_a_number:{column}")
        if not score.min <= value <= score.max:
            return ParsedReply(None, f"out_of_range:{column}")
        scores[column] = value
    return ParsedReply(scores)


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in a text, outermost only, in order.

    An object within one that cannot be read, since it is cut off or its quotation marks are not
    escaped, is not yielded: it may be what a prompt or a picture says, in quotation.
    """
    text = _TRAILING_COMMA.sub("", text)
    at, depth = _first_opening(text), 0  # of the unreadable objects that are open here
    while at >= 0:
        try:
            found, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            found, end = _python_dict(text, at)
        if not isinstance(found, dict):
            depth += depth > 0 or _MEMBER.match(text, at) is not None
        elif depth == 0:
            yield found
        at = text.find("{", end)
        depth = max(0, depth - text.count("}", end, at if at >= 0 else None))


def _first_opening(text: str) -> int:
    """Return the place of the last opening brace but MAX_OPENINGS - 1; of the first if fewer."""
    at = len(text)
    for _ in range(MAX_OPENINGS):
        before = text.rfind("{", 0, at)
        if before < 0:
            break
        at = before
    return at if at < len(text) else -1


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
    """Read an object in single quotes, or with bare fractions, or step over its opening."""
    end = at
    for _ in range(MAX_CLOSINGS):
        end = text.find("}", end, at + MAX_PYTHON_OBJECT) + 1
        if end == 0:
            break
        for written in dict.fromkeys((text[at:end], _BARE_FRACTION.sub(r'\1"\2"', text[at:end]))):
            found = _literal(written)
            if isinstance(found, dict):
                return found, end
    return None, at + 1


def _literal(text: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash that escapes nothing
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _number(value: object, score: Score) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        match = _FRACTION.fullmatch(value.strip())
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


# --------------------
# The expected score: the mean over what a judge could have said where it said a number.


# A token that holds one whole number: what is before it, the number, what is behind it.
_WHOLE = re.compile(r"([^0-9]*?)(-?(?:0|[1-9][0-9]{0,9}))([^0-9]*)", re.DOTALL)
MAX_TRIED = 32


def expected_scores(text: str, tokens: Sequence[Token], rubric: Rubric) -> dict[str, float] | None:
    """Return the expected value of each score under the judge's own probabilities.

    With p(k) the probability of the whole number k where the reply has a score's value, and K
    those of the alternatives that lie in its range, it is Σ_{k∈K} k·p(k) / Σ_{k∈K} p(k). Only
    alternatives with the same characters around the number, such as a leading blank, count.

    Where one number of the range begins another, as 1 does 10, and the judge writes a digit a
    token, the first digit's probability is taken for that of the number of one digit.

    Args:
        text: the reply.
        tokens: its tokens; others, such as one that ends the reply, may stand around them.
        rubric: whose scores.

    Returns:
        column → expected score. A score whose value is not one token has none; None if no score
        has one, the reply has no verdict, or its tokens do not spell it.
    """
    scores = parse_reply(text, rubric).scores
    if scores is None:
        return None
    found: dict[str, float] = {}
    for start, token in _numbers(text, tokens, set(scores.values())):
        column = _column_at(text, start, token, scores, rubric)
        mean = None if column is None else _mean(token, rubric.scores[column])
        if column is not None and mean is not None:
            found[column] = mean
    return {column: found[column] for column in rubric.scores if column in found} or None


def _numbers(text: str, tokens: Sequence[Token], values: set[float]) -> Iterator[tuple[int, Token]]:
    """Yield the last tokens that hold one of `values`, each with its place in the text."""
    before = "".join(token.text for token in tokens).rfind(text)
    if before < 0:
        return
    start, placed = -before, []
    for token in tokens:
        match = _WHOLE.fullmatch(token.text)
        inside = match and start + match.start(2) >= 0 and start + match.end(2) <= len(text)
        if match and inside and float(match[2]) in values:
            placed.append((start, token))
        start += len(token.text)
    yield from placed[-MAX_TRIED:]


def _column_at(
    text: str, start: int, token: Token, scores: dict[str, float], rubric: Rubric
) -> str | None:
    """Return the score whose value a token is: the one that changes with it, and alone.

    So whatever the parser accepts around a number is accepted here, and a number in a remark, in
    a taken-back verdict, or beside further digits is none.
    """
    match = _WHOLE.fullmatch(token.text)
    assert match is not None
    for column, score in rubric.scores.items():
        other = _another(score, scores[column])
        if other is not None and float(match[2]) == scores[column]:
            said = f"{text[: start + match.start(2)]}{other}{text[start + match.end(2) :]}"
            changed = parse_reply(said, rubric).scores
            if changed == scores | {column: float(other)}:
                return column
    return None


def _another(score: Score, value: float) -> int | None:
    """Return a whole number of the range that is not `value`, if there is one."""
    lowest = math.ceil(score.min)
    other = lowest + 1 if value == lowest else lowest
    return other if other <= score.max else None


def _mean(token: Token, score: Score) -> float | None:
    """Return the mean of the whole numbers of the range that could stand in a token's place."""
    own = _WHOLE.fullmatch(token.text)
    logprobs: list[tuple[int, float]] = []
    for text, logprob in token.alternatives.items():
        match = _WHOLE.fullmatch(text)
        if own and match and match.group(1, 3) == own.group(1, 3) and math.isfinite(logprob):
            logprobs.append((int(match[2]), logprob))
    logprobs = [(k, logprob) for k, logprob in logprobs if score.min <= k <= score.max]
    if not logprobs:
        return None
    likeliest = max(logprob for _, logprob in logprobs)
    weights = [(k, math.exp(logprob - likeliest)) for k, logprob in logprobs]
    return math.fsum(k * p for k, p in weights) / math.fsum(p for _, p in weights)
