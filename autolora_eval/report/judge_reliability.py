"""How far the judge can be trusted: what it left unscored, and whether it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from autolora_eval._text import (
    DASH,
    as_finite_float,
    format_alpha,
    format_fixed,
    format_int,
    format_interval,
    pluralize,
    sanitize,
    truncate,
)
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.analysis.reliability import ALL, TENTATIVE_ALPHA
from autolora_eval.report.human_agreement_section import people
from autolora_eval.report.run_view import (
    NAME_LENGTH,
    REASON_LENGTH,
    Row,
    RunView,
    in_words,
    row_where,
    tally,
    text_of,
)
from autolora_eval.report.tables import (
    Block,
    Entry,
    Group,
    Line,
    Notes,
    ResultTable,
    by_model,
    over_units,
    without_repetition,
)

REASONS_SHOWN = 4
SCORES_PER_TABLE = 2
UNSCORED_SHARE = 0.01
HEAD_LENGTH = 40
KRIPPENDORFF = "Krippendorff (Content Analysis, 2nd ed. 2004, p. 241)"


def reliability(evidence: RunView) -> list[Block]:
    """Return what is known of the judge; empty where none was asked."""
    if not evidence.judged:
        return []
    return [_replies(evidence), _repeats(evidence), people(evidence)]


def reliability_caveats(evidence: RunView) -> list[str]:
    """Return what of it a reader must know before the numbers."""
    if not evidence.judged:
        return []
    return [*_often_unscored(evidence), *_low_alpha(evidence)]


def _cell_name(evidence: RunView, row: Row) -> str:
    return f"{truncate(row['model'], NAME_LENGTH)} × {evidence.labels[row['cell']]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# ---- What was left unscored


def _often_unscored(evidence: RunView) -> list[str]:
    shares = {
        row["cell"]: (as_finite_float(row.get("n_unscored")) or 0) / n
        for row in evidence.rows
        if (n := as_finite_float(row.get("n_images")))
    }
    worst = max(evidence.rows, key=lambda row: shares.get(row["cell"], 0.0))
    share = shares.get(worst["cell"], 0.0)
    if share <= UNSCORED_SHARE:
        return []
    spread = "" if len(shares) == 1 or min(shares.values()) == share else (
        f", and {_percent(min(shares.values()))} of the cell with the fewest"
    )  # fmt: skip
    return [
        f"{_percent(share)} of {_cell_name(evidence, worst)} is unscored{spread}: mean scores are "
        "of the images that the judge could answer for, which may be the easier ones."
    ]


def _replies(evidence: RunView) -> Block:
    """Say how the judge was asked, and which images it left unscored for which reason."""
    n, unscored = len(evidence.images), _unscored(evidence)
    if not unscored:
        told = f"All {format_int(n)} images were scored." if n != 1 else "The one image was scored."
        return Block("What it left unscored", [told, *_asked(evidence)], [])
    told = (
        f"Unscored: {format_int(len(unscored))} of {pluralize(n, 'image')} "
        f"({_percent(len(unscored) / n)})."
    )
    return Block("What it left unscored", [told, *_asked(evidence)], [_reasons(evidence, unscored)])


def _unscored(evidence: RunView) -> list[Row]:
    return [row for row in evidence.images if in_words(row.get("unscored_reason"))]


def _reason(row: Row) -> str:
    return truncate(in_words(row.get("unscored_reason")) or "", REASON_LENGTH)


def _reasons(evidence: RunView, unscored: list[Row]) -> ResultTable:
    """Return how many images of each cell are unscored for each reason."""
    reasons = [reason for reason, _ in tally(map(_reason, unscored))]
    shown = reasons if len(reasons) <= REASONS_SHOWN + 1 else reasons[:REASONS_SHOWN]
    others = len(reasons) - len(shown)

    def entries(row: Row) -> list[Entry]:
        found = [_reason(image) for image in unscored if image["cell"] == row["cell"]]
        n = as_finite_float(row.get("n_images"))
        counts = [found.count(reason) for reason in shown]
        counts += [len(found) - sum(counts)] if others else []
        share = _percent(len(found) / n) if n and found else ""
        return [
            Entry(format_int(n)),
            Entry(format_int(len(found)), share),
            *(Entry(format_int(c)) for c in counts),
        ]

    columns = ["Images", "Unscored", *(truncate(reason, HEAD_LENGTH) for reason in shown)]
    columns += [pluralize(others, "other reason")] if others else []
    caption = "Images without a score, by cell and reason. They count in no mean, and never as 0."
    groups = by_model(evidence, entries)
    groups = [Group(group.name, without_repetition(group.lines)) for group in groups]
    return ResultTable(caption, columns, groups, [])


def _asked(evidence: RunView) -> list[str]:
    """Say who answered, how its replies were constrained, and which were not asked for anew."""
    judge = evidence.section("judge")
    served, version = judge.get("served_by"), judge.get("server_version")
    named = (served or ("a server of version" if version else None), version)
    by = " ".join(truncate(part, NAME_LENGTH) for part in named if part)
    told = [f"The judge was served by {by}."] if by else []
    constraint = truncate(judge.get("constraint") or "", NAME_LENGTH)
    if constraint == "plain":
        told.append(
            "The judge's replies were free: nothing held them to the rubric's form (plain)."
        )
    elif constraint:
        told.append(f"The judge's replies were held to the rubric's form ({constraint}).")
    cached = as_finite_float(judge.get("cached"))
    if cached:
        verb = "reply was" if cached == 1 else "replies were"
        told.append(f"{format_int(cached)} {verb} taken from the cache of earlier runs.")
    if judge.get("cache_problem"):
        problem = truncate(judge["cache_problem"], REASON_LENGTH)
        told.append(f"The cache of earlier runs could not be used: {problem}.")
    return [" ".join(told)] if told else []


# ---- The judge and itself


def _low_alpha(evidence: RunView) -> list[str]:
    told = []
    for measure in evidence.judged:
        row = _of_all(evidence, measure)
        alpha = as_finite_float(row.get("alpha"))
        if alpha is not None and alpha < TENTATIVE_ALPHA:
            found = format_alpha(alpha, row.get("alpha_low"), row.get("alpha_high"))
            told.append(
                f"{sanitize(measure.display_name)}: the judge repeats itself badly, {found} "
                "over its "
                f"own verdicts on the same images. Below {TENTATIVE_ALPHA} is less than "
                f"{KRIPPENDORFF} accepts even for tentative conclusions."
            )
    return told


def _of_all(evidence: RunView, measure: Measure) -> Row:
    return row_where(evidence.reliability, score=measure.column, cell=ALL)


def _repeats(evidence: RunView) -> Block:
    scores = evidence.judged
    repeated = any(as_finite_float(row.get("n_repeated")) for row in evidence.reliability)
    expected = any(
        as_finite_float(row.get("expected_mean")) is not None for row in evidence.reliability
    )
    parts = [scores[n : n + SCORES_PER_TABLE] for n in range(0, len(scores), SCORES_PER_TABLE)]
    tables = [
        _repeat_table(evidence, part, repeated, expected) for part in parts if repeated or expected
    ]
    told = _told_of_repeats(evidence) if repeated else [
        "Each image has one verdict at most: nothing tells how far the judge repeats itself. To "
        "measure it, write judge.repeats: 3 in the benchmark and run it again; what was judged is "
        "kept."
    ]  # fmt: skip
    return Block("Whether it repeats itself", told, tables)


def _told_of_repeats(evidence: RunView) -> list[str]:
    asked, given = (
        sum(int(as_finite_float(_of_all(evidence, m).get(key)) or 0) for m in evidence.judged[:1])
        for key in ("n_asked", "n_verdicts")
    )
    repeats = as_finite_float(evidence.recorded("judge", "repeats"))
    told = f"Each image was judged {format_int(repeats)} times. " if repeats else ""
    told += (
        "α is Krippendorff's for ordinal data: 1 where verdicts always agree, 0 where they agree "
        f"as by chance; {KRIPPENDORFF} asks for 0.800, and for {TENTATIVE_ALPHA} at the least."
    )
    lost = (
        f"{format_int(asked - given)} of {format_int(asked)} replies hold no verdict."
        if given < asked
        else ""
    )
    greedy = ""
    if as_finite_float(_temperature(evidence)) == 0.0:
        greedy = (
            "At temperature 0 a judge repeats itself by design: this tells how deterministic its "
            "server is, and not how sure it is."
        )
    return [told, *(sentence for sentence in (lost, greedy) if sentence)]


def _temperature(evidence: RunView) -> object:
    stated = evidence.recorded("judge", "temperature")
    return evidence.recorded("benchmark", "judge", "temperature") if stated is None else stated


def _repeat_table(
    evidence: RunView, part: Sequence[Measure], repeated: bool, expected: bool
) -> ResultTable:
    notes = Notes()

    def entries(cell: str) -> list[Entry]:
        found = []
        for measure in part:
            row = row_where(evidence.reliability, score=measure.column, cell=cell)
            found += _repeat_entries(row, notes) if repeated else []
            found += [
                Entry(format_fixed(row.get(key))) for key in ("mean", "expected_mean") if expected
            ]
        return found

    groups = by_model(evidence, lambda row: entries(row["cell"]))
    if len(evidence.rows) > 1:
        groups.append(Group("All cells", [Line("All", entries(ALL))]))
    columns = []
    for measure in part:
        columns += [f"{measure.label} α", f"{measure.label} equal"] if repeated else []
        columns += [f"{measure.label} mean", f"{measure.label} expected"] if expected else []
    return ResultTable(
        _repeat_caption(evidence, repeated, expected), columns, groups, notes.listed()
    )


def _repeat_entries(row: Row, notes: Notes) -> list[Entry]:
    reason = text_of(row.get("reason"))
    mark = notes.mark(truncate(reason, REASON_LENGTH)) if reason else ""
    within = format_interval(row.get("alpha_low"), row.get("alpha_high"))
    alpha = as_finite_float(row.get("alpha"))
    share, n = as_finite_float(row.get("exact_agreement")), as_finite_float(row.get("n_repeated"))
    equal = (
        Entry(DASH)
        if share is None
        else Entry(_percent(share), f"of {pluralize(int(n or 0), 'image')}")
    )
    return [Entry(format_fixed(alpha), within, mark=mark), equal]


def _repeat_caption(evidence: RunView, repeated: bool, expected: bool) -> str:
    told = []
    if repeated:
        over = over_units(evidence.reliability)
        told.append(
            f"In brackets: 95 % intervals, BCa bootstrap{over}. Equal: images whose verdicts are "
            "all the same, of those with two or more."
        )
    if expected:
        told.append(
            "Mean: of the verdicts. Expected: mean of the expected scores, over the probabilities "
            "that the judge gave to every score."
        )
    return " ".join(told)
