"""What an explanation says, as plain data: the terminal and `--json` show the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval._text import sanitize


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
class Explanation:
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


# --------------------
# An account on the terminal.


def show(account: Explanation, console: Console) -> None:
    """Print an account. Texts of others are shown as they are, never as markup or commands."""
    console.print(Text(sanitize(account.title), "bold"))
    for part in account.parts:
        console.print()
        console.print(Text(sanitize(part.title), "bold"))
        if isinstance(part, Facts):
            console.print(Padding(_facts(part), (0, 0, 0, 2)))
        elif isinstance(part, Listing):
            console.print(Padding(_listing(part), (0, 0, 0, 2)))
            if part.note:
                console.print(Padding(Text(part.note, "dim"), (0, 0, 0, 2)))
        else:
            console.print(Padding(_quote(part), (0, 0, 0, 2)))
    for command in account.further:
        console.print()
        console.print(Text.assemble(("deeper: ", "bold"), command), soft_wrap=True)


def _facts(part: Facts) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in part.facts:
        grid.add_row(Text(sanitize(name), "dim"), Text(sanitize(value)))
    return grid


def _listing(part: Listing) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in part.heads:
        table.add_column(Text(head), overflow="fold")
    for row in part.rows:
        table.add_row(*(Text(sanitize(value)) for value in row))
    return table


def _quote(part: Quote) -> Text:
    """Return the lines of a text, each without what a terminal would obey."""
    return Text("\n".join(sanitize(line) for line in part.text.splitlines()) or "(empty)", "italic")
