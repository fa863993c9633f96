"""What was measured: the table of the first page, and all of it in the paper's layouts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from autolora_eval._text import (
    DASH,
    as_finite_float,
    format_fixed,
    format_interval,
    sanitize,
    truncate,
)
from autolora_eval.analysis import table_layout as layouts
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.report.cost import cost_entries, cost_heads, times_note
from autolora_eval.report.findings import best_settings, deciding_measure
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView
from autolora_eval.report.tables import (
    Entry,
    Group,
    Line,
    Notes,
    ResultTable,
    head,
    parts,
    units,
)

# More rows than these do not fit the first page beside figure and findings.
ROWS_ON_FIRST_PAGE = 9


def first_table(evidence: RunView) -> ResultTable:
    """Return the table of the first page: all cells if they are few, else the best of each method.

    It has as many measures as fit the width of a page.
    """
    part = parts(evidence.measured)[0]
    if len(evidence.rows) <= ROWS_ON_FIRST_PAGE:
        return _by_cell(evidence, evidence.models, part)
    measure = deciding_measure(evidence)
    chosen = _best_of_models(evidence, measure)
    n, of_all = sum(map(len, chosen.values())), len(evidence.rows)
    told = (
        f"{n} of {of_all} cells: of each method the one with the best {measure.label}, which "
        "flatters all of them alike. All cells: see Results."
    )
    return _by_cell(evidence, chosen, part, told)


def _best_of_models(evidence: RunView, measure: Measure) -> dict[str, list[Row]]:
    """Return the best settings of the first models, the baseline's first among equals."""
    room = ROWS_ON_FIRST_PAGE
    chosen: dict[str, list[Row]] = {}
    for model, rows in evidence.models.items():
        sign = -1.0 if measure.higher_is_better else 1.0
        settings = best_settings(rows, measure)
        ranked = sorted(
            settings,
            key=lambda row: (
                row["method"] != evidence.baseline,
                sign * (as_finite_float(row.get(measure.column)) or 0.0),
            ),
        )
        kept = ranked[:room]
        if kept:
            chosen[model] = [row for row in settings if row in kept]
        room -= len(kept)
    return chosen


def all_results(evidence: RunView) -> list[ResultTable]:
    """Return what the first page has no room for; empty if it has all.

    A sweep is laid out as the paper's Table 1: for each measure, points down and methods across,
    with published values below ours. Other runs have a row for each cell.
    """
    everything = parts(evidence.measured)
    is_whole = len(everything) == 1 and len(evidence.rows) <= ROWS_ON_FIRST_PAGE
    if is_whole:
        return []
    if is_by_point(evidence):
        return _by_point(evidence)
    return [_by_cell(evidence, evidence.models, part) for part in everything]


def is_by_point(evidence: RunView) -> bool:
    """Tell whether the results are laid out by sweep point."""
    return len(evidence.rows) > ROWS_ON_FIRST_PAGE and any(evidence.points.values())


def _by_cell(
    evidence: RunView, models: Mapping[str, Sequence[Row]], part: Sequence[Measure], told: str = ""
) -> ResultTable:
    notes = Notes()
    groups = []
    for model, rows in models.items():
        best = {measure.column: _best(rows, measure) for measure in part}
        lines = []
        for row in rows:
            entries = [_value(evidence, row, m, best[m.column], notes) for m in part]
            lines.append(
                Line(evidence.labels[row["cell"]], [*entries, *cost_entries(evidence, row)])
            )
        groups.append(Group(truncate(model, NAME_LENGTH), lines))
    of_each = " of each model" if len(models) > 1 else ""
    costs = "NFE: denoiser passes for one image"
    costs += "; s/image: seconds for one" if len(cost_heads(evidence)) > 1 else ""
    caption = (
        f"{f'{told} ' if told else ''}"
        f"{', '.join(f'{m.label}: {sanitize(m.display_name)}' for m in part)}. "
        f"{units(evidence)} Best{of_each} in bold; the arrow says which direction is better. "
        f"{costs}. {times_note(evidence)}"
    )
    return ResultTable(caption, [*map(head, part), *cost_heads(evidence)], groups, notes.listed())


def _by_point(evidence: RunView) -> list[ResultTable]:
    names = dict.fromkeys(name for point in evidence.points.values() for name in point)
    sweep = {
        name: list(
            dict.fromkeys(point[name] for point in evidence.points.values() if name in point)
        )
        for name in names
    }
    reasons = {
        (row["cell"], m.column): _why_missing(evidence, row["cell"], m)
        for row in evidence.rows
        for m in evidence.measured
        if as_finite_float(row.get(m.column)) is None
    }
    found = layouts.by_point(
        layouts.Results(evidence.rows, evidence.measured, sweep, evidence.points, reasons)
    )
    by_head = {head(measure): measure for measure in evidence.measured}
    return [
        _block(evidence, block, by_head[block.head], found.notes)
        for block in found.blocks
        if block.head in by_head
    ]


def _block(
    evidence: RunView, block: layouts.Block, measure: Measure, notes: Sequence[str]
) -> ResultTable:
    models = list(evidence.models)
    groups = [
        Group(truncate(model, NAME_LENGTH), _folded(group))
        for model, group in zip(models, block.groups, strict=True)
    ]
    names = ", ".join(block.labels[1:])
    published = any(line.continues for group in block.groups for line in group)
    below = "the published value and, in brackets, how far ours is above it" if published else ""
    caption = (
        f"{sanitize(measure.display_name)} by {names}. {units(evidence)} Best of each row in bold."
        f"{f' Below: {below}.' if below else ''} {' '.join(map(sanitize, notes))}"
    ).rstrip()
    heads = [truncate(column, NAME_LENGTH) for column in block.columns]
    return ResultTable(caption, heads, groups, [], title=block.head)


def _folded(group: Sequence[layouts.Line]) -> list[Line]:
    """Return the rows of a layout with what continues them, published values, in small type."""
    lines = []
    starts = [n for n, line in enumerate(group) if not line.continues]
    for start, end in itertools.pairwise([*starts, len(group)]):
        own, *more = group[start:end]
        label = " · ".join(truncate(text, NAME_LENGTH) for text in own.labels[1:])
        below = [[line.entries[n] for line in more] for n in range(len(own.entries))]
        entries = [_entry(entry, found) for entry, found in zip(own.entries, below, strict=True)]
        lines.append(Line(label, entries))
    return lines


def _entry(entry: layouts.Entry, more: Sequence[layouts.Entry]) -> Entry:
    below = [entry.interval] if entry.interval else []
    if len(more) == 2 and more[0].text not in ("", DASH):
        below.append(f"{more[0].text} ({more[1].text})")
    return Entry(entry.text, "\n".join(below), bold=entry.bold, cell=entry.cell)


def _best(rows: Sequence[Row], measure: Measure) -> str | None:
    """Return the best value as it is printed; None where there is nothing to be better than."""
    values = [
        v for v in (as_finite_float(row.get(measure.column)) for row in rows) if v is not None
    ]
    if len(values) < 2:
        return None
    return format_fixed(max(values) if measure.higher_is_better else min(values))


def _value(evidence: RunView, row: Row, measure: Measure, best: str | None, notes: Notes) -> Entry:
    value = row.get(measure.column)
    if as_finite_float(value) is None:
        return Entry(DASH, mark=notes.mark(_why_missing(evidence, row["cell"], measure)))
    text = format_fixed(value)
    within = format_interval(row.get(f"{measure.column}_low"), row.get(f"{measure.column}_high"))
    cell = str(row["cell"])
    return Entry(text, within or "no interval", bold=text == best, cell=cell)


def _why_missing(evidence: RunView, cell: str, measure: Measure) -> str:
    """Return why a cell lacks a measure; a product lacks what either of its factors lacks."""
    no_diversity = f"diversity is undefined: {evidence.why_undefined(cell)}"
    if measure.kind == "diversity":
        return no_diversity
    if measure.kind == "extra":
        why = evidence.why_undefined(cell, measure.column)
        return f"{sanitize(measure.display_name)} is undefined: {why}"
    no_score = f"no image was scored: {evidence.why_unscored(cell)}"
    if measure.kind == "score":
        return no_score
    row = next(r for r in evidence.rows if r["cell"] == cell)
    lacking = []
    if as_finite_float(row.get("diversity")) is None:
        lacking.append(no_diversity)
    if as_finite_float(row.get(measure.column.removeprefix("div_"))) is None:
        lacking.append(no_score)
    return "; ".join(lacking) or "reason not recorded"
