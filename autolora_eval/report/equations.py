"""Equations as plain text cut into what both templates can set as mathematics. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["letter", "words", "number", "operator"]
_SCRIPT = r"(?:\{[^{}]*\}|[^\W_]+)"
_ATOM = re.compile(
    r"(?P<words>\s*[^\W\d_]{2,}(?:\s+[^\W\d_]{2,})*\s*)|(?P<letter>[^\W\d_]|[∅∞])"
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<blank>\s+)|(?P<operator>.)"
)
_KINDS: dict[str, Kind] = {"words": "words", "letter": "letter", "number": "number"}
_SCRIPTS = re.compile(rf"(?P<place>[\^_])(?P<text>{_SCRIPT})")


@dataclass(frozen=True)
class Atom:
    """A sign of an equation, with what is lowered and raised beside it.

    Attributes:
        kind: a single letter is a variable; words are set upright, with their blanks.
        text: as it is shown.
        sub: lowered.
        sup: raised.
    """

    kind: Kind
    text: str
    sub: list[Atom] = field(default_factory=list)
    sup: list[Atom] = field(default_factory=list)


def atoms(equation: str) -> list[Atom]:
    """Cut an equation into signs, each with its `^{…}`, `^x`, `_{…}` and `_x`.

    Anything else stays as it is written: an equation of a plugin may hold any text.
    """
    found: list[Atom] = []
    at = 0
    while at < len(equation):
        match = _ATOM.match(equation, at)
        assert match is not None  # its last alternative is any character; blanks hold the others
        at = match.end()
        if match.lastgroup == "blank":
            continue
        scripts: dict[str, list[Atom]] = {}
        # Blanks before a script, as in "the ^", keep it from belonging to what is before them.
        while match[0][-1:].strip() and (more := _SCRIPTS.match(equation, at)):
            if more["place"] in scripts:
                break
            scripts[more["place"]] = _script(more["text"])
            at = more.end()
        kind = _KINDS.get(match.lastgroup or "", "operator")
        text = re.sub(r"\s+", " ", match[0])
        found.append(Atom(kind, text, scripts.get("_", []), scripts.get("^", [])))
    return found


def _script(text: str) -> list[Atom]:
    return atoms(text.removeprefix("{").removesuffix("}"))
