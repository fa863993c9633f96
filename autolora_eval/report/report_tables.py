"""The tables of a report: results, published values, differences, and numbers of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from autolora_eval._text import (
    DASH,
    Sentences,
    as_finite_float,
    format_fixed,
    format_int,
    format_interval,
    format_p_value,
    sanitize,
    truncate,
)
from autolora_eval.analysis import table_layout
from autolora_eval.analysis.metrics import Metric
from autolora_eval.analysis.table_layout import Table, TableCell, TableGroup, TableRow
from autolora_eval.report.cost_summary import cost_cells, cost_columns
from autolora_eval.report.figures._style import in_parts
from autolora_eval.report.findings import best_of_each_method, deciding_metric, loss
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, text_of

# The most columns with intervals that fit on an A4 page.
METRICS_PER_TABLE = 6
# The most rows that fit on the first page together with the figure and the findings.
ROWS_ON_FIRST_PAGE = 9
# In longer tables, rows with equal values are merged.
ROWS_IN_FULL = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
say = Sentences("tables")


# ---- Results


def first_table(view: RunView) -> Table:
    """Return the table of the first page: all cells if they are few, else the best per method.

    It has as many metrics as fit the width of a page.
    """
    part = view.metrics[:METRICS_PER_TABLE]
    if len(view.rows) <= ROWS_ON_FIRST_PAGE:
        return _by_cell(view, part, view.rows)
    metric = deciding_metric(view)
    rows = _best_rows(view, metric)
    return _by_cell(
        view, part, rows, say.chosen(len(rows), len(view.rows), metric.label, view.is_swept)
    )


def _best_rows(view: RunView, metric: Metric) -> list[Row]:
    """Return the best cell of each method, as many as there is room for, the baseline's first."""
    chosen: list[Row] = []
    of_each = max(1, ROWS_ON_FIRST_PAGE // len(view.models))
    for rows in view.models.values():
        best = best_of_each_method(rows, metric)
        ranked = sorted(best, key=lambda r: (r["method"] != view.baseline, loss(r, metric)))
        kept = [row["cell"] for row in ranked[: min(of_each, ROWS_ON_FIRST_PAGE - len(chosen))]]
        chosen += [row for row in best if row["cell"] in kept]
    return chosen


def result_tables(view: RunView) -> list[Table]:
    """Return the results for which the first page has no room.

    A sweep is laid out as the paper's Table 1, with one table per metric. Other runs have one row
    per cell.
    """
    if is_by_point(view):
        return _by_point(view)
    parts = in_parts(view.metrics, METRICS_PER_TABLE)
    if len(parts) == 1 and len(view.rows) <= ROWS_ON_FIRST_PAGE:
        return []
    return [_by_cell(view, part, view.rows) for part in parts]


def is_by_point(view: RunView) -> bool:
    """Return True if the results are laid out by sweep point."""
    return len(view.rows) > ROWS_ON_FIRST_PAGE and view.is_swept


def _by_cell(view: RunView, part: Sequence[Metric], rows: Sequence[Row], chosen: str = "") -> Table:
    best = {
        (model, metric): table_layout.best_text([row.get(metric.column) for row in own], metric)
        for model, own in view.models.items()
        for metric in part
    }

    def cells(row: Row) -> list[TableCell]:
        values = [_value(view, row, m, best[row["model"], m]) for m in part]
        return values + cost_cells(view, row)

    groups = group_rows(view, cells, rows)
    costs = ("NFE", "s/image")[: len(cost_columns(view))]
    caption = say.by_cell(
        metrics=part,
        unit=unit_name(view.compared),
        several_models=len(groups) > 1,
        has_seconds=len(costs) > 1,
        swept=view.is_swept,
        n_cells=len(view.rows),
        chosen=chosen,
        without_product=[m.label for m in part if m.kind == "score" and not m.has_product],
    )
    heads = (*map(table_layout.metric_head, part), *costs)
    return Table(heads, groups, caption=sanitize(caption), footnotes=footnotes(groups))


def _value(view: RunView, row: Row, metric: Metric, best: str | None) -> TableCell:
    cell = table_layout.metric_cell(row, metric, best)
    if cell.text == DASH:
        return TableCell(DASH, why=say.no_value(view.why_missing(row["cell"], metric)))
    return cell if cell.interval else replace(cell, details=("no interval",))


def _by_point(view: RunView) -> list[Table]:
    names = dict.fromkeys(name for point in view.points.values() for name in point)
    sweep = {
        name: list(dict.fromkeys(p[name] for p in view.points.values() if name in p))
        for name in names
    }
    results = table_layout.Results(view.rows, view.metrics, sweep, view.points, view.reasons)
    layout = table_layout.by_point(results)
    notes = [sanitize(note) for note in layout.notes]
    # Other tables of the report have the counts of images and function evaluations.
    return [
        _point_table(view, table, metric, notes)
        for table, metric in zip(layout.tables, view.metrics, strict=False)
    ]


def _point_table(view: RunView, table: Table, metric: Metric, notes: Sequence[str]) -> Table:
    """Return a table of the layout with the model in the group's name instead of a column."""
    groups = []
    for group in table.groups:
        lines = []
        for row in group.rows:
            label = " · ".join(truncate(text, NAME_LENGTH) for text in row.labels[1:])
            cells = [
                replace(cell, published="", difference="") if cell.published == DASH else cell
                for cell in row.cells
            ]
            lines.append(TableRow((label,), tuple(cells)))
        groups.append(TableGroup(truncate(group.name, NAME_LENGTH), tuple(lines)))
    published = any(row.has_published for group in table.groups for row in group.rows)
    name, unit = sanitize(metric.display_name), unit_name(view.compared)
    return replace(
        table,
        columns=tuple(truncate(column, NAME_LENGTH) for column in table.columns),
        groups=tuple(groups),
        labels=(" · ".join(truncate(label, NAME_LENGTH) for label in table.labels[1:]),),
        caption=say.by_point(name, table.labels[1:], unit, published, notes),
    )


# ---- Other tables


def published_tables(view: RunView) -> list[Table]:
    """Return the published values with ours beside them, unless the results already show them."""
    part = [m for m in view.metrics if _has_values(view, f"{m.column}_published")]

    def cell(row: Row, metric: Metric) -> TableCell:
        ours = as_finite_float(row.get(metric.column))
        published = as_finite_float(row.get(f"{metric.column}_published"))
        if published is None:
            return TableCell(DASH)
        details = [f"{format_fixed(ours)} here"]
        if ours is not None:
            details.append(f"({format_fixed(ours - published, signed=True)})")
        return TableCell(format_fixed(published), details=tuple(details))

    if not part or is_by_point(view):
        return []
    return [_metric_table(view, say.published(), part, cell, view.rows)]


def _has_values(view: RunView, column: str) -> bool:
    return any(as_finite_float(row.get(column)) is not None for row in view.rows)


def difference_tables(view: RunView) -> list[Table]:
    """Return the paired differences from the baseline; empty if nothing was compared."""
    if not view.comparisons:
        return []

    def cell(row: Row, metric: Metric) -> TableCell:
        if row["method"] == view.baseline:
            return TableCell("baseline")
        found = view.comparisons.get((row["cell"], metric.column))
        if found is None:
            return TableCell(DASH)
        within = format_interval(*found.interval, signed=True)
        details = (format_p_value(found.p),) if found.p is not None else ()
        return TableCell(format_fixed(found.difference, signed=True), within, details=details)

    caption = say.differences(truncate(view.baseline, NAME_LENGTH), view.is_swept)
    many = len(view.rows) > ROWS_IN_FULL
    rows = [row for row in view.rows if not many or row["method"] != view.baseline]
    parts = in_parts(view.metrics, METRICS_PER_TABLE)
    return [_metric_table(view, caption, part, cell, rows) for part in parts]


def _metric_table(
    view: RunView,
    caption: str,
    part: Sequence[Metric],
    cell: Callable[[Row, Metric], TableCell],
    rows: Sequence[Row],
) -> Table:
    groups = group_rows(view, lambda row: [cell(row, metric) for metric in part], rows)
    return Table(tuple(map(table_layout.metric_head, part)), groups, caption=caption)


def accounting_table(view: RunView) -> Table:
    """Return how many images and prompts each row is based on, and the products by prompt."""
    counted = {
        "n_images": "Images",
        "n_missing": "Missing",
        "n_unscored": "Unscored",
        "n_undefined_prompts": "Undefined prompts",
    }
    by_prompt = {
        f"{m.column}_prompt_mean": f"{m.label} by prompt"
        for m in view.metrics
        if m.kind == "product" and _has_values(view, f"{m.column}_prompt_mean")
    }

    def cells(row: Row) -> list[TableCell]:
        counts = [TableCell(format_int(row.get(column))) for column in counted]
        return counts + [TableCell(format_fixed(row.get(column))) for column in by_prompt]

    groups = group_rows(view, cells)
    if not by_prompt:
        groups = merge_equal_rows(groups)
    heads = (*counted.values(), *by_prompt.values())
    return Table(heads, groups, caption=say.accounting(bool(by_prompt)))


# ---- Shared by all tables of a report


def unit_name(rows: Sequence[Row]) -> str:
    """Return the unit of the intervals of some rows; empty if they have several units."""
    units = {unit for row in rows if (unit := text_of(row.get("unit")))}
    return truncate(units.pop(), 20) if len(units) == 1 else ""


def group_rows(
    view: RunView,
    cells: Callable[[Row], Iterable[TableCell]],
    rows: Sequence[Row] | None = None,
) -> tuple[TableGroup, ...]:
    """Return one line per cell, or per one of `rows`, grouped by model."""
    groups = []
    for model, own in table_layout.group_by_model(view.rows if rows is None else rows).items():
        lines = tuple(TableRow((view.labels[row["cell"]],), tuple(cells(row))) for row in own)
        groups.append(TableGroup(truncate(model, NAME_LENGTH), lines))
    return tuple(groups)


def footnotes(groups: Sequence[TableGroup]) -> dict[str, str]:
    """Return a letter for each reason of a missing value, in order of appearance."""
    cells = (cell for group in groups for row in group.rows for cell in row.cells)
    reasons = dict.fromkeys(cell.why for cell in cells if cell.why)
    return {why: _LETTERS[n % 26] * (n // 26 + 1) for n, why in enumerate(reasons)}


def merge_equal_rows(groups: Sequence[TableGroup]) -> tuple[TableGroup, ...]:
    """Return groups with the most frequent cells of a long group as one row."""
    merged = []
    for group in groups:
        rows = group.rows
        if len(rows) > ROWS_IN_FULL:
            cells, n = Counter(row.cells for row in rows).most_common(1)[0]
            kept = [row for row in rows if row.cells != cells]
            rows = (*kept, TableRow((say.same_rows(n, bool(kept)),), cells))
        merged.append(replace(group, rows=rows))
    return tuple(merged)
