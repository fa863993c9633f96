"""What an image costs: function evaluations, seconds and judge calls, relative to the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from autolora_eval._sentences import Sentences
from autolora_eval._text import as_finite_float, format_fixed, format_int, point_label, truncate
from autolora_eval.analysis.scores import SECONDS_PER_IMAGE
from autolora_eval.analysis.table_layout import Table, TableCell, TableGroup, TableRow
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, row_where

METHODS_NAMED = 8
POINTS_NAMED = 4
say = Sentences("tables")


@dataclass(frozen=True)
class CostRange:
    """How many times the baseline's cost a method has over its cells, and of what."""

    noun: str
    least: float
    most: float


def baseline_row(view: RunView, row: Row) -> Row | None:
    """Return the baseline's cell that a cell is compared with, or the only one of its model."""
    base = view.baseline_cells.get(row["cell"])
    alike = [r for r in view.rows if r["model"] == row["model"]]
    named = [r for r in alike if r["cell"] == base]
    own = [r for r in alike if r["method"] == view.baseline]
    return named[0] if named else own[0] if len(own) == 1 else None


def ratio(row: Row, base: Row | None, column: str) -> float | None:
    """Return a cost relative to the baseline's; None for the baseline and for unknown costs."""
    ours, theirs = (as_finite_float((r or {}).get(column)) for r in (row, base))
    if ours is None or not theirs or base is None or base["cell"] == row["cell"]:
        return None
    return ours / theirs


def _cost_cell(text: str, row: Row, base: Row | None, column: str) -> TableCell:
    found = ratio(row, base, column)
    return TableCell(text, details=() if found is None else (f"{found:.3g} ×",))


def cost_cells(view: RunView, row: Row) -> list[TableCell]:
    """Return the NFE of a row of the result table, and its seconds if they were measured."""
    base = baseline_row(view, row)
    cells = [_cost_cell(nfe_text(row.get("nfe")), row, base, "nfe")]
    if has_seconds(view):
        text = seconds_text(row.get(SECONDS_PER_IMAGE))
        cells.append(_cost_cell(text, row, base, SECONDS_PER_IMAGE))
    return cells


def cost_heads(view: RunView) -> list[str]:
    """Return the heads of `cost_cells`."""
    return ["NFE", "s/image"] if has_seconds(view) else ["NFE"]


def has_seconds(view: RunView) -> bool:
    """Return True if seconds per image are known for at least one cell."""
    return any(as_finite_float(row.get(SECONDS_PER_IMAGE)) is not None for row in view.rows)


def nfe_text(value: object) -> str:
    """Return an NFE as text; the NFE that a sampler counts itself may be a mean."""
    found = as_finite_float(value)
    return format_int(value) if found is None or found.is_integer() else format_fixed(found, 1)


def seconds_text(value: object) -> str:
    """Return seconds with three significant digits; a dash for None."""
    found = as_finite_float(value)
    return (
        format_fixed(found, 0 if found >= 100 else 1 if found >= 10 else 2)
        if found
        else format_fixed(value)
    )


def cost_sentence(view: RunView) -> str:
    """Return what the methods cost relative to the baseline; empty if nothing is known.

    A sweep may change what an image costs: a method then has a range.
    """
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in view.rows:
        base = baseline_row(view, row)
        for column, noun in (("nfe", "NFE"), (SECONDS_PER_IMAGE, "seconds")):
            if (found := ratio(row, base, column)) is not None:
                own = ratios.setdefault(truncate(row["method"], NAME_LENGTH), {})
                own.setdefault(noun, []).append(found)
    methods = [
        (name, [CostRange(noun, min(found), max(found)) for noun, found in own.items()])
        for name, own in list(ratios.items())[:METHODS_NAMED]
    ]
    return say.cost_sentence(truncate(view.baseline, NAME_LENGTH), methods) if methods else ""


def cost_table(view: RunView) -> Table:
    """Return NFE, seconds and judge calls, with one row for all cells of a method of equal NFE."""
    columns = {"NFE per image": "nfe"}
    if has_seconds(view):
        columns["Seconds per image"] = SECONDS_PER_IMAGE
    groups = []
    for model, rows in view.models.items():
        alike: dict[tuple[str, object], list[Row]] = {}
        for row in rows:
            alike.setdefault((str(row["method"]), row.get("nfe")), []).append(row)
        lines = tuple(_cost_row(view, found, list(columns.values())) for found in alike.values())
        groups.append(TableGroup(truncate(model, NAME_LENGTH), lines))
    heads = (*columns, "Total NFE", *(["Judge calls"] if view.judged else []))
    swept = any(view.points.values())
    caption = say.cost(swept, has_seconds(view), bool(view.judged))
    return Table(heads, tuple(groups), caption=caption)


def _cost_row(view: RunView, rows: list[Row], columns: list[str]) -> TableRow:
    """Return the costs of cells of one method with equal NFE."""
    first, base = rows[0], baseline_row(view, rows[0])
    cells = []
    for column in columns:
        known = [value for row in rows if (value := as_finite_float(row.get(column))) is not None]
        mean = sum(known) / len(known) if known else None
        text = nfe_text(mean) if column == "nfe" else seconds_text(mean)
        cells.append(_cost_cell(text, first, base, column))
    totals = []
    for row in rows:
        nfe, images = as_finite_float(row.get("nfe")), as_finite_float(row.get("n_images"))
        totals.append(None if nfe is None or images is None else nfe * images)
    cells.append(TableCell(format_int(_sum(totals))))
    if view.judged:
        cells.append(TableCell(format_int(_sum([_calls(view, row["cell"]) for row in rows]))))
    return TableRow((_cost_label(view, rows),), tuple(cells))


def _cost_label(view: RunView, rows: list[Row]) -> str:
    if len(rows) == 1:
        return view.labels[rows[0]["cell"]]
    points = [point_label(view.points.get(row["cell"], {})) for row in rows]
    which = "; ".join(points) if len(rows) <= POINTS_NAMED and all(points) else None
    return f"{truncate(rows[0]['method'], NAME_LENGTH)} ({which or f'{len(rows)} cells'})"


def _sum(values: list[float | None]) -> float | None:
    """Return the sum of values; None if one of them is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _calls(view: RunView, cell: str) -> float | None:
    """Return how many replies the judge was asked for."""
    score = view.judged[0].column
    return as_finite_float(row_where(view.reliability, score=score, cell=cell).get("n_asked"))
