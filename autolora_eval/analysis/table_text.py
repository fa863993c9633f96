"""Layouts of the result table as GitHub Markdown and as LaTeX. What a name holds is no markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autolora_eval.analysis.layouts import Block, Entry, Layout, Line

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
