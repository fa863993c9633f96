"""What an image costs: function evaluations, seconds and judge calls, relative to the baseline."""

from __future__ import annotations

import math
from statistics import fmean

from autolora_eval._text import (
    Sentences,
    as_finite_float,
    format_fixed,
    format_int,
    format_nfe,
    point_label,
    truncate,
)
from autolora_eval.analysis.scores import SECONDS_PER_IMAGE
from autolora_eval.analysis.table_layout import Table, TableCell, TableGroup, TableRow
from autolora_eval.report.figures._base import join_points
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, grouped, row_where

METHODS_NAMED = 8
POINTS_NAMED = 4
say = Sentences("tables")


def cost_columns(view: RunView) -> dict[str, str]:
    """Return the columns of costs that are known, each with its unit."""
    known = any(as_finite_float(row.get(SECONDS_PER_IMAGE)) is not None for row in view.rows)
    return {"nfe": "NFE"} | ({SECONDS_PER_IMAGE: "seconds"} if known else {})


def cost_cells(view: RunView, row: Row) -> list[TableCell]:
    """Return the NFE of a row of the result table, and its seconds if they were measured."""
    return [_cost_cell(view, [row], column) for column in cost_columns(view)]


def _cost_cell(view: RunView, rows: list[Row], column: str) -> TableCell:
    """Return the mean cost of some rows, and the range of what it is relative to the baseline's."""
    known = [value for row in rows if (value := as_finite_float(row.get(column))) is not None]
    ratios = [found for row in rows if (found := ratio(view, row, column)) is not None]
    ends = dict.fromkeys(f"{end:.3g}" for end in (min(ratios), max(ratios))) if ratios else ()
    details = (f"{' to '.join(ends)} ×",) if ends else ()
    return TableCell(_cost_text(column, fmean(known) if known else None), details=details)


def _cost_text(column: str, value: float | None) -> str:
    """Return a cost as text; seconds have three significant digits."""
    if column == "nfe":
        return format_nfe(value)
    return format_fixed(value, max(0, 2 - math.floor(math.log10(value))) if value else 3)


def ratio(view: RunView, row: Row, column: str) -> float | None:
    """Return a cost relative to the baseline's.

    None for the baseline, for unknown costs, and for seconds of different machines.
    """
    base = _baseline_row(view, row) or row
    if column == SECONDS_PER_IMAGE and view.hardware(row["cell"]) != view.hardware(base["cell"]):
        return None
    ours, theirs = as_finite_float(row.get(column)), as_finite_float(base.get(column))
    if ours is None or not theirs or base["cell"] == row["cell"]:
        return None
    return ours / theirs


def _baseline_row(view: RunView, row: Row) -> Row | None:
    """Return the baseline's cell that a cell is compared with, or the only one of its model."""
    base, alike = view.baseline_cells.get(row["cell"]), view.models[row["model"]]
    named = [r for r in alike if r["cell"] == base]
    own = [r for r in alike if r["method"] == view.baseline]
    return named[0] if named else own[0] if len(own) == 1 else None


def cost_sentence(view: RunView) -> str:
    """Return what the methods cost relative to the baseline; empty if nothing is known.

    A sweep may change what an image costs: a method then has a range.
    """
    methods = []
    for (method,), rows in grouped(view.rows, "method").items():
        ranges = []
        for column, unit in cost_columns(view).items():
            found = [r for row in rows if (r := ratio(view, row, column)) is not None]
            ranges += [(unit, min(found), max(found))] if found else []
        methods += [(truncate(method, NAME_LENGTH), ranges)] if ranges else []
    baseline = truncate(view.baseline, NAME_LENGTH)
    shown, n_more = methods[:METHODS_NAMED], max(0, len(methods) - METHODS_NAMED)
    return say.cost_sentence(baseline, shown, n_more) if methods else ""


def cost_table(view: RunView) -> Table:
    """Return NFE, seconds and judge calls, with one row for all cells of a method of equal NFE."""
    groups = []
    for model, rows in view.models.items():
        alike = grouped(rows, "method", "nfe").values()
        lines = tuple(_cost_row(view, found) for found in alike)
        groups.append(TableGroup(truncate(model, NAME_LENGTH), lines))
    units = [unit[:1].upper() + unit[1:] for unit in cost_columns(view).values()]
    judge = ["Judge calls"] if view.judged else []
    heads = (*(f"{unit} per image" for unit in units), "Total NFE", *judge)
    caption = say.cost(view.is_swept, len(view.rows), len(units) > 1, bool(view.judged))
    return Table(heads, tuple(groups), caption=caption)


def _cost_row(view: RunView, rows: list[Row]) -> TableRow:
    cells = [_cost_cell(view, rows, column) for column in cost_columns(view)]
    totals = []
    for row in rows:
        nfe, images = as_finite_float(row.get("nfe")), as_finite_float(row.get("n_images"))
        totals.append(None if nfe is None or images is None else nfe * images)
    cells.append(TableCell(format_int(_sum(totals))))
    if view.judged:
        score = view.judged[0].column
        found = [row_where(view.reliability, score=score, cell=row["cell"]) for row in rows]
        calls = _sum([as_finite_float(row.get("n_asked")) for row in found])
        cells.append(TableCell(format_int(calls)))
    return TableRow((_cost_label(view, rows),), tuple(cells))


def _cost_label(view: RunView, rows: list[Row]) -> str:
    if len(rows) == 1:
        return view.labels[rows[0]["cell"]]
    points = [point_label(view.points.get(row["cell"], {})) for row in rows]
    which = join_points(points) if len(rows) <= POINTS_NAMED and all(points) else None
    return f"{truncate(rows[0]['method'], NAME_LENGTH)} ({which or f'{len(rows)} cells'})"


def _sum(values: list[float | None]) -> float | None:
    """Return the sum of values; None if one of them is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
