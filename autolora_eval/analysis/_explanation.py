"""An explanation as plain data, and its layout on a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval._text import sanitize


@dataclass(frozen=True)
class Section:
    """A part of an explanation: named values, a table, or a quoted text.

    Attributes:
        title: heading.
        values: formatted values by name.
        rows: of a table; each row has the formatted value of every column, by column name.
        text: a text character for character, such as a reply of the judge.
        note: how to read the table; empty if the column names say it.
    """

    title: str
    values: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)
    text: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """What a number of a run is computed from.

    Attributes:
        title: the cell, prompt or image that is explained.
        sections: in reading order.
        next_command: a shell command that explains one level more; empty for an image.
    """

    title: str
    sections: list[Section]
    next_command: str = ""

    def as_data(self) -> dict[str, Any]:
        """Return the explanation as data that `json.dumps` accepts."""
        return asdict(self)


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print an explanation. Prompts, names and replies are never read as markup or commands."""
    console.print(Text(sanitize(explanation.title), "bold"))
    for section in explanation.sections:
        console.print()
        console.print(Text(sanitize(section.title), "bold"))
        console.print(Padding(_renderable(section), (0, 0, 0, 2)))
        if section.note:
            console.print(Padding(Text(section.note, "dim"), (0, 0, 0, 2)))
    if explanation.next_command:
        console.print()
        console.print(Text.assemble(("Next: ", "bold"), explanation.next_command), soft_wrap=True)


def _renderable(section: Section) -> RenderableType:
    if section.text is not None:
        lines = [sanitize(line) for line in section.text.splitlines()]
        return Text("\n".join(lines) or "(empty)", "italic")
    if section.values:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in section.values.items():
            grid.add_row(Text(sanitize(name), "dim"), Text(sanitize(value)))
        return grid
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in section.rows[0] if section.rows else ():
        table.add_column(Text(column), overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(sanitize(value)) for value in row.values()))
    return table
