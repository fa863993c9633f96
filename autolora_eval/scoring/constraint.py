"""The replies that a rubric allows, as a regular expression and as a JSON schema.

If a grammar permits unlimited white space or text, a confused judge fills its token limit with it,
so every repetition here is bounded. The expression uses only the syntax that xgrammar,
outlines-core, llguidance and Python's `re` share: no look-around, anchors or back references.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction

from autolora_eval._files import Json
from autolora_eval.scoring.rubric import Remark, Rubric, Score

MAX_TEXT = 300
MAX_KEYWORDS, MAX_KEYWORD = 6, 30  # the paper's reasons then fit the default of 128 tokens
MAX_ENUM = 100
_PIECE = 100  # xgrammar 0.2.8 fails if a schema's pattern repeats anything more than 128 times
# ASCII without control characters, quotation marks, backslashes, brackets and braces: such text
# needs no escapes, and a reply truncated within a remark contains no further object.
_CHARACTER = "[ !#-Z_-z]"
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
# A value as one pattern per character.
Spelling = tuple[str, ...]


def reply_pattern(rubric: Rubric, forced: Mapping[str, float] | None = None) -> str:
    """Return a regular expression that matches exactly the replies that a rubric allows.

    A reply is one line such as `{"key": 4, "other": 3}`, with at most one blank after each `:` and
    `,`, and with the keys in the rubric's order.

    Args:
        rubric: the rubric with the scores and remarks.
        forced: the only allowed value by column. Remarks are then omitted, since such a pattern
            only tests whether a server honours it.

    Raises:
        ValueError: if a forced column or value is not one of the rubric's.
    """
    members = (
        f"{_literal(json.dumps(key, ensure_ascii=False))}: ?{_value_pattern(column, part, forced)}"
        for key, column, part in _members(rubric, forced)
    )
    return rf"\{{{', ?'.join(members)}\}}"


def reply_schema(rubric: Rubric, forced: Mapping[str, float] | None = None) -> Json:
    """Return the allowed replies as a JSON schema for `response_format` in strict mode.

    Arguments and errors are those of `reply_pattern`. A schema does not restrict white space, so a
    server may still let a judge flood its reply.
    """
    properties = {
        key: _value_schema(column, part, forced) for key, column, part in _members(rubric, forced)
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _members(
    rubric: Rubric, forced: Mapping[str, float] | None
) -> Iterator[tuple[str, str, Score | Remark]]:
    """Yield (key, column, score or remark) in the reply's order; a remark's column is ''."""
    if unknown := sorted((forced or {}).keys() - rubric.scores.keys()):
        raise ValueError(f"'{unknown[0]}' is not one of the columns {', '.join(rubric.scores)}")
    remarks = rubric.remarks.items() if forced is None else ()
    yield from ((key, "", remark) for key, remark in remarks if remark.before_scores)
    yield from ((score.key, column, score) for column, score in rubric.scores.items())
    yield from ((key, "", remark) for key, remark in remarks if not remark.before_scores)


def _value_pattern(column: str, part: Score | Remark, forced: Mapping[str, float] | None) -> str:
    if isinstance(part, Remark):
        return _remark_pattern(part)
    if forced is not None and column in forced:
        return _literal(_forced_text(column, part, forced[column]))
    spellings = ["".join(spelling) for spelling in _spellings(part)]
    return spellings[0] if len(spellings) == 1 else f"({'|'.join(spellings)})"


def _remark_pattern(remark: Remark) -> str:
    if remark.kind == "text":
        return f'"{_CHARACTER}{{0,{MAX_TEXT}}}"'
    keyword = f'"{_CHARACTER}{{1,{MAX_KEYWORD}}}"'
    return rf"\[({keyword}(, ?{keyword}){{0,{MAX_KEYWORDS - 1}}})?\]"


def _value_schema(column: str, part: Score | Remark, forced: Mapping[str, float] | None) -> Json:
    if isinstance(part, Remark):
        return _remark_schema(part)
    if forced is not None and column in forced:
        only = json.loads(_forced_text(column, part, forced[column]))
        return {"type": part.type, "enum": [only]}
    if part.type == "number":
        return {"type": "number", "minimum": part.min, "maximum": part.max}
    low, high = math.ceil(part.min), math.floor(part.max)
    if high - low >= MAX_ENUM:
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "integer", "enum": list(range(low, high + 1))}


def _remark_schema(remark: Remark) -> Json:
    if remark.kind == "text":
        pieces = f"{_CHARACTER}{{0,{_PIECE}}}" * (MAX_TEXT // _PIECE)
        return {"type": "string", "pattern": f"^{pieces}$"}
    keyword = {"type": "string", "pattern": f"^{_CHARACTER}{{1,{MAX_KEYWORD}}}$"}
    return {"type": "array", "items": keyword, "maxItems": MAX_KEYWORDS}


def _forced_text(column: str, score: Score, value: float) -> str:
    """Return a value as it is written in a reply."""
    text = f"{Decimal(str(value + 0.0)):f}".removesuffix(".0")  # −0.0 is 0
    if not any(re.fullmatch("".join(spelling), text) for spelling in _spellings(score)):
        raise ValueError(f"'{column}' does not allow the {score.type} {text}")
    return text


def _spellings(score: Score) -> list[Spelling]:
    """Return patterns of a score's values, from whole numbers to the most decimals."""
    decimals = range(_most_decimals(score) + 1)
    return [spelling for n in decimals for spelling in _with_decimals(score, n)]


def _most_decimals(score: Score) -> int:
    """Return how many decimals both bounds and at least 100 steps between them need."""
    if score.type == "integer":
        return 0
    steps = next(n for n in itertools.count(1) if (score.max - score.min) * 10**n >= 100)
    ends = (f"{Decimal(str(end)):f}".partition(".")[2] for end in (score.min, score.max))
    return max(steps, *map(len, ends))


def _with_decimals(score: Score, decimals: int) -> Iterator[Spelling]:
    """Yield patterns of the range's numbers with exactly `decimals` decimals."""
    low = math.ceil(Fraction(str(score.min)) * 10**decimals)
    high = math.floor(Fraction(str(score.max)) * 10**decimals)
    if low > high:
        return
    if low < 0:
        yield from (("-", *digits) for digits in _magnitudes(max(1, -high), -low, decimals))
    if high >= 0:
        yield from _magnitudes(max(0, low), high, decimals)


def _magnitudes(low: int, high: int, decimals: int) -> Iterator[Spelling]:
    """Yield patterns of low … high, 0 ≤ low ≤ high, in units of the last decimal."""
    shortest = decimals + 1
    widths = range(max(shortest, len(str(low))), max(shortest, len(str(high))) + 1)
    for width in widths:
        least = low if width == widths[0] else 10 ** (width - 1)
        most = min(high, 10**width - 1)
        for digits in _between(str(least).zfill(width), str(most).zfill(width)):
            point = width - decimals
            yield (*digits[:point], r"\.", *digits[point:]) if decimals else digits


def _between(low: str, high: str) -> list[Spelling]:
    """Return patterns of the digit strings from low to high, both of the same length."""
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    if rest == 0:
        return [(_digit(first, last),)]
    if first == last:
        return [(low[0], *digits) for digits in _between(low[1:], high[1:])]
    below: list[Spelling] = []
    above: list[Spelling] = []
    if low[1:] != "0" * rest:
        below = [(low[0], *digits) for digits in _between(low[1:], "9" * rest)]
        first += 1
    if high[1:] != "9" * rest:
        above = [(high[0], *digits) for digits in _between("0" * rest, high[1:])]
        last -= 1
    whole: list[Spelling] = [(_digit(first, last), *["[0-9]"] * rest)] if first <= last else []
    return [*below, *whole, *above]


def _digit(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def _literal(text: str) -> str:
    """Return a pattern that matches only this text."""
    return _SPECIAL.sub(r"\\\g<0>", text)
