"""The tables of a report: results, published values, differences, and what each row rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from autolora_eval._sentences import Sentences
from autolora_eval._text import (
    DASH,
    as_finite_float,
    format_fixed,
    format_int,
    format_interval,
    format_p_value,
    sanitize,
    truncate,
)
from autolora_eval.analysis import table_layout
from autolora_eval.analysis.sentences import Metric
from autolora_eval.analysis.table_layout import (
    Footnote,
    Table,
    TableCell,
    TableGroup,
    TableRow,
    best_text,
    metric_cell,
    metric_head,
)
from autolora_eval.report.cost_summary import cost_cells, cost_heads, has_seconds
from autolora_eval.report.findings import best_of_each_method, deciding_metric
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView, text_of

# An A4 page holds no more columns with an interval each.
METRICS_PER_TABLE = 6
# More rows than these do not fit the first page beside figure and findings.
ROWS_ON_FIRST_PAGE = 9
# In a longer table, rows with the same values become one.
ROWS_IN_FULL = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
say = Sentences("tables")


class Footnotes:
    """Gives every distinct text a letter, in order of appearance."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, text: str) -> str:
        """Return the letter of a footnote; empty for an empty text."""
        n = len(self._letters)
        letter = _LETTERS[n % 26] * (n // 26 + 1)
        return self._letters.setdefault(text, letter) if text else ""

    def listed(self) -> tuple[Footnote, ...]:
        """Return the footnotes in order."""
        return tuple(Footnote(letter, text) for text, letter in self._letters.items())


# ---- Results


def first_table(view: RunView) -> Table:
    """Return the table of the first page: all cells if they are few, else the best per method.

    It has as many metrics as fit the width of a page.
    """
    part = in_parts(view.metrics)[0]
    if len(view.rows) <= ROWS_ON_FIRST_PAGE:
        return _by_cell(view, view.models, part)
    metric = deciding_metric(view)
    chosen = _best_of_models(view, metric)
    n = sum(map(len, chosen.values()))
    return _by_cell(view, chosen, part, say.chosen(n, len(view.rows), metric.label))


def _best_of_models(view: RunView, metric: Metric) -> dict[str, list[Row]]:
    """Return the best cell of each method, as many as there is room for, the baseline's first."""
    sign = -1.0 if metric.higher_is_better else 1.0

    def rank(row: Row) -> tuple[bool, float]:
        return row["method"] != view.baseline, sign * (
            as_finite_float(row.get(metric.column)) or 0.0
        )

    room = ROWS_ON_FIRST_PAGE
    chosen: dict[str, list[Row]] = {}
    for model, rows in view.models.items():
        best = best_of_each_method(rows, metric)
        kept = sorted(best, key=rank)[:room]
        if kept:
            chosen[model] = [row for row in best if row in kept]
        room -= len(kept)
    return chosen


def result_tables(view: RunView) -> list[Table]:
    """Return the results that the first page has no room for.

    A sweep is laid out as the paper's Table 1, with one table per metric. Other runs have one row
    per cell.
    """
    if is_by_point(view):
        return _by_point(view)
    parts = in_parts(view.metrics)
    if len(parts) == 1 and len(view.rows) <= ROWS_ON_FIRST_PAGE:
        return []
    return [_by_cell(view, view.models, part) for part in parts]


def is_by_point(view: RunView) -> bool:
    """Return True if the results are laid out by sweep point."""
    return len(view.rows) > ROWS_ON_FIRST_PAGE and any(view.points.values())


def _by_cell(
    view: RunView, models: Mapping[str, Sequence[Row]], part: Sequence[Metric], chosen: str = ""
) -> Table:
    footnotes = Footnotes()
    groups = []
    for model, rows in models.items():
        best = {metric.column: best_text([row.get(metric.column) for row in rows], metric)
                for metric in part}  # fmt: skip
        lines = []
        for row in rows:
            values = [_value(view, row, m, best[m.column], footnotes) for m in part]
            lines.append(_table_row(view.labels[row["cell"]], [*values, *cost_cells(view, row)]))
        groups.append(TableGroup(truncate(model, NAME_LENGTH), tuple(lines)))
    caption = say.by_cell(
        part, unit_name(view.compared), len(models) > 1, has_seconds(view), is_swept(view), chosen
    )
    heads = (*map(metric_head, part), *cost_heads(view))
    return Table(heads, tuple(groups), caption=sanitize(caption), footnotes=footnotes.listed())


def _value(
    view: RunView, row: Row, metric: Metric, best: str | None, footnotes: Footnotes
) -> TableCell:
    cell = metric_cell(row, metric, best)
    if cell.text == DASH:
        letter = footnotes.letter(_why_missing(view, row, metric))
        return TableCell(DASH, footnote=letter)
    return cell if cell.interval else replace(cell, details=("no interval",))


def _why_missing(view: RunView, row: Row, metric: Metric) -> str:
    """Return why a cell lacks a metric; a product lacks what its factors lack."""
    cell = row["cell"]
    if metric.kind == "extra":
        reason = view.why_undefined(cell, metric.column)
        return say.no_metric(sanitize(metric.display_name), reason)
    reasons = []
    no_diversity = metric.kind == "product" and as_finite_float(row.get("diversity")) is None
    if metric.kind == "diversity" or no_diversity:
        reasons.append(say.no_diversity(view.why_undefined(cell)))
    score = metric.column.removeprefix("div_")
    if metric.kind != "diversity" and as_finite_float(row.get(score)) is None:
        reasons.append(say.no_score(view.why_unscored(cell)))
    return "; ".join(reasons) or "reason not recorded"


def _by_point(view: RunView) -> list[Table]:
    names = dict.fromkeys(name for point in view.points.values() for name in point)
    sweep = {
        name: list(dict.fromkeys(p[name] for p in view.points.values() if name in p))
        for name in names
    }
    reasons = {
        (row["cell"], metric.column): _why_missing(view, row, metric)
        for row in view.rows
        for metric in view.metrics
        if as_finite_float(row.get(metric.column)) is None
    }
    results = table_layout.Results(view.rows, view.metrics, sweep, view.points, reasons)
    layout = table_layout.by_point(results)
    notes = [sanitize(note) for note in layout.notes]
    # Counts of images and function evaluations stand in other tables of the report.
    return [
        _point_table(view, table, metric, notes)
        for table, metric in zip(layout.tables, view.metrics, strict=False)
    ]


def _point_table(view: RunView, table: Table, metric: Metric, notes: Sequence[str]) -> Table:
    """Return a table of the layout with the model in the group's name instead of a column."""
    groups = [
        TableGroup(
            truncate(group.name, NAME_LENGTH),
            tuple(
                _table_row(" · ".join(truncate(text, NAME_LENGTH) for text in row.labels[1:]),
                           map(_without_empty_published, row.cells))
                for row in group.rows
            ),
        )
        for group in table.groups
    ]  # fmt: skip
    published = any(row.has_published for group in table.groups for row in group.rows)
    name = sanitize(metric.display_name)
    unit = unit_name(view.compared)
    return replace(
        table,
        columns=tuple(truncate(column, NAME_LENGTH) for column in table.columns),
        groups=tuple(groups),
        labels=("",),
        caption=say.by_point(name, table.labels[1:], unit, published, notes),
    )


def _without_empty_published(cell: TableCell) -> TableCell:
    return cell if cell.published != DASH else replace(cell, published="", difference="")


# ---- Other tables


def published_table(view: RunView) -> Table | None:
    """Return the published values, and ours beside them; None if there are no published values."""
    part = [
        metric
        for metric in view.metrics
        if any(as_finite_float(r.get(f"{metric.column}_published")) is not None for r in view.rows)
    ]

    def cell(row: Row, metric: Metric) -> TableCell:
        column = metric.column
        ours, published = (
            as_finite_float(row.get(column)),
            as_finite_float(row.get(f"{column}_published")),
        )
        if published is None:
            return TableCell(DASH)
        difference = None if ours is None else ours - published
        details = [f"{format_fixed(ours)} here"]
        details += [f"({format_fixed(difference, signed=True)})"] if difference is not None else []
        return TableCell(format_fixed(published), details=tuple(details))

    return _metric_table(view, say.published(), part, cell) if part else None


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

    caption = say.differences(truncate(view.baseline, NAME_LENGTH), is_swept(view))
    rows = view.rows
    if len(rows) > ROWS_IN_FULL:
        rows = [row for row in rows if row["method"] != view.baseline]
    return [_metric_table(view, caption, part, cell, rows) for part in in_parts(view.metrics)]


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
        if m.kind == "product"
        and any(
            as_finite_float(row.get(f"{m.column}_prompt_mean")) is not None for row in view.rows
        )
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


def in_parts(metrics: Sequence[Metric]) -> list[Sequence[Metric]]:
    """Return metrics in parts that fit the width of a page."""
    return [metrics[n : n + METRICS_PER_TABLE] for n in range(0, len(metrics), METRICS_PER_TABLE)]


def unit_name(rows: Sequence[Row]) -> str:
    """Return what the intervals of some rows are taken over; empty if not all have one unit."""
    units = {unit for row in rows if (unit := text_of(row.get("unit")))}
    return truncate(units.pop(), 20) if len(units) == 1 else ""


def is_swept(view: RunView) -> bool:
    """Return True if cells of one method differ in a swept parameter."""
    return any(view.points.values())


def merge_equal_rows(groups: Sequence[TableGroup]) -> tuple[TableGroup, ...]:
    """Return groups in which the most frequent cells of a long group are one row."""
    return tuple(replace(group, rows=_merge_rows(group.rows)) for group in groups)


def _merge_rows(rows: tuple[TableRow, ...]) -> tuple[TableRow, ...]:
    if len(rows) <= ROWS_IN_FULL:
        return rows
    cells, n = Counter(row.cells for row in rows).most_common(1)[0]
    kept = [row for row in rows if row.cells != cells]
    return (*kept, TableRow((say.same_rows(n, bool(kept)),), cells))


def _metric_table(
    view: RunView,
    caption: str,
    part: Sequence[Metric],
    cell: Callable[[Row, Metric], TableCell],
    rows: Sequence[Row] | None = None,
) -> Table:
    shown = None if rows is None else {row["cell"] for row in rows}
    groups = group_rows(view, lambda row: [cell(row, metric) for metric in part], shown)
    return Table(tuple(map(metric_head, part)), groups, caption=caption)


def group_rows(
    view: RunView,
    cells: Callable[[Row], Iterable[TableCell]],
    shown: Collection[str] | None = None,
) -> tuple[TableGroup, ...]:
    """Return one row per configuration, grouped by model.

    Args:
        view: The run.
        cells: Returns the cells of a row of the result table.
        shown: Ids of the configurations; all of them if None.
    """
    groups = []
    for model, rows in view.models.items():
        kept = [row for row in rows if shown is None or row["cell"] in shown]
        lines = tuple(_table_row(view.labels[row["cell"]], cells(row)) for row in kept)
        if lines:
            groups.append(TableGroup(truncate(model, NAME_LENGTH), lines))
    return tuple(groups)


def _table_row(label: str, cells: Iterable[TableCell]) -> TableRow:
    return TableRow((label,), tuple(cells))
