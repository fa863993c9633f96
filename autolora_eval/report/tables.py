"""The tables of a report: what was measured, what was published, what differs, what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from autolora_eval._text import (
    DASH,
    as_finite_float,
    format_fixed,
    format_int,
    format_interval,
    format_p_value,
    truncate,
)
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.report.run_view import Row, RunView, text_of

# A4 holds no more columns with an interval each.
MEASURES_PER_TABLE = 6
# Of more, those that are alike are told in one line.
LINES_IN_FULL = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        text: the number.
        sub: what stands small below it.
        bold: whether it is the best of its model.
        mark: letter of the note that says why there is no number.
        cell: the cell that it is of; empty if it is of none.
    """

    text: str
    sub: str = ""
    bold: bool = False
    mark: str = ""
    cell: str = ""


@dataclass(frozen=True)
class Line:
    """One row: its label and one entry a column."""

    label: str
    entries: list[Entry]


@dataclass(frozen=True)
class Group:
    """The rows of one model."""

    name: str
    lines: list[Line]


@dataclass(frozen=True)
class Note:
    """A note below a table."""

    mark: str
    text: str


@dataclass(frozen=True)
class ResultTable:
    """A table with the cells grouped by model.

    Attributes:
        caption: how to read it.
        columns: heads.
        groups: the rows of each model.
        notes: why something is missing.
        title: what all columns show; empty where each shows something else.
    """

    caption: str
    columns: list[str]
    groups: list[Group]
    notes: list[Note]
    title: str = ""


@dataclass(frozen=True)
class Block:
    """One question about a run, and what the run answers.

    Attributes:
        title: the question.
        sentences: in words.
        tables: in numbers.
    """

    title: str
    sentences: list[str]
    tables: list[ResultTable]


class Notes:
    """Gives every distinct reason a letter, in order of appearance."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        """Return the letter of a reason."""
        n = len(self._marks)
        letter = _LETTERS[n % 26] * (n // 26 + 1)
        return self._marks.setdefault(reason, letter)

    def listed(self) -> list[Note]:
        """Return the notes that stand below the table."""
        return [Note(mark, reason) for reason, mark in self._marks.items()]


def parts(measured: Sequence[Measure]) -> list[Sequence[Measure]]:
    """Return measures as they fit into the width of a page."""
    return [
        measured[n : n + MEASURES_PER_TABLE] for n in range(0, len(measured), MEASURES_PER_TABLE)
    ]


def units(evidence: RunView) -> str:
    """Say what the intervals are, and over what they are taken where the comparisons tell."""
    return f"In brackets: 95 % intervals{over_units(evidence.compared)}."


def over_units(rows: Sequence[Row]) -> str:
    """Return " over prompts", or whatever the rows' intervals are taken over, if that is one."""
    units = {unit for row in rows if (unit := text_of(row.get("unit")))}
    return f" over {truncate(units.pop(), 20)}s" if len(units) == 1 else ""


def head(measure: Measure) -> str:
    """Return a measure's head of a column, with the direction that is better."""
    return f"{measure.label} {measure.arrow}"


def published_table(evidence: RunView) -> ResultTable | None:
    """Return the published values and how far the run is from each; None without any."""
    columns = set(evidence.run.table.columns)
    part = [m for m in evidence.measured if f"{m.column}_published" in columns]
    part = [
        m
        for m in part
        if any(as_finite_float(r.get(f"{m.column}_published")) is not None for r in evidence.rows)
    ]
    if not part:
        return None

    def entry(row: Row, measure: Measure) -> Entry:
        ours, published = (
            as_finite_float(row.get(measure.column)),
            as_finite_float(row.get(f"{measure.column}_published")),
        )
        if published is None:
            return Entry(DASH)
        if ours is None:
            return Entry(format_fixed(published), f"{DASH} here")
        return Entry(
            format_fixed(published),
            f"{format_fixed(ours)} here\n({format_fixed(ours - published, signed=True)})",
        )

    caption = (
        "Published values. Below each, in small type: the value of this run, and in brackets how "
        "far it is above the published one."
    )
    return _grouped(evidence, caption, part, entry, evidence.rows)


def differences(evidence: RunView) -> list[ResultTable]:
    """Return the paired differences from the baseline; empty where nothing was compared."""
    compared = {(str(row["cell"]), str(row["measure"])): row for row in evidence.compared}
    if not compared:
        return []

    def entry(row: Row, measure: Measure) -> Entry:
        if row["method"] == evidence.baseline:
            return Entry("baseline")
        found = compared.get((row["cell"], measure.column), {})
        within = format_interval(found.get("low"), found.get("high"), signed=True)
        p = as_finite_float(found.get("p_holm"))
        below = [within] if within else []
        below += [format_p_value(p)] if p is not None else []
        return Entry(format_fixed(found.get("difference"), signed=True), "\n".join(below))

    caption = (
        f"Paired differences from {truncate(evidence.baseline, 80)}{_at_the_same_point(evidence)}, "
        "with 95 % intervals; p by the Wilcoxon signed-rank test where a measure is a mean over "
        "the units, else by the t-test of the interval; Holm-corrected over the comparisons of the "
        "run."
    )
    rows = evidence.rows
    if len(rows) > LINES_IN_FULL:
        rows = [row for row in rows if row["method"] != evidence.baseline]
    return [_grouped(evidence, caption, part, entry, rows) for part in parts(evidence.measured)]


def _at_the_same_point(evidence: RunView) -> str:
    """Say of a sweep which cell of the baseline each is compared with."""
    if not any(evidence.points.values()):
        return ""
    return " with the same swept parameters, as far as it takes them (a dash: no one such cell)"


def accounting(evidence: RunView) -> ResultTable:
    """Return how many images and prompts each row rests on, and the products by prompt."""
    counted = {
        "n_images": "Images",
        "n_missing": "Missing",
        "n_unscored": "Unscored",
        "n_undefined_prompts": "Undefined prompts",
    }
    by_prompt = {
        f"{m.column}_prompt_mean": f"{m.label} by prompt"
        for m in evidence.measured
        if m.kind == "product"
        and any(
            as_finite_float(row.get(f"{m.column}_prompt_mean")) is not None for row in evidence.rows
        )
    }
    groups = by_model(
        evidence,
        lambda row: (
            [Entry(format_int(row.get(column))) for column in counted]
            + [Entry(format_fixed(row.get(column))) for column in by_prompt]
        ),
    )
    if not by_prompt:
        groups = [Group(group.name, without_repetition(group.lines)) for group in groups]
    caption = "What each row rests on." + (
        " By prompt: the mean of each prompt's own product, beside the product of the means above."
        if by_prompt
        else ""
    )
    return ResultTable(caption, [*counted.values(), *by_prompt.values()], groups, [])


def without_repetition(lines: Sequence[Line]) -> list[Line]:
    """Return lines, of many the most frequent entries as one line for all that have them."""
    if len(lines) <= LINES_IN_FULL:
        return list(lines)
    texts = [tuple((entry.text, entry.sub) for entry in line.entries) for line in lines]
    most, n = Counter(texts).most_common(1)[0]
    kept = [line for line, text in zip(lines, texts, strict=True) if text != most]
    alike = next(line for line, text in zip(lines, texts, strict=True) if text == most)
    return [*kept, Line(f"each of {n} {'others' if kept else 'cells'}", alike.entries)]


def _grouped(
    evidence: RunView,
    caption: str,
    part: Sequence[Measure],
    entry: Callable[[Row, Measure], Entry],
    rows: Sequence[Row],
) -> ResultTable:
    shown = {row["cell"] for row in rows}
    groups = by_model(evidence, lambda row: [entry(row, m) for m in part], shown)
    return ResultTable(caption, [head(m) for m in part], groups, [])


def by_model(
    evidence: RunView,
    entries: Callable[[Row], list[Entry]],
    shown: Collection[str] | None = None,
) -> list[Group]:
    """Return one line a cell, with the entries that its row is given.

    Args:
        evidence: the run.
        entries: of a row of the result table.
        shown: cells; all of them where not given.
    """
    groups = []
    for model, rows in evidence.models.items():
        kept = [row for row in rows if shown is None or row["cell"] in shown]
        lines = [Line(evidence.labels[row["cell"]], entries(row)) for row in kept]
        if lines:
            groups.append(Group(truncate(model, 80), lines))
    return groups
