"""The result table in the layouts of the paper's two tables, as texts to be set. Pure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from autolora_eval._text import DASH, format_fixed, parameter_label, point_label
from autolora_eval.analysis.metric_columns import Measure

Row = Mapping[str, Any]
_COUNTS = {"NFE": "nfe", "Images": "n_images"}


@dataclass(frozen=True)
class Results:
    """The result table, and what the layouts need to know of its cells.

    Attributes:
        rows: one a cell, in the columns of table.csv.
        measured: the measures, in order.
        sweep: the swept parameters, each with its values as texts.
        points: of each cell, the swept parameters that it takes.
        reasons: why a cell (first) lacks a measure (second).
    """

    rows: Sequence[Row]
    measured: Sequence[Measure]
    sweep: Mapping[str, Sequence[str]]
    points: Mapping[str, Mapping[str, str]]
    reasons: Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        text: the number.
        interval: in brackets; empty if there is none.
        bold: whether it is the best of its group.
        cell: the cell that it is of; empty if it is of none.
    """

    text: str
    interval: str = ""
    bold: bool = False
    cell: str = ""


@dataclass(frozen=True)
class Line:
    """One row: what names it, and one entry a column."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    continues: bool = False


@dataclass(frozen=True)
class Block:
    """One table.

    Attributes:
        head: what all its columns show; empty where each shows another measure.
        labels: heads of the columns that name a row.
        columns: heads of the others.
        groups: the rows of each model.
    """

    head: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    groups: tuple[tuple[Line, ...], ...]


@dataclass(frozen=True)
class Layout:
    """Tables that belong together, and what must be said below them."""

    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


def fitting(results: Results) -> Layout:
    """Return the layout that fits: by point where a sweep has several, else by method."""
    n_points = math.prod(len(values) for values in results.sweep.values())
    return by_point(results) if n_points > 1 else by_method(results)


def by_method(results: Results) -> Layout:
    """Return the layout of the paper's Table 2: methods down, measures across.

    The best of each model is bold, where there is anything to be better than.
    """
    measured = results.measured
    groups = []
    for rows in _by_model(results.rows).values():
        best = [_best([row.get(m.column) for row in rows], m) for m in measured]
        lines: list[Line] = []
        for row in rows:
            point = [results.points[row["cell"]].get(name, DASH) for name in results.sweep]
            values = [_value(row, m, b) for m, b in zip(measured, best, strict=True)]
            numbers = [_counted(row, head) for head in _COUNTS]
            places = [(row, m.column) for m in measured]
            places += [_counted_place(row, head) for head in _COUNTS]
            labels = (row["model"], row["method"], *point)
            lines += _with_published(labels, [*values, *numbers], places)
        groups.append(tuple(lines))
    columns = (*(f"{m.label} {m.arrow}" for m in measured), *_COUNTS)
    names = ("Model", "Method", *map(parameter_label, results.sweep))
    return Layout((Block("", names, columns, tuple(groups)),), tuple(_reasons(results)))


def by_point(results: Results) -> Layout:
    """Return the layout of the paper's Table 1: for each measure, points down and methods across.

    The best of each row is bold. A method that does not take a swept parameter has one value,
    which stands in every row of that parameter: it is what the others are compared with there.
    """
    methods = tuple(dict.fromkeys(str(row["method"]) for row in results.rows))
    names = ("Model", *map(parameter_label, results.sweep))
    found = [*_crossed(results, methods)]
    blocks = []
    for measure in results.measured:
        groups = _block_groups(found, measure)
        blocks.append(Block(f"{measure.label} {measure.arrow}", names, methods, groups))
    for head in _COUNTS:
        blocks.append(Block(head, names, methods, _count_groups(found, head)))
    notes = []
    if any(set(point) != set(results.sweep) for point in results.points.values()):
        notes.append(
            "A method that does not take a swept parameter has one value, which stands in every "
            "row of that parameter."
        )
    return Layout(tuple(blocks), (*notes, *_reasons(results)))


def _crossed(
    results: Results, methods: Sequence[str]
) -> Iterator[list[tuple[tuple[str, ...], list[Row | None]]]]:
    """Yield for each model its sweep points, each with its labels and one row a method."""
    for model, rows in _by_model(results.rows).items():
        cells = {
            (row["method"], *results.points[row["cell"]].items()): row for row in rows
        }  # fmt: skip
        taken = {row["method"]: results.points[row["cell"]].keys() for row in rows}
        yield [
            (
                (model, *values),
                [
                    cells.get((m, *((n, v) for n, v in point.items() if n in taken.get(m, ()))))
                    for m in methods
                ],
            )
            for values in itertools.product(*results.sweep.values())
            for point in [dict(zip(results.sweep, values, strict=True))]
        ]


def _block_groups(
    found: Sequence[list[tuple[tuple[str, ...], list[Row | None]]]], measure: Measure
) -> tuple[tuple[Line, ...], ...]:
    groups = []
    for group in found:
        lines: list[Line] = []
        for labels, rows in group:
            places = [(row or {}, measure.column) for row in rows]
            best = _best([row.get(column) for row, column in places], measure)
            entries = [_value(row, measure, best) for row, _ in places]
            lines += _with_published(labels, entries, places)
        groups.append(tuple(lines))
    return tuple(groups)


def _count_groups(
    found: Sequence[list[tuple[tuple[str, ...], list[Row | None]]]], head: str
) -> tuple[tuple[Line, ...], ...]:
    groups = []
    for group in found:
        lines: list[Line] = []
        for labels, rows in group:
            places = [_counted_place(row or {}, head) for row in rows]
            lines += _with_published(labels, [_counted(row, head) for row in rows], places)
        groups.append(tuple(lines))
    return tuple(groups)


def _counted_place(row: Row, head: str) -> tuple[Row, str]:
    """Return the column that a count is of if it was published, else none."""
    column = _COUNTS[head]
    return row, column if f"{column}_published" in row else ""


def _with_published(
    labels: tuple[str, ...], entries: Sequence[Entry], places: Sequence[tuple[Row, str]]
) -> list[Line]:
    """Return a row and, where there are published values, those and ours less those below it.

    Args:
        labels: of the row.
        entries: of the row.
        places: of each entry the cell and the column it is of; an empty name for none.
    """
    line = Line(labels, tuple(entries))
    published = [row.get(f"{column}_published") for row, column in places]
    if not any(map(_is_number, published)):
        return [line]
    values, differences = [], []
    for (row, column), value in zip(places, published, strict=True):
        digits, ours = 0 if column == "nfe" else 3, row.get(column)
        difference = ours - value if _is_number(ours) and _is_number(value) else None
        values.append(Entry(format_fixed(value, digits) if column else ""))
        differences.append(Entry(format_fixed(difference, digits, signed=True) if column else ""))
    below = ("",) * (len(labels) - 1)
    return [
        line,
        Line((*below, "published"), tuple(values), continues=True),
        Line((*below, "difference"), tuple(differences), continues=True),
    ]


def _value(row: Row, measure: Measure, best: str | None) -> Entry:
    text = format_fixed(row.get(measure.column))
    low, high = (row.get(f"{measure.column}_{end}") for end in ("low", "high"))
    is_within = text != DASH and _is_number(low) and _is_number(high)
    interval = f"[{format_fixed(low)}, {format_fixed(high)}]" if is_within else ""
    return Entry(text, interval, bold=text != DASH and text == best, cell=str(row["cell"]))


def _best(values: Sequence[Any], measure: Measure) -> str | None:
    """Return the best value as it is printed; None where there is nothing to be better than."""
    known = [value for value in values if _is_number(value)]
    if len(known) < 2:
        return None
    return format_fixed(max(known) if measure.higher_is_better else min(known))


def _counted(row: Row | None, head: str) -> Entry:
    """Return a count; of images also how many of them are missing or have no score."""
    if row is None:
        return Entry(DASH)
    text = format_fixed(row[_COUNTS[head]], 0)
    lost = {"missing": row["n_missing"], "unscored": row["n_unscored"]} if head == "Images" else {}
    return Entry(", ".join([text, *(f"{n} {name}" for name, n in lost.items() if n)]))


def _reasons(results: Results) -> Iterator[str]:
    """Yield why the dashes are there, each reason with the measures and cells that it is of."""
    lacking: dict[str, dict[str, list[str]]] = {}
    for row in results.rows:
        point = point_label(results.points[row["cell"]])
        title = f"{row['model']} × {row['method']}{f' at {point}' if point else ''}"
        for measure in results.measured:
            if not _is_number(row.get(measure.column)):
                why = results.reasons.get((row["cell"], measure.column), "reason not recorded")
                lacking.setdefault(why, {}).setdefault(title, []).append(measure.label)
    for why, cells in lacking.items():
        told = "; ".join(f"{title}: {', '.join(labels)}" for title, labels in cells.items())
        yield f"{DASH} no value ({why}): {told}."


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["model"], []).append(row)
    return groups


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


# --------------------
# Layouts of the result table as GitHub Markdown and as LaTeX. What a name holds is no markup.


# What Markdown would take for markup: emphasis, code, tags, columns, and links.
_MARKDOWN = re.compile(r"[\\|*_`<]|(?<=\])\(")
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "×": r"$\times$", "–": "--"},
}


def markdown(layout: Layout, *, intervals: bool = True) -> str:
    """Return a layout as tables of GitHub Markdown, the best in bold.

    Args:
        layout: what is to be written.
        intervals: whether each value's stands beside it.
    """
    parts = [_markdown_block(block, intervals) for block in layout.blocks]
    return "\n".join([*parts, *(f"{_escaped(note)}\n" for note in layout.notes)])


def _markdown_block(block: Block, intervals: bool) -> str:
    heads = [_escaped(head) for head in (*block.labels, *block.columns)]
    lines = [heads, ["---"] * len(heads)]
    for line in (line for group in block.groups for line in group):
        entries = [_markdown_entry(entry, intervals) for entry in line.entries]
        lines.append([*map(_escaped, line.labels), *entries])
    head = f"### {_escaped(block.head)}\n\n" if block.head else ""
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_entry(entry: Entry, intervals: bool) -> str:
    text = f"**{_escaped(entry.text)}**" if entry.bold else _escaped(entry.text)
    return f"{text} {entry.interval}" if intervals and entry.interval else text


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text)


def latex(layout: Layout, *, intervals: bool = True) -> str:
    r"""Return a layout as LaTeX `tabular`s with booktabs' rules, the best in \textbf.

    Args:
        layout: what is to be written.
        intervals: whether each value's stands below it, small.
    """
    parts = [_latex_block(block, intervals) for block in layout.blocks]
    notes = "".join(f"\n\\par\\noindent{{\\footnotesize {_tex(note)}}}\n" for note in layout.notes)
    return "% \\usepackage{booktabs}\n" + "\n\\par\\bigskip\n".join(parts) + notes


def _latex_block(block: Block, intervals: bool) -> str:
    n_labels, n = len(block.labels), len(block.columns)
    lines = ["\\toprule"]
    if block.head:
        lines.append(f"{'& ' * n_labels}\\multicolumn{{{n}}}{{c}}{{{_tex(block.head)}}} \\\\")
        lines.append(f"\\cmidrule(lr){{{n_labels + 1}-{n_labels + n}}}")
    lines.append(_latex_row([*map(_tex, block.labels), *map(_tex, block.columns)]))
    for group in block.groups:
        lines.append("\\midrule")
        for index, line in enumerate(group):
            if index and not line.continues and _is_tall(group, intervals):
                lines.append("\\addlinespace")
            lines += _latex_lines(line, intervals)
    form = "l" * n_labels + "r" * n
    body = "\n".join([*lines, "\\bottomrule"])
    # Narrow gaps: five measures with their intervals fill the width of a page.
    tabular = f"\\begin{{tabular}}{{{form}}}\n{body}\n\\end{{tabular}}\n"
    return f"{{\\setlength{{\\tabcolsep}}{{3pt}}%\n{tabular}}}\n"


def _is_tall(group: Sequence[Line], intervals: bool) -> bool:
    """Tell whether what belongs together takes more than one line."""
    return any(
        line.continues or (intervals and any(entry.interval for entry in line.entries))
        for line in group
    )


def _latex_lines(line: Line, intervals: bool) -> list[str]:
    texts = [f"\\textbf{{{_tex(e.text)}}}" if e.bold else _tex(e.text) for e in line.entries]
    lines = [_latex_row([*map(_tex, line.labels), *texts])]
    if intervals and any(entry.interval for entry in line.entries):
        small = [_latex_small(entry.interval) for entry in line.entries]
        lines.append(_latex_row([*[""] * len(line.labels), *small]))
    return lines


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _latex_small(text: str) -> str:
    return f"{{\\scriptsize {_in_tex(text)}}}" if text else ""


def _tex(text: str) -> str:
    if text[:1] in ("[", "*"):  # the \\ of the row before would take it for its own
        return f"{{{text[0]}}}{_in_tex(text[1:])}"
    return _in_tex(text)


def _in_tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
