"""Whether the judge agrees with people who rated the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autolora_eval._text import (
    as_finite_float,
    format_alpha,
    format_fixed,
    format_int,
    format_interval,
    join_names,
    pluralize,
    truncate,
)
from autolora_eval.analysis.human_agreement import (
    EXPECTED,
    NEARER,
    RATERS_ALPHA,
    STATISTICS,
    VERDICT,
)
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.analysis.reliability import ALL
from autolora_eval.report.run_view import REASON_LENGTH, Row, RunView, row_where, text_of
from autolora_eval.report.tables import (
    Block,
    Entry,
    Group,
    Line,
    Notes,
    ResultTable,
    by_model,
    over_units,
    parts,
)


def people(evidence: RunView) -> Block:
    """Return how far the judge agrees with people, or how to find out."""
    title = "Whether it agrees with people"
    how = "autolora-eval agreement RUN human.csv"
    if not evidence.agreement:
        return Block(title, [f"No ratings by people were compared with it. To do so: {how}"], [])
    if not evidence.agreement_is_of_these_scores:
        told = f"People's ratings were compared with other scores than these. To do it again: {how}"
        return Block(title, [told], [])
    tables = [_agreement_table(evidence)]
    if any(row.get("cell") != ALL for row in evidence.agreement):
        tables += [_bias_table(evidence, part) for part in parts(_rated(evidence))]
    return Block(title, [_ratings(evidence), *_people_themselves(evidence)], tables)


def _rated(evidence: RunView) -> list[Measure]:
    columns = {row.get("score") for row in evidence.agreement}
    return [measure for measure in evidence.judged if measure.column in columns]


def _ratings(evidence: RunView) -> str:
    ratings, images, raters = (
        int(as_finite_float(evidence.recorded("agreement", key)) or 0)
        for key in ("ratings", "images", "raters")
    )
    averaged = ", averaged over people for each image" if raters > 1 else ""
    return (
        f"{pluralize(ratings, 'rating')} of {pluralize(images, 'image')} by "
        f"{pluralize(raters, 'person', 'people')}{averaged}."
    )


def _people_themselves(evidence: RunView) -> list[str]:
    """Say how far people agree among themselves, and whether the expected score is nearer."""
    told, alphas = [], []
    for measure in _rated(evidence):
        row = row_where(evidence.agreement, score=measure.column, statistic=RATERS_ALPHA)
        found = format_alpha(row.get("value"), row.get("low"), row.get("high"))
        alphas += [f"{found} on {measure.label}"] if row else []
    if alphas:
        told.append(
            f"Among themselves, people agree with {join_names(alphas)} (Krippendorff's, "
            "ordinal): by "
            "this the judge's agreement with them is to be read."
        )
    for measure in _rated(evidence):
        row = row_where(evidence.agreement, score=measure.column, statistic=NEARER)
        value, low, high = (as_finite_float(row.get(key)) for key in ("value", "low", "high"))
        if value is None or low is None or high is None:
            continue
        if low <= 0.0 <= high:
            verdict = (
                "neither the verdict nor the expected score can be told to be nearer to people"
            )
        else:
            nearer = "nearer to" if value > 0 else "farther from"
            verdict = f"the expected score is {nearer} people than the verdict is"
        within = f"{format_fixed(value, signed=True)} {format_interval(low, high, signed=True)}"
        told.append(f"{measure.label}: {verdict} ({within} in mean distance).")
    return told


def _agreement_table(evidence: RunView) -> ResultTable:
    notes = Notes()
    lines = [
        line
        for measure in _rated(evidence)
        for compared, name in ((VERDICT, measure.label), (EXPECTED, f"{measure.label} expected"))
        if (line := _agreement_line(evidence, measure, compared, name, notes))
    ]
    caption = (
        "ρ: Spearman's; τ-b: Kendall's; κ: Cohen's with quadratic weights, which is Lin's "
        "concordance where values are not whole numbers; 1 is perfect agreement. Judge − people: "
        "mean difference. Equal and within 1: share of images. In brackets: 95 % intervals, BCa "
        f"bootstrap{over_units(evidence.agreement)}."
    )
    columns = [statistic.head for statistic in STATISTICS.values()]
    return ResultTable(caption, [*columns, "Images"], [Group("", lines)], notes.listed())


def _agreement_line(
    evidence: RunView, measure: Measure, compared: str, name: str, notes: Notes
) -> Line | None:
    """Return the statistics of a verdict or an expected score; None where there are none."""
    of_score = {"score": measure.column, "compared": compared, "cell": ALL}
    rows = {
        statistic: row_where(evidence.agreement, statistic=statistic, **of_score)
        for statistic in STATISTICS
    }
    if not any(rows.values()):
        return None
    entries = [_agreement_entry(row, statistic, notes) for statistic, row in rows.items()]
    return Line(name, [*entries, Entry(format_int(rows["spearman"].get("n_images")))])


def _agreement_entry(row: Row, statistic: str, notes: Notes) -> Entry:
    signed = STATISTICS[statistic].signed
    reason = text_of(row.get("reason"))
    within = format_interval(row.get("low"), row.get("high"), signed=signed)
    mark = notes.mark(truncate(reason, REASON_LENGTH)) if reason else ""
    return Entry(format_fixed(row.get("value"), signed=signed), within, mark=mark)


def _bias_table(evidence: RunView, part: Sequence[Measure]) -> ResultTable:
    notes = Notes()

    def entries(row: Row) -> list[Entry]:
        found = []
        for measure in part:
            of_cell = row_where(
                evidence.agreement,
                score=measure.column,
                compared=VERDICT,
                statistic="bias",
                cell=row["cell"],
            )
            entry = _agreement_entry(of_cell, "bias", notes)
            n = pluralize(int(as_finite_float(of_cell.get("n_images")) or 0), "image")
            found.append(replace(entry, sub="\n".join(filter(None, (entry.sub, n)))))
        return found

    columns = [f"{measure.label}: judge − people" for measure in part]
    caption = (
        "Mean difference of the judge from people, by cell. If it differs between cells by more "
        "than chance, the judge favours some of the methods."
    )
    return ResultTable(caption, columns, by_model(evidence, entries), notes.listed())
