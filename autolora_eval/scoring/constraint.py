"""What a rubric allows as a reply, as a regular expression and as a JSON schema.

A grammar that permits unlimited white space or text lets a confused judge fill its token limit
with it: nothing here repeats without an end. Only syntax that xgrammar, outlines-core, llguidance
and Python's `re` share is used: no look-around, no anchors, no back references.
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
MAX_KEYWORDS, MAX_KEYWORD = 6, 30  # so that the paper's reasons fit the default of 128 tokens
MAX_ENUM = 100
_PIECE = 100  # xgrammar 0.2.8 fails on a schema's pattern with more than 128 of anything
# ASCII without control characters, quotation mark, backslash, brackets and braces: it needs no
# escapes, and a reply that is cut off within a remark holds no other object.
_CHARACTER = "[ !#-Z_-z]"
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
# A value as patterns of one character each.
Spelling = tuple[str, ...]


def reply_pattern(rubric: Rubric, pinned: Mapping[str, float] | None = None) -> str:
    """Return a regular expression of the replies that a rubric allows, and of no others.

    A reply is one line, `{"key": 4, "other": 3}`, with one or no blank after each `:` and `,`;
    its keys are in the rubric's order.

    Args:
        rubric: whose scores and remarks.
        pinned: column → the only value it may have. Remarks are then left out: such a pattern
            only shows whether a server obeys.

    Raises:
        ValueError: a pinned column or value is none of the rubric's.
    """
    members = (
        f"{_SPECIAL.sub(_escaped, _quoted(key))}: ?{_value_pattern(column, part, pinned)}"
        for key, column, part in _members(rubric, pinned)
    )
    return rf"\{{{', ?'.join(members)}\}}"


def reply_schema(rubric: Rubric, pinned: Mapping[str, float] | None = None) -> Json:
    """Return the same as a JSON schema, as `response_format` takes it in strict mode.

    A schema says nothing about white space: a server may still let a judge flood its reply.

    Args:
        rubric: as of `reply_pattern`.
        pinned: as of `reply_pattern`.

    Raises:
        ValueError: as of `reply_pattern`.
    """
    properties = {
        key: _value_schema(column, part, pinned) for key, column, part in _members(rubric, pinned)
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _members(
    rubric: Rubric, pinned: Mapping[str, float] | None
) -> Iterator[tuple[str, str, Score | Remark]]:
    """Yield (key, column, what it is) in the order of the reply; a remark's column is ''."""
    unknown = sorted((pinned or {}).keys() - rubric.scores.keys())
    if unknown:
        raise ValueError(f"'{unknown[0]}' is none of the columns {', '.join(rubric.scores)}")
    remarks = rubric.remarks.items() if pinned is None else ()
    yield from ((key, "", remark) for key, remark in remarks if remark.before_scores)
    yield from ((score.key, column, score) for column, score in rubric.scores.items())
    yield from ((key, "", remark) for key, remark in remarks if not remark.before_scores)


def _value_pattern(column: str, part: Score | Remark, pinned: Mapping[str, float] | None) -> str:
    if isinstance(part, Remark):
        return _remark_pattern(part)
    if pinned is not None and column in pinned:
        return _SPECIAL.sub(_escaped, _pinned(column, part, pinned[column]))
    spellings = ["".join(spelling) for spelling in _spellings(part)]
    return spellings[0] if len(spellings) == 1 else f"({'|'.join(spellings)})"


def _remark_pattern(remark: Remark) -> str:
    if remark.kind == "text":
        return f'"{_CHARACTER}{{0,{MAX_TEXT}}}"'
    keyword = f'"{_CHARACTER}{{1,{MAX_KEYWORD}}}"'
    return rf"\[({keyword}(, ?{keyword}){{0,{MAX_KEYWORDS - 1}}})?\]"


def _value_schema(column: str, part: Score | Remark, pinned: Mapping[str, float] | None) -> Json:
    if isinstance(part, Remark):
        return _remark_schema(part)
    if pinned is not None and column in pinned:
        only = json.loads(_pinned(column, part, pinned[column]))
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


def _pinned(column: str, score: Score, value: float) -> str:
    """Return a value as a reply spells it."""
    text = f"{Decimal(str(value + 0.0)):f}".removesuffix(".0")  # −0.0 is 0
    if not any(re.fullmatch("".join(spelling), text) for spelling in _spellings(score)):
        raise ValueError(f"{text} is no {score.type} that '{column}' may have")
    return text


def _spellings(score: Score) -> list[Spelling]:
    """Return the ways to write a value of a score, from whole numbers to the most decimals."""
    return list(
        itertools.chain.from_iterable(
            _with_decimals(score, decimals) for decimals in range(_most_decimals(score) + 1)
        )
    )


def _most_decimals(score: Score) -> int:
    """Return how many decimals reach both ends, in a hundred steps at least; 0 for integers."""
    if score.type == "integer":
        return 0
    steps = next(n for n in itertools.count(1) if (score.max - score.min) * 10**n >= 100)
    ends = (f"{Decimal(str(end)):f}".partition(".")[2] for end in (score.min, score.max))
    return max(steps, *map(len, ends))


def _with_decimals(score: Score, decimals: int) -> Iterator[Spelling]:
    """Yield the ways to write the range's numbers that have so many decimals."""
    low = math.ceil(Fraction(str(score.min)) * 10**decimals)
    high = math.floor(Fraction(str(score.max)) * 10**decimals)
    if low > high:
        return
    if low < 0:
        yield from (("-", *digits) for digits in _magnitudes(max(1, -high), -low, decimals))
    if high >= 0:
        yield from _magnitudes(max(0, low), high, decimals)


def _magnitudes(low: int, high: int, decimals: int) -> Iterator[Spelling]:
    """Yield the ways to write low … high, 0 ≤ low ≤ high, in units of the last decimal."""
    shortest = decimals + 1
    widths = range(max(shortest, len(str(low))), max(shortest, len(str(high))) + 1)
    for width in widths:
        least = low if width == widths[0] else 10 ** (width - 1)
        most = min(high, 10**width - 1)
        for digits in _between(str(least).zfill(width), str(most).zfill(width)):
            point = width - decimals
            yield (*digits[:point], r"\.", *digits[point:]) if decimals else digits


def _between(low: str, high: str) -> list[Spelling]:
    """Return patterns of the digit strings from low to high, which are equally long."""
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


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[0]}"
