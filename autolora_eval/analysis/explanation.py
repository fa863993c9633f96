"""An explanation as `explain` returns and prints it, and how it shows the files of models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval._text import NOT_RECORDED, sanitize
from autolora_eval.runs.records import ModelRecord, SourceRecord


def model_inputs(model: ModelRecord) -> dict[str, object]:
    """Return each part of a model with its files; None for a part that it does not have."""
    return {
        "pipeline": source_text(model.pipeline),
        "configuration": model.config and source_text(model.config),
        "VAE": model.vae and source_text(model.vae),
        **_loras(model),
    }


def _loras(model: ModelRecord) -> dict[str, str]:
    """Return each LoRA with its file; several with their scales."""
    if not model.loras:
        return {"LoRA": "none"}
    if len(model.loras) == 1:
        return {"LoRA": source_text(model.loras[0])}
    return {
        f"LoRA {number}": join(
            source_text(lora),
            f"scale {lora.scale:g}",
            "part of the base model" if lora.part_of_base else None,
        )
        for number, lora in enumerate(model.loras, 1)
    }


def source_text(source: SourceRecord | None) -> str:
    """Return where a model's files come from, with their hash or commit."""
    if source is None:
        return NOT_RECORDED
    if not source.used:
        return join(source.name, "not used: the images were imported")
    known = join(**{"SHA-256": source.sha256, "commit": source.commit})
    if not known and source.model_extra:
        known = json.dumps(source.model_extra, ensure_ascii=False, sort_keys=True)
    return join(source.name, known)


def join(*values: object, **named: object) -> str:
    """Join the values that are known, the named ones with their names; empty if none is."""
    texts = [str(value) for value in values if value]
    return ", ".join([*texts, *(f"{name} {value}" for name, value in named.items() if value)])


@dataclass(frozen=True)
class Section:
    """A part of an explanation: named values, a table, or a quoted text.

    Attributes:
        values: formatted values by name.
        rows: of a table; each row has the formatted value of every column, by column name.
        text: a text character for character, such as a reply of the judge.
        note: how to read the table.
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
