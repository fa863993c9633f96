"""How hostile input is made of valid input."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from autolora_eval._errors import AutoLoRAEvalError

# Written as an integer of 5,000 digits.
BIG = "__big__"
TEXTS = ("", "..", "../../mine.png", "/etc/hostname", "\x00", "\ud800", "a" * 300, "a/b", BIG)
NUMBERS = (0, -1, 2**31, 2**63, 2**70, 1e308, float("inf"), float("nan"), 0.5)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(TEXTS + NUMBERS)
)
JUNK = st.one_of(
    PLAIN,
    st.text(max_size=20),
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)


@dataclass(frozen=True)
class Input:
    """A kind of hostile input.

    Attributes:
        name: what it is called.
        values: the cases.
        use: what reads a case, given a folder.
        errors: how a case may end besides well.
        examples: cases that once failed.
        prepare: furnishes the folder before the first case.
    """

    name: str
    values: SearchStrategy[Any]
    use: Callable[[Path, Any], None]
    errors: tuple[type[Exception], ...] = (AutoLoRAEvalError,)
    examples: Sequence[Any] = ()
    prepare: Callable[[Path], object] = lambda place: None


def changed(draw: DrawFn, data: Any) -> Any:
    """Return data with one value in it replaced, removed or put under another key."""
    if isinstance(data, dict | list) and data and draw(st.integers(0, 9)):
        keys: Any = list(data) if isinstance(data, dict) else range(len(data))
        key = draw(st.sampled_from(keys))
        what = draw(st.integers(0, 11))
        if what == 0:
            del data[key]
        elif what == 1 and isinstance(data, dict):
            data[draw(st.sampled_from(TEXTS) | st.text(max_size=9))] = data.pop(key)
        elif what == 2 and isinstance(data, list):
            data.append(copy.deepcopy(data[key]))
        else:
            data[key] = changed(draw, data[key])
        return data
    return draw(JUNK)


@st.composite
def mutated(draw: DrawFn, data: Any) -> Any:
    """Make data that differ from valid ones in one to three places."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        data = changed(draw, data)
    return data


@st.composite
def damaged(draw: DrawFn, bases: Sequence[bytes]) -> bytes:
    """Make bytes that differ from valid ones in one to five places."""
    data = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 50)))
        data[at : at + draw(st.sampled_from((0, length)))] = draw(
            st.sampled_from((b"", b"\0" * length, b"\xff" * length, bytes(data[:length])))
            | st.binary(min_size=1, max_size=8)
        )
    return bytes(data)


def as_json(value: Any) -> str:
    return json.dumps(value).replace(f'"{BIG}"', "9" * 5000)


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False).replace(BIG, "9" * 5000)


def fragments(*texts: str, most: int = 10_000) -> SearchStrategy[str]:
    """Make texts of fragments, some of them repeated very often."""
    piece = st.sampled_from(texts) | st.text(max_size=5)
    often = st.builds(lambda text, n: text * n, piece, st.sampled_from((9, most // 20, most)))
    return st.lists(piece | piece | piece | often, max_size=30).map("".join)


def as_jsonl(rows: Any) -> str:
    return "".join(f"{as_json(row)}\n" for row in (rows if isinstance(rows, list) else [rows]))
