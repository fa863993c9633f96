"""What an explanation says, as plain data: the terminal and `--json` show the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Named facts.

    Attributes:
        title: what they are about.
        facts: (name, value), values already written out.
    """

    title: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Listing:
    """A table.

    Attributes:
        title: what it lists.
        heads: its columns.
        rows: one text a column.
        note: what a reader must know of it; empty if nothing.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Quote:
    """A text as somebody else wrote it, character for character.

    Attributes:
        title: whose it is.
        text: the text.
    """

    title: str
    text: str


@dataclass(frozen=True)
class Account:
    """What a number is made of.

    Attributes:
        title: what is explained.
        parts: in the order of reading.
        further: commands that go one step deeper.
    """

    title: str
    parts: list[Facts | Listing | Quote]
    further: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        kinds = {Facts: "facts", Listing: "listing", Quote: "quote"}
        parts = [{"kind": kinds[type(part)], **asdict(part)} for part in self.parts]
        return {"title": self.title, "parts": parts, "further": self.further}
