"""The expected score: the mean over what a judge could have said where it said a number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from autolora_eval.rubric import Rubric, Score
from autolora_eval.scoring.judges.base import Token
from autolora_eval.scoring.reply import parse_reply

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
