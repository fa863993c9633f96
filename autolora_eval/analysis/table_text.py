"""Tables as GitHub Markdown and as LaTeX. Names are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autolora_eval.analysis.table_layout import Layout, Table, TableCell, TableRow

# What Markdown would take for markup: emphasis, code, tags, columns, and links.
_MARKDOWN = re.compile(r"[\\|*_`<]|(?<=\])\(")
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "×": r"$\times$", "–": "--"},
}


def markdown(layout: Layout, *, intervals: bool = True) -> str:
    """Return a layout as GitHub Markdown, with the best values in bold."""
    tables = [_markdown_table(table, intervals) for table in layout.tables]
    return "\n".join([*tables, *(f"{_escape_markdown(note)}\n" for note in layout.notes)])


def _markdown_table(table: Table, intervals: bool) -> str:
    heads = [_escape_markdown(head) for head in (*table.labels, *table.columns)]
    lines = [heads, ["---"] * len(heads)]
    for row in _rows(table):
        cells = [_markdown_cell(cell, intervals) for cell in row.cells]
        lines.append([*map(_escape_markdown, row.labels), *cells])
        lines += [[_escape_markdown(text) for text in line] for line in _published_lines(row)]
    title = f"### {_escape_markdown(table.title)}\n\n" if table.title else ""
    return title + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(cell: TableCell, intervals: bool) -> str:
    text = _escape_markdown(cell.text)
    text = f"**{text}**" if cell.bold else text
    return f"{text} {cell.interval}" if intervals and cell.interval else text


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text)


def latex(layout: Layout, *, intervals: bool = True) -> str:
    r"""Return a layout as LaTeX `tabular`s with booktabs rules, with the best values in \textbf."""
    tables = [_latex_table(table, intervals) for table in layout.tables]
    notes = "".join(f"\n\\par\\noindent{{\\footnotesize {_tex(note)}}}\n" for note in layout.notes)
    return "% \\usepackage{booktabs}\n" + "\n\\par\\bigskip\n".join(tables) + notes


def _latex_table(table: Table, intervals: bool) -> str:
    n_labels, n = len(table.labels), len(table.columns)
    lines = ["\\toprule"]
    if table.title:
        lines.append(f"{'& ' * n_labels}\\multicolumn{{{n}}}{{c}}{{{_tex(table.title)}}} \\\\")
        lines.append(f"\\cmidrule(lr){{{n_labels + 1}-{n_labels + n}}}")
    lines.append(_latex_line([*map(_tex, table.labels), *map(_tex, table.columns)]))
    for group in table.groups:
        lines.append("\\midrule")
        tall = any(row.has_published or _has_intervals(row, intervals) for row in group.rows)
        for index, row in enumerate(group.rows):
            if index and tall:
                lines.append("\\addlinespace")
            lines += _latex_row(row, intervals)
    body = "\n".join([*lines, "\\bottomrule"])
    columns = "l" * n_labels + "r" * n
    # Narrow gaps: five metrics with their intervals fill the width of a page.
    tabular = f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
    return f"{{\\setlength{{\\tabcolsep}}{{3pt}}%\n{tabular}}}\n"


def _latex_row(row: TableRow, intervals: bool) -> list[str]:
    texts = [f"\\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row.cells]
    lines = [_latex_line([*map(_tex, row.labels), *texts])]
    if _has_intervals(row, intervals):
        small = [f"{{\\scriptsize {_in_tex(c.interval)}}}" if c.interval else "" for c in row.cells]
        lines.append(_latex_line([*[""] * len(row.labels), *small]))
    return lines + [_latex_line(list(map(_tex, line))) for line in _published_lines(row)]


def _has_intervals(row: TableRow, intervals: bool) -> bool:
    return intervals and any(cell.interval for cell in row.cells)


def _latex_line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _tex(text: str) -> str:
    if text[:1] in ("[", "*"):  # the \\ of the row before would take it for its own argument
        return f"{{{text[0]}}}{_in_tex(text[1:])}"
    return _in_tex(text)


def _in_tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _rows(table: Table) -> list[TableRow]:
    return [row for group in table.groups for row in group.rows]


def _published_lines(row: TableRow) -> list[list[str]]:
    """Return the lines below a row: published values, and ours minus those."""
    if not row.has_published:
        return []
    blank = [""] * (len(row.labels) - 1)
    return [
        [*blank, "published", *(cell.published for cell in row.cells)],
        [*blank, "difference", *(cell.difference for cell in row.cells)],
    ]
