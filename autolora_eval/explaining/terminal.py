"""An account on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval.explaining.account import Account, Facts, Listing, Quote
from autolora_eval.text import clean


def show(account: Account, console: Console) -> None:
    """Print an account. Texts of others are shown as they are, never as markup or commands."""
    console.print(Text(clean(account.title), "bold"))
    for part in account.parts:
        console.print()
        console.print(Text(clean(part.title), "bold"))
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
        grid.add_row(Text(clean(name), "dim"), Text(clean(value)))
    return grid


def _listing(part: Listing) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in part.heads:
        table.add_column(Text(head), overflow="fold")
    for row in part.rows:
        table.add_row(*(Text(clean(value)) for value in row))
    return table


def _quote(part: Quote) -> Text:
    """Return the lines of a text, each without what a terminal would obey."""
    return Text("\n".join(clean(line) for line in part.text.splitlines()) or "(empty)", "italic")
