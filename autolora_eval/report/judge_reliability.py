"""How reliable the judge is: unscored images, repeated replies, and agreement with people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autolora_eval._files import sha256_file
from autolora_eval._text import (
    DASH,
    Sentences,
    as_finite_float,
    format_alpha,
    format_fixed,
    format_int,
    format_interval,
    pluralize,
    truncate,
)
from autolora_eval.analysis.human_agreement import (
    EXPECTED,
    JUDGE,
    NEARER,
    RATERS_ALPHA,
    STATISTICS,
)
from autolora_eval.analysis.metrics import Metric
from autolora_eval.analysis.reliability import ALL, TENTATIVE_ALPHA
from autolora_eval.analysis.table_layout import Table, TableCell, TableGroup, TableRow
from autolora_eval.report.figures._style import in_parts
from autolora_eval.report.report_tables import (
    METRICS_PER_TABLE,
    footnotes,
    group_rows,
    merge_equal_rows,
    unit_name,
)
from autolora_eval.report.run_view import (
    NAME_LENGTH,
    REASON_LENGTH,
    Row,
    RunView,
    row_where,
    text_of,
)

REASONS_SHOWN = 4
SCORES_PER_TABLE = 2
HEAD_LENGTH = 40
say = Sentences("reliability")


@dataclass(frozen=True)
class Answer:
    """The answer of a run to a question about the judge, in words and in numbers."""

    title: str
    sentences: list[str]
    tables: list[Table]


def reliability(view: RunView) -> list[Answer]:
    """Return what is known about the judge; empty without a judge."""
    return [_unscored(view), _repeats(view), _human_agreement(view)] if view.judged else []


# ---- Unscored images


def _unscored(view: RunView) -> Answer:
    reasons = view.unscored_reasons
    sentences = [say.scored(len(view.images), sum(n for _, n in reasons)), _asked(view)]
    tables = [_reasons(view, [reason for reason, _ in reasons])] if reasons else []
    return Answer("Unscored images", [text for text in sentences if text], tables)


def _reasons(view: RunView, reasons: list[str]) -> Table:
    shown = reasons if len(reasons) <= REASONS_SHOWN + 1 else reasons[:REASONS_SHOWN]
    others = len(reasons) - len(shown)

    def cells(row: Row) -> list[TableCell]:
        found = view.unscored.get(row["cell"], Counter())
        n, unscored = as_finite_float(row.get("n_images")), found.total()
        counts = [found[reason] for reason in shown]
        counts += [unscored - sum(counts)] if others else []
        share = (f"{unscored / n:.1%}",) if n and unscored else ()
        numbers = [format_int(n), format_int(unscored), *map(format_int, counts)]
        return [TableCell(text, details=share if i == 1 else ()) for i, text in enumerate(numbers)]

    columns = ["Images", "Unscored", *(truncate(reason, HEAD_LENGTH) for reason in shown)]
    columns += [pluralize(others, "other reason")] if others else []
    groups = merge_equal_rows(group_rows(view, cells))
    return Table(tuple(columns), groups, caption=say.reasons_caption())


def _asked(view: RunView) -> str:
    judge = view.manifest.judge
    if judge is None:
        return ""
    version = judge.server_version
    named = (judge.served_by or ("a server of version" if version else None), version)
    return say.asked(
        " ".join(truncate(part, NAME_LENGTH) for part in named if part),
        truncate(judge.constraint or "", NAME_LENGTH),
        judge.cached,
        truncate(judge.cache_problem or "", REASON_LENGTH),
    )


# ---- Repeated replies


def of_all_cells(view: RunView, score: Metric) -> Row:
    """Return the row of reliability.csv on all cells together."""
    return row_where(view.reliability, score=score.column, cell=ALL)


def _repeats(view: RunView) -> Answer:
    repeated = any(as_finite_float(row.get("n_repeated")) for row in view.reliability)
    expected = any(as_finite_float(r.get("expected_mean")) is not None for r in view.reliability)
    parts = in_parts(view.judged, SCORES_PER_TABLE) if repeated or expected else []
    tables = [_repeat_table(view, part, repeated, expected) for part in parts]
    sentences = _repeat_sentences(view) if repeated else [say.not_repeated()]
    return Answer("Consistency of repeated replies", sentences, tables)


def _repeat_sentences(view: RunView) -> list[str]:
    row = of_all_cells(view, view.judged[0])
    asked, valid = (int(as_finite_float(row.get(key)) or 0) for key in ("n_asked", "n_valid"))
    judge = view.manifest.judge
    sentences = [say.repeated(judge.repeats if judge else None, TENTATIVE_ALPHA)]
    if "n_valid" in row and valid < asked:  # not in a run of an earlier version
        sentences.append(say.lost(asked - valid, asked))
    if judge and judge.temperature == 0.0:
        sentences.append(say.greedy())
    return sentences


def _repeat_table(view: RunView, part: Sequence[Metric], repeated: bool, expected: bool) -> Table:
    def cells(cell: str) -> list[TableCell]:
        found = []
        for score in part:
            row = row_where(view.reliability, score=score.column, cell=cell)
            found += _repeat_cells(row) if repeated else []
            means = ("mean", "expected_mean") if expected else ()
            found += [TableCell(format_fixed(row.get(key))) for key in means]
        return found

    groups = group_rows(view, lambda row: cells(row["cell"]))
    if len(view.rows) > 1:
        groups += (TableGroup("All cells", (TableRow(("All",), tuple(cells(ALL))),)),)
    columns = []
    for score in part:
        columns += [f"{score.label} α", f"{score.label} equal"] if repeated else []
        columns += [f"{score.label} mean", f"{score.label} expected"] if expected else []
    caption = say.repeats_caption(repeated, expected, unit_name(view.reliability))
    return Table(tuple(columns), groups, caption=caption, footnotes=footnotes(groups))


def _repeat_cells(row: Row) -> list[TableCell]:
    within = format_interval(row.get("alpha_low"), row.get("alpha_high"))
    share, n = as_finite_float(row.get("exact_agreement")), as_finite_float(row.get("n_repeated"))
    equal = TableCell(DASH)
    if share is not None:
        equal = TableCell(f"{share:.1%}", details=(f"of {pluralize(int(n or 0), 'image')}",))
    alpha = TableCell(format_fixed(row.get("alpha")), within, why=_why(row))
    return [alpha, equal]


def _why(row: Row) -> str:
    """Return why a statistic is missing, if it is."""
    return truncate(text_of(row.get("reason")) or "", REASON_LENGTH)


# ---- Agreement with people


def _human_agreement(view: RunView) -> Answer:
    title = "Agreement with people"
    found = view.manifest.agreement
    if not view.agreement:
        return Answer(title, [say.no_ratings()], [])
    if found is None or found.scores_sha256 != sha256_file(view.run.folder.scores):
        return Answer(title, [say.outdated_ratings()], [])
    tables = [_agreement_table(view)]
    if any(row.get("cell") != ALL for row in view.agreement):
        tables += [_bias_table(view, part) for part in in_parts(_rated(view), METRICS_PER_TABLE)]
    counts = say.ratings(found.ratings, found.images, found.raters)
    return Answer(title, [counts, *_people_sentences(view)], tables)


def _rated(view: RunView) -> list[Metric]:
    columns = {row.get("score") for row in view.agreement}
    return [score for score in view.judged if score.column in columns]


def _people_sentences(view: RunView) -> list[str]:
    alphas, nearer = [], []
    for score in _rated(view):
        row = row_where(view.agreement, score=score.column, statistic=RATERS_ALPHA)
        if row:
            alpha = format_alpha(row.get("value"), row.get("low"), row.get("high"))
            alphas.append(f"{alpha} on {score.label}")
        row = row_where(view.agreement, score=score.column, statistic=NEARER)
        ends = [as_finite_float(row.get(key)) for key in ("value", "low", "high")]
        if None not in ends:
            nearer.append(say.expected_nearer(score.label, *ends))
    return [say.raters_agree(alphas), *nearer] if alphas else nearer


def _agreement_table(view: RunView) -> Table:
    rows = [
        row
        for score in _rated(view)
        for compared, name in ((JUDGE, score.label), (EXPECTED, f"{score.label} expected"))
        if (row := _agreement_row(view, score, compared, name))
    ]
    columns = (*(statistic.head for statistic in STATISTICS.values()), "Images")
    caption = say.agreement_caption(unit_name(view.agreement))
    groups = (TableGroup("", tuple(rows)),)
    return Table(columns, groups, caption=caption, footnotes=footnotes(groups))


def _agreement_row(view: RunView, score: Metric, compared: str, name: str) -> TableRow | None:
    """Return the statistics of the judge's or the expected score; None if there are none."""
    where = {"score": score.column, "compared": compared, "cell": ALL}
    rows = {
        statistic: row_where(view.agreement, statistic=statistic, **where)
        for statistic in STATISTICS
    }
    if not any(rows.values()):
        return None
    cells = [_agreement_cell(row, statistic) for statistic, row in rows.items()]
    cells.append(TableCell(format_int(rows["spearman"].get("n_images"))))
    return TableRow((name,), tuple(cells))


def _agreement_cell(row: Row, statistic: str) -> TableCell:
    signed = STATISTICS[statistic].signed
    within = format_interval(row.get("low"), row.get("high"), signed=signed)
    value = format_fixed(row.get("value"), signed=signed)
    return TableCell(value, within, why=_why(row))


def _bias_table(view: RunView, part: Sequence[Metric]) -> Table:
    where = {"compared": JUDGE, "statistic": "bias"}

    def cell(row: Row, score: Metric) -> TableCell:
        found = row_where(view.agreement, score=score.column, cell=row["cell"], **where)
        n = pluralize(int(as_finite_float(found.get("n_images")) or 0), "image")
        return replace(_agreement_cell(found, "bias"), details=(n,))

    groups = group_rows(view, lambda row: [cell(row, score) for score in part])
    columns = tuple(f"{score.label}: judge − people" for score in part)
    return Table(columns, groups, caption=say.bias_caption(), footnotes=footnotes(groups))
