"""What `autolora-eval methods` prints: a list, or all that is known of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval.guidance.catalogue import (
    BUILT_IN,
    INSTALLED,
    UPSTREAM_GROUP,
    Listed,
    ListedParameter,
)
from autolora_eval.text import of

_HEADS = {
    BUILT_IN: "Built in",
    UPSTREAM_GROUP: "Guiders of diffusers, by the dotted path diffusers.guiders.NAME",
    INSTALLED: "Of installed packages",
}


def as_json(found: Iterable[Listed]) -> str:
    """Return methods as indented JSON: a list of objects with the fields of `Listed`."""
    return json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False)


def show_list(found: Iterable[Listed], console: Console) -> None:
    """Print each method in a few lines: what it is called, does, costs and takes."""
    for group, members in groupby(found, key=lambda one: one.group):
        console.print(Text(_HEADS.get(group, ""), "bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for one in members:
            name = one.name.rpartition(".")[2] if group == UPSTREAM_GROUP else one.name
            grid.add_row(Text(name, "bold"), _briefly(one))
        console.print(Padding(grid, (0, 0, 1, 2)))
    console.print(
        "autolora-eval methods NAME tells all of one; any other guider goes by its dotted path.",
        markup=False,
        highlight=False,
    )


def _briefly(one: Listed) -> Text:
    if one.problem:
        return Text(one.problem, "red")
    title = one.display_name if one.kind == "guider" else f"{one.display_name}, a sampler"
    lines = [f"{title}: {_passes(one)}"]
    if one.group == UPSTREAM_GROUP:
        lines[0] += f"; {one.supports.split(': ')[0]}"
        return Text(lines[0])
    lines += [one.summary] if one.summary else []
    taken = ", ".join(parameter.name for parameter in one.parameters)
    lines += [f"takes {taken}"] if taken else []
    lines += [f"from {one.source}"] if one.group == INSTALLED else []
    return Text("\n").join([Text(lines[0]), *(Text(line, "dim") for line in lines[1:])])


def _passes(one: Listed) -> str:
    if one.passes is None:
        return "passes known once it has run"
    least, most = one.passes
    return f"{of(least, 'pass', 'passes') if least == most else f'{least} to {most} passes'} a step"


def show_details(found: Iterable[Listed], console: Console) -> None:
    """Print all that is known of methods."""
    for one in found:
        title = Text.assemble((one.name, "bold"), f"  {one.display_name}")
        console.print(title)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        facts = {
            "problem": one.problem,
            "does": one.summary,
            "rule": one.equation,
            "costs": "" if one.problem and not one.display_name else _passes(one),
            "works on": one.supports,
            "source": one.source,
            "note": one.notes,
        }
        for name, text in facts.items():
            if text:
                grid.add_row(name, Text(text, "red" if name == "problem" else ""))
        for n, parameter in enumerate(one.parameters):
            grid.add_row("" if n else "takes", _parameter(parameter))
        console.print(Padding(grid, (0, 0, 1, 2)))


def _parameter(parameter: ListedParameter) -> Text:
    kind = f": {parameter.type}" if parameter.type else ""
    default = "  must be given" if parameter.default is None else f" = {parameter.default}"
    return Text.assemble(parameter.name, (f"{kind}{default}", "dim"))
