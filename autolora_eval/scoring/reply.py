"""Parse a judge's reply into scores, and compute expected scores from token probabilities."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autolora_eval.scoring.judge import Token
from autolora_eval.scoring.rubric import Rubric, Score

MAX_REPLY = 20_000
# Limits on the work: the number of opening braces that are tried, counted from the end, and for
# objects that are not JSON their length and the number of closing braces that are tried.
MAX_OPENINGS = 200
MAX_PYTHON_OBJECT, MAX_CLOSINGS = 1_000, 8
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_ESCAPED_UNDERSCORE = re.compile(r"(?<!\\)\\_")  # Mistral's models write Markdown
_FRACTION = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(?:\s*(?:/|out of)\s*([0-9]+(?:\.[0-9]+)?))?")
# Matches `"score": 4/5`, which is not JSON; tried only if the object is not valid otherwise.
_BARE_FRACTION = re.compile(r"(:\s*)([0-9.]{1,20}\s*/\s*[0-9.]{1,20})(?=\s*[,}])")
_MEMBER = re.compile(r"""\{\s*("[^"{}]{1,200}"|'[^'{}]{1,200}')\s*:""")
# Floats: Python refuses integers of very many digits. Not strict: judges put line breaks into text.
_DECODER = json.JSONDecoder(parse_int=float, strict=False)
# The marks around a model's thoughts. Where a chat template opens them, a reply has only the end.
# The further marks are those of MedGemma, Gemma 4 and gpt-oss.
_NAME = "(?:think(?:ing)?|thought|reasoning|analysis|scratchpad)"
_THOUGHT_END = re.compile(
    rf"[<\[◁]/(?:seed:)?{_NAME}[>\]▷]|<unused95>|<channel\|>|<\|end\|>", re.IGNORECASE
)
# A thought that follows some words or another one, and may have no end.
_LATER_THOUGHT = re.compile(
    rf"(?:[<\[◁](?:seed:)?{_NAME}[>\]▷]|<unused94>|<\|channel(?:\|>analysis|>thought))"
    rf".*?(?:{_THOUGHT_END.pattern}|\Z)",
    re.IGNORECASE | re.DOTALL,
)
# Some servers let a model go on after its reply, and answer questions that nobody asked.
_TURN_END = re.compile(r"<\|(?:im_end|eot_id|end_of_text|endoftext|user)\|>|<end_of_turn>|</s>")
_VERDICT_FIRST = re.compile(r"\s*(?:```\w*\s*)?(?:\[\s*)?\{")
# A token with one whole number: text before, the number, text behind.
_WHOLE = re.compile(r"([^0-9]*?)(-?(?:0|[1-9][0-9]{0,9}))([^0-9]*)", re.DOTALL)
MAX_NUMBER_TOKENS = 32


@dataclass(frozen=True)
class ParsedReply:
    """The scores of one reply, or the reason why there are none.

    Attributes:
        scores: the values by column; None if the reply is unscored.
        reason: `no_json`, `missing_score`, `not_a_number`, `out_of_range`, `ambiguous`, `too_long`
            or `truncated`, followed by a colon and the column if one is concerned; None if the
            reply is scored.
    """

    scores: dict[str, float] | None
    reason: str | None = None


def parse_reply(text: str, rubric: Rubric, *, truncated: bool = False) -> ParsedReply:
    """Return the scores in a reply: those of the last JSON object with any of the rubric's keys.

    Around the object, code fences, text, lists and enclosing objects are accepted. Within it,
    trailing commas (the paper's own example has one), single quotes, line breaks in strings and
    underscores escaped as in Markdown are accepted, and numbers may be strings, fractions such as
    `4/5` or "4 out of 5" of the score's range, or lists of one number.

    The last complete object counts, and the last of repeated keys, since a judge that corrects
    itself does so at the end. Ranges are strict: no value is clamped or converted, and values
    missing in the last object are not taken from an earlier one. If it encloses several objects
    with any of the keys, they must be equal. Objects inside an unreadable object are ignored, since
    they may be quotations.

    Objects within the judge's thoughts (`<think>`) are drafts and do not count. A truncated reply,
    which reached the token limit, counts only if it begins with its object: otherwise the object
    may be a draft too.

    The time is linear in the length of the reply.
    """
    text = next((turn for turn in _TURN_END.split(text) if turn.strip()), "")
    text = _without_thoughts(text).strip()  # some replies end with much white space
    if truncated:
        found = _parse(text, rubric) if begins_with_scores(text) else ParsedReply(None)
        return found if found.scores is not None else ParsedReply(None, "truncated")
    return _parse(text, rubric)


def begins_with_scores(text: str) -> bool:
    """Return whether a reply begins with an object, so that it does not begin with thoughts."""
    return _VERDICT_FIRST.match(text) is not None


def is_only_scores(text: str) -> bool:
    """Return whether a text begins and ends with an object, perhaps in a fence."""
    return begins_with_scores(text) and text.rstrip("`] \r\n").endswith("}")


def _without_thoughts(text: str) -> str:
    """Return a reply without the judge's thoughts, which may have no end if it is truncated."""
    if begins_with_scores(text):
        return text  # the reply only quotes the marks
    end = _THOUGHT_END.search(text)
    rest = text if end is None else text[end.end() :]
    return rest if begins_with_scores(rest) else _LATER_THOUGHT.sub("", rest)


def _parse(text: str, rubric: Rubric) -> ParsedReply:
    if len(text) > MAX_REPLY:
        return ParsedReply(None, "too_long")
    keys = {score.key for score in rubric.scores.values()}
    objects = list(_json_objects(text))
    candidates = [inner for found in objects if (inner := list(_with_keys(found, keys)))]
    if not candidates:
        return ParsedReply(None, "missing_score" if objects else "no_json")
    last, *others = candidates[-1]
    if any(other != last for other in others):  # such as a draft, or the highest scores
        return ParsedReply(None, "ambiguous")
    scores = {}
    for column, score in rubric.scores.items():
        if score.key not in last:
            return ParsedReply(None, f"missing_score:{column}")
        value = _number(last[score.key], score)
        if value is None:
            return ParsedReply(None, f"not_a_number:{column}")
        if not score.min <= value <= score.max:
            return ParsedReply(None, f"out_of_range:{column}")
        scores[column] = value
    return ParsedReply(scores)


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost objects in a text, in order.

    Objects inside an unreadable object (truncated, or with unescaped quotation marks) are not
    yielded, since they may quote the prompt or the image.
    """
    text = _ESCAPED_UNDERSCORE.sub("_", _TRAILING_COMMA.sub("", text))
    at, depth = _first_opening(text), 0  # depth of enclosing unreadable objects
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
    """Return the position of the first of the last `MAX_OPENINGS` opening braces; -1 if none."""
    at = len(text)
    for _ in range(MAX_OPENINGS):
        before = text.rfind("{", 0, at)
        if before < 0:
            break
        at = before
    return at if at < len(text) else -1


def _with_keys(found: dict[str, Any], keys: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the outermost objects in `found`, including itself, that have any of the keys."""
    waiting: list[object] = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and keys & value.keys():
            yield value
        elif isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            waiting += reversed(list(inner))


def _python_dict(text: str, at: int) -> tuple[object, int]:
    """Read an object with single quotes or fractions; None and the next position otherwise."""
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
            warnings.simplefilter("ignore")  # invalid escape sequences
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _number(value: object, score: Score) -> float | None:
    """Return a value as a finite number, or None."""
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


def expected_scores(text: str, tokens: Sequence[Token], rubric: Rubric) -> dict[str, float] | None:
    """Return the expected value of each score under the judge's token probabilities.

    Let p(k) be the probability of the whole number k at the position of a score's value, and K the
    alternatives in the score's range. The expected score is Σ_{k∈K} k·p(k) / Σ_{k∈K} p(k). Only
    alternatives with the same characters around the number, for example a leading blank, count.

    Further tokens before and after those of the reply are allowed.

    If the judge writes one digit per token and a number of the range begins another one, as 1
    begins 10, the probability of the first digit is taken for that of the one-digit number.

    Returns:
        The expected scores by column, without those whose value is not a single token. None if
        there are none, if the reply has no scores, or if the tokens do not spell the reply.
    """
    scores = parse_reply(text, rubric).scores
    if scores is None:
        return None
    found: dict[str, float] = {}
    for at, match, token in _numbers(text, tokens, set(scores.values())):
        column = _column_at(text, at, match[2], scores, rubric)
        if column is not None:
            mean = _mean(match, token.alternatives, rubric.scores[column])
            if mean is not None:
                found[column] = mean
    return {column: found[column] for column in rubric.scores if column in found} or None


def _numbers(
    text: str, tokens: Sequence[Token], values: set[float]
) -> Iterator[tuple[int, re.Match[str], Token]]:
    """Yield the last tokens with one of `values`: position of the number, match, token."""
    before = "".join(token.text for token in tokens).rfind(text)
    if before < 0:
        return
    start, found = -before, []
    for token in tokens:
        match = _WHOLE.fullmatch(token.text)
        inside = match and start + match.start(2) >= 0 and start + match.end(2) <= len(text)
        if match and inside and float(match[2]) in values:
            found.append((start + match.start(2), match, token))
        start += len(token.text)
    yield from found[-MAX_NUMBER_TOKENS:]


def _column_at(
    text: str, at: int, number: str, scores: dict[str, float], rubric: Rubric
) -> str | None:
    """Return the column whose value the number at a position is, or None.

    It is found by experiment: with another number there, the parser must return another value of
    this column and of no other. So every format that the parser accepts works here, and numbers in
    remarks or in corrected objects do not count.
    """
    for column, score in rubric.scores.items():
        other = _another(score, scores[column])
        if other is not None and float(number) == scores[column]:
            said = f"{text[:at]}{other}{text[at + len(number) :]}"
            changed = parse_reply(said, rubric).scores
            if changed == scores | {column: float(other)}:
                return column
    return None


def _another(score: Score, value: float) -> int | None:
    """Return a whole number of the range other than `value`, or None."""
    lowest = math.ceil(score.min)
    other = lowest + 1 if value == lowest else lowest
    return other if other <= score.max else None


def _mean(own: re.Match[str], alternatives: Mapping[str, float], score: Score) -> float | None:
    """Return the mean over the whole numbers of the range among a token's alternatives."""
    logprobs: list[tuple[int, float]] = []
    for text, logprob in alternatives.items():
        match = _WHOLE.fullmatch(text)
        if match and match.group(1, 3) == own.group(1, 3) and math.isfinite(logprob):
            logprobs.append((int(match[2]), logprob))
    logprobs = [(k, logprob) for k, logprob in logprobs if score.min <= k <= score.max]
    if not logprobs:
        return None
    likeliest = max(logprob for _, logprob in logprobs)
    weights = [(k, math.exp(logprob - likeliest)) for k, logprob in logprobs]
    return math.fsum(k * p for k, p in weights) / math.fsum(p for _, p in weights)
