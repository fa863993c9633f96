"""What the laws say of a guider, on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_eval.guidance.laws.all_laws import LawResult

_MARKS = {
    "passed": ("passed", "green"),
    "failed": ("FAILED", "bold red"),
    "not applicable": ("–", "dim"),
}


def show_laws(name: str, results: Iterable[LawResult], console: Console) -> None:
    """Print a row a law: its name, whether it is kept, and what is wrong or why it cannot tell."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Law", overflow="fold", max_width=34)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    counts: Counter[str] = Counter()
    for result in results:
        counts[result.status] += 1
        mark, style = _MARKS[result.status]
        shade = "dim" if result.status == "not applicable" else ""
        law = result.name.replace("_", " ")
        table.add_row(Text(law, shade), Text(mark, style), Text(result.message, shade))
    console.print(table)
    parts = [f"{counts[status]} {status}" for status in _MARKS if counts[status]]
    console.print(Text.assemble((name, "bold"), f": {', '.join(parts)}"), soft_wrap=True)
