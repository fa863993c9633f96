"""The table model of Markdown, LaTeX, PDF and HTML, the two layouts, and the first two formats."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from autolora_eval._text import (
    DASH,
    as_finite_float,
    format_fixed,
    format_interval,
    parameter_label,
    point_label,
)
from autolora_eval.analysis.metrics import Metric

Row = Mapping[str, Any]
R = TypeVar("R", bound=Row)
_COUNTS = {"NFE": "nfe", "Images": "n_images"}


@dataclass(frozen=True)
class TableCell:
    """One value of a table.

    Attributes:
        bold: True for the best value of its group.
        published: The published value; empty where the row has none.
        difference: The value minus the published one.
        details: Further short texts, which are set in small type below the value.
        why: Why the value is missing, for a footnote.
        cell: Id of the configuration that the value belongs to; empty without one.
    """

    text: str
    interval: str = ""
    bold: bool = False
    published: str = ""
    difference: str = ""
    details: tuple[str, ...] = ()
    why: str = ""
    cell: str = ""


@dataclass(frozen=True)
class TableRow:
    """One row: the labels that name it, and one cell per column."""

    labels: tuple[str, ...]
    cells: tuple[TableCell, ...]

    @property
    def has_published(self) -> bool:
        """True if a published value stands below one of the cells."""
        return any(cell.published for cell in self.cells)

    @property
    def has_intervals(self) -> bool:
        """True if one of the cells has an interval."""
        return any(cell.interval for cell in self.cells)


@dataclass(frozen=True)
class TableGroup:
    """Rows that belong together, such as those of one model."""

    name: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Heads of the columns.
        labels: Heads of the columns that name a row.
        title: What all columns show; empty where each shows another metric.
        caption: How to read the table.
        footnotes: Why values are missing: the letter of each reason.
    """

    columns: tuple[str, ...]
    groups: tuple[TableGroup, ...]
    labels: tuple[str, ...] = ("",)
    title: str = ""
    caption: str = ""
    footnotes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Tables that belong together, and the notes below them."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """The result table and what the layouts need to know about its cells.

    Attributes:
        rows: One row per cell, with the columns of table.csv.
        sweep: The swept parameters, each with its values as text.
        points: The swept parameters of each cell, by cell id.
        reasons: Why a cell (first) lacks a metric (second).
    """

    rows: Sequence[Row]
    metrics: Sequence[Metric]
    sweep: Mapping[str, Sequence[str]]
    points: Mapping[str, Mapping[str, str]]
    reasons: Mapping[tuple[str, str], str]


def choose_layout(results: Results) -> Layout:
    """Return the layout by point for a sweep with several points, else the layout by method."""
    n_points = math.prod(len(values) for values in results.sweep.values())
    return by_point(results) if n_points > 1 else by_method(results)


def by_method(results: Results) -> Layout:
    """Return the layout of the paper's Table 2: methods down, metrics across.

    The best value of each model is bold if there are at least two.
    """
    metrics = results.metrics
    groups = []
    for model, rows in group_by_model(results.rows).items():
        best = [best_text([row.get(m.column) for row in rows], m) for m in metrics]
        group = []
        for row in rows:
            point = [results.points[row["cell"]].get(name, DASH) for name in results.sweep]
            values = [metric_cell(row, m, b) for m, b in zip(metrics, best, strict=True)]
            cells = [*values, *(_count_cell(row, head) for head in _COUNTS)]
            columns = [m.column for m in metrics] + [_published_count(row, h) for h in _COUNTS]
            labels = (row["model"], row["method"], *point)
            group.append(_with_published(labels, cells, [(row, column) for column in columns]))
        groups.append(TableGroup(model, tuple(group)))
    table = Table(
        columns=(*map(metric_head, metrics), *_COUNTS),
        groups=tuple(groups),
        labels=("Model", "Method", *map(parameter_label, results.sweep)),
    )
    return Layout((table,), tuple(_missing_notes(results)))


def by_point(results: Results) -> Layout:
    """Return the layout of the paper's Table 1: one table per metric, points down, methods across.

    The best value of each row is bold. The single value of a method that does not take a swept
    parameter is repeated in every row, since the other methods are compared with it there.
    """
    methods = tuple(dict.fromkeys(str(row["method"]) for row in results.rows))
    by_model = {model: _point_rows(results, rows, methods)
                for model, rows in group_by_model(results.rows).items()}  # fmt: skip
    labels = ("Model", *map(parameter_label, results.sweep))
    columns: list[Metric | str] = [*results.metrics, *_COUNTS]
    tables = []
    for column in columns:
        groups = tuple(
            TableGroup(model, tuple(_point_row(name, rows, column) for name, rows in found))
            for model, found in by_model.items()
        )
        title = column if isinstance(column, str) else metric_head(column)
        tables.append(Table(methods, groups, labels, title))
    notes = []
    if any(set(point) != set(results.sweep) for point in results.points.values()):
        notes.append(
            "The values of a method that does not take a swept parameter are repeated for each "
            "value of that parameter."
        )
    return Layout(tuple(tables), (*notes, *_missing_notes(results)))


def _point_rows(
    results: Results, rows: Sequence[Row], methods: Sequence[str]
) -> list[tuple[tuple[str, ...], list[Row | None]]]:
    """Return the sweep points of one model, each with its labels and one row per method."""
    cells = {(row["method"], *results.points[row["cell"]].items()): row for row in rows}
    taken = {row["method"]: results.points[row["cell"]].keys() for row in rows}
    found = []
    for values in itertools.product(*results.sweep.values()):
        point = dict(zip(results.sweep, values, strict=True))
        keys = [(m, *((n, v) for n, v in point.items() if n in taken.get(m, ()))) for m in methods]
        found.append(((str(rows[0]["model"]), *values), [cells.get(key) for key in keys]))
    return found


def _point_row(
    labels: tuple[str, ...], rows: Sequence[Row | None], column: Metric | str
) -> TableRow:
    known = [row or {} for row in rows]
    if isinstance(column, str):
        cells = [_count_cell(row, column) for row in known]
        return _with_published(labels, cells, [(r, _published_count(r, column)) for r in known])
    best = best_text([row.get(column.column) for row in known], column)
    cells = [metric_cell(row, column, best) for row in known]
    return _with_published(labels, cells, [(row, column.column) for row in known])


def _published_count(row: Row, head: str) -> str:
    """Return the column of a count if values of it were published, else an empty name."""
    column = _COUNTS[head]
    return column if f"{column}_published" in row else ""


def _with_published(
    labels: tuple[str, ...], cells: Sequence[TableCell], sources: Sequence[tuple[Row, str]]
) -> TableRow:
    """Return a row; if one of its values was published, every cell has its published value.

    `sources` are the row and column of each cell, "" for a column that cannot be published.
    """
    published = [as_finite_float(row.get(f"{column}_published")) for row, column in sources]
    if all(value is None for value in published):
        return TableRow(labels, tuple(cells))
    found = []
    for cell, (row, column), value in zip(cells, sources, published, strict=True):
        ours = as_finite_float(row.get(column))
        digits = _count_digits(ours, value) if column == "nfe" else 3
        difference = None if ours is None or value is None else ours - value
        texts = (format_fixed(value, digits), format_fixed(difference, digits, signed=True))
        found.append(replace(cell, published=texts[0], difference=texts[1]) if column else cell)
    return TableRow(labels, tuple(found))


def metric_head(metric: Metric) -> str:
    """Return the head of a metric's column, with an arrow in the better direction."""
    return f"{metric.label} {metric.arrow}"


def metric_cell(row: Row, metric: Metric, best: str | None) -> TableCell:
    """Return a metric's value with its interval."""
    text = format_fixed(row.get(metric.column))
    if text == DASH:
        return TableCell(text, cell=str(row.get("cell", "")))
    within = format_interval(row.get(f"{metric.column}_low"), row.get(f"{metric.column}_high"))
    return TableCell(text, within, bold=text == best, cell=str(row["cell"]))


def best_text(values: Sequence[object], metric: Metric) -> str | None:
    """Return the best value as it is printed; None if fewer than two values are known."""
    known = [value for value in map(as_finite_float, values) if value is not None]
    if len(known) < 2:
        return None
    return format_fixed(max(known) if metric.higher_is_better else min(known))


def _count_cell(row: Row, head: str) -> TableCell:
    """Return a count; for images also how many are missing or unscored."""
    if not row:
        return TableCell(DASH)
    value = row[_COUNTS[head]]
    text = format_fixed(value, _count_digits(as_finite_float(value)))
    lost = {"missing": row["n_missing"], "unscored": row["n_unscored"]} if head == "Images" else {}
    return TableCell(", ".join([text, *(f"{n} {name}" for name, n in lost.items() if n)]))


def _count_digits(*values: float | None) -> int:
    """Return the decimals of counts: the NFE of a sampler may be a mean."""
    return 0 if all(value is None or value.is_integer() for value in values) else 1


def _missing_notes(results: Results) -> Iterator[str]:
    """Yield a note for each reason, with the metrics and cells that lack a value because of it."""
    lacking: dict[str, dict[str, list[str]]] = {}
    for row in results.rows:
        point = point_label(results.points[row["cell"]])
        title = f"{row['model']} × {row['method']}{f' at {point}' if point else ''}"
        for metric in results.metrics:
            if as_finite_float(row.get(metric.column)) is None:
                reason = results.reasons.get((row["cell"], metric.column), "reason not recorded")
                lacking.setdefault(reason, {}).setdefault(title, []).append(metric.label)
    for reason, cells in lacking.items():
        named = "; ".join(f"{title}: {', '.join(labels)}" for title, labels in cells.items())
        yield f"{DASH} no value ({reason}): {named}."


def group_by_model(rows: Iterable[R]) -> dict[str, list[R]]:
    """Return rows of the result table by model, in order."""
    groups: dict[str, list[R]] = {}
    for row in rows:
        groups.setdefault(str(row["model"]), []).append(row)
    return groups


# --------------------
# The layouts as Markdown and LaTeX. Names are escaped.


# What Markdown would take for markup: emphasis, code, tags, columns, and links.
_MARKDOWN = re.compile(r"[\\|*_`<]|(?<=\])\(")
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "×": r"$\times$", "–": "--"},
}


def markdown(layout: Layout) -> str:
    """Return a layout as GitHub Markdown, with the best values in bold."""
    tables = [_markdown_table(table) for table in layout.tables]
    return "\n".join([*tables, *(f"{_escape_markdown(note)}\n" for note in layout.notes)])


def _markdown_table(table: Table) -> str:
    heads = [_escape_markdown(head) for head in (*table.labels, *table.columns)]
    lines = [heads, ["---"] * len(heads)]
    for row in (row for group in table.groups for row in group.rows):
        lines.append([*map(_escape_markdown, row.labels), *map(_markdown_cell, row.cells)])
        lines += [[_escape_markdown(text) for text in line] for line in _published_lines(row)]
    title = f"### {_escape_markdown(table.title)}\n\n" if table.title else ""
    return title + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(cell: TableCell) -> str:
    text = _escape_markdown(cell.text)
    return f"{f'**{text}**' if cell.bold else text} {cell.interval}".rstrip()


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text)


def latex(layout: Layout) -> str:
    r"""Return a layout as LaTeX `tabular`s with booktabs rules, with the best values in \textbf."""
    tables = [_latex_table(table) for table in layout.tables]
    notes = "".join(f"\n\\par\\noindent{{\\footnotesize {_tex(note)}}}\n" for note in layout.notes)
    return "% \\usepackage{booktabs}\n" + "\n\\par\\bigskip\n".join(tables) + notes


def _latex_table(table: Table) -> str:
    n_labels, n = len(table.labels), len(table.columns)
    lines = ["\\toprule"]
    if table.title:
        lines.append(f"{'& ' * n_labels}\\multicolumn{{{n}}}{{c}}{{{_tex(table.title)}}} \\\\")
        lines.append(f"\\cmidrule(lr){{{n_labels + 1}-{n_labels + n}}}")
    lines.append(_latex_line([*map(_tex, table.labels), *map(_tex, table.columns)]))
    for group in table.groups:
        lines.append("\\midrule")
        tall = any(row.has_published or row.has_intervals for row in group.rows)
        for index, row in enumerate(group.rows):
            if index and tall:
                lines.append("\\addlinespace")
            lines += _latex_row(row)
    body = "\n".join([*lines, "\\bottomrule"])
    columns = "l" * n_labels + "r" * n
    # Narrow gaps: five metrics with their intervals fill the width of a page.
    tabular = f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
    return f"{{\\setlength{{\\tabcolsep}}{{3pt}}%\n{tabular}}}\n"


def _latex_row(row: TableRow) -> list[str]:
    texts = [f"\\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row.cells]
    lines = [_latex_line([*map(_tex, row.labels), *texts])]
    if row.has_intervals:
        small = [f"{{\\scriptsize {_in_tex(c.interval)}}}" if c.interval else "" for c in row.cells]
        lines.append(_latex_line([*[""] * len(row.labels), *small]))
    return lines + [_latex_line(list(map(_tex, line))) for line in _published_lines(row)]


def _latex_line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _tex(text: str) -> str:
    if text[:1] in ("[", "*"):  # the \\ of the row before would take it for its own argument
        return f"{{{text[0]}}}{_in_tex(text[1:])}"
    return _in_tex(text)


def _in_tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _published_lines(row: TableRow) -> list[list[str]]:
    """Return the lines below a row: published values, and ours minus those."""
    if not row.has_published:
        return []
    blank = [""] * (len(row.labels) - 1)
    return [
        [*blank, "published", *(cell.published for cell in row.cells)],
        [*blank, "difference", *(cell.difference for cell in row.cells)],
    ]
