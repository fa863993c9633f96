"""The doctor's findings as text: a verdict each, what speaks for it, and what to do otherwise."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_eval.serving.doctor import Diagnosis, Finding


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print which judges can run here and what the others lack."""
    console.print(Text.assemble(("Judges on this machine", "bold"), f": {diagnosis.machine}"))
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        verdict = Text("can run", "green") if finding.runs else Text("cannot", "red")
        table.add_row(verdict, _told(finding))
    console.print(table)


def _told(finding: Finding) -> Text:
    text = Text(finding.judge, "bold")
    for need in finding.needs:
        mark = "yes: " if need.met else "no: "
        text.append("\n")
        text.append(mark, "green not bold" if need.met else "red not bold")
        text.append(need.fact, "not bold")
        if not need.met and need.step:
            text.append(f"\n→ {need.step}", "not bold")
    return text
