"""What the run found, in words, and what a reader must know before believing it."""

from __future__ import annotations

from dataclasses import dataclass

from autolora_eval.analysis.measures import Measure
from autolora_eval.report.evidence import NAME_LENGTH, Evidence, Row, in_words, tally
from autolora_eval.text import clean, clip, fixed, interval, listed, number, of, p_value

SIGNIFICANCE = 0.05
REASONS_SHOWN = 5
# More than this many comparisons are told in a line each: the numbers stand in the table below.
FINDINGS_IN_FULL = 8


@dataclass(frozen=True)
class Finding:
    """What was found of one cell.

    Attributes:
        lead: who is compared with whom.
        clauses: one statement a measure.
    """

    lead: str
    clauses: list[str]


def findings(evidence: Evidence) -> list[Finding]:
    """Return one finding for each cell that was compared with the baseline."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in evidence.compared:
        if row["method"] != row["baseline"]:
            names = (str(row["model"]), _name(evidence, row, "cell", "method"))
            groups.setdefault((*names, str(row["cell"])), []).append(row)
    in_full = len(groups) <= FINDINGS_IN_FULL
    return [
        _finding(evidence, model, name, rows, in_full) for (model, name, _), rows in groups.items()
    ]


def _name(evidence: Evidence, row: Row, cell: str, method: str) -> str:
    """Return a cell's label; older runs tell of the baseline's cell by its method alone."""
    return evidence.labels.get(str(row.get(cell))) or clip(row[method], NAME_LENGTH)


def _finding(evidence: Evidence, model: str, name: str, rows: list[Row], in_full: bool) -> Finding:
    by_measure = {row["measure"]: row for row in rows}
    known = [(m, by_measure[m.column]) for m in evidence.measured if m.column in by_measure]
    baseline = clip(rows[0]["baseline"], NAME_LENGTH)
    against = _name(evidence, rows[0], "baseline_cell", "baseline")
    lead = f"{clip(model, NAME_LENGTH)}: {name} against {against}."
    if not in_full:
        return Finding(lead, [_in_brief(known)])
    method = clip(rows[0]["method"], NAME_LENGTH)
    clauses = [_clause(method, baseline, measure, row) for measure, row in known]
    return Finding(lead, clauses)


def _in_brief(known: list[tuple[Measure, Row]]) -> str:
    """Return in one sentence which measures are higher, lower, or not told apart."""
    verdicts: dict[str, list[str]] = {}
    for measure, row in known:
        verdicts.setdefault(_verdict(row), []).append(measure.label)
    told = [f"{verdict}: {', '.join(labels)}" for verdict, labels in verdicts.items()]
    return f"{'; '.join(told)}."


def _verdict(row: Row) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    if low is None or high is None:
        return "without an interval"
    if low <= 0.0 <= high:
        return "no difference can be told"
    return f"{'higher' if low > 0.0 else 'lower'}{' (may be chance)' if _doubt(row) else ''}"


def _clause(method: str, baseline: str, measure: Measure, row: Row) -> str:
    """Return one sentence; it claims a difference only where the interval leaves out zero."""
    difference, low, high = (number(row.get(key)) for key in ("difference", "low", "high"))
    name = clean(measure.display_name)
    if difference is None:
        return f"{name}: {method} and {baseline} could not be compared."
    if low is None or high is None:
        return f"{name}: the difference is {fixed(difference, signed=True)}; it has no interval."
    if low <= 0.0 <= high:
        within = f"{fixed(difference, signed=True)} {interval(low, high, signed=True)}"
        wins = _wins(measure, row, True)
        told = f"{name}: no difference from {baseline} can be told: {within}{wins}"
        return f"{told}{_units_needed(row)}."
    size = fixed(abs(difference))
    within = interval(*sorted((abs(low), abs(high))))
    claim = _claim(method, baseline, measure, difference > 0)
    return f"{claim} by {size} {within}{_wins(measure, row, difference > 0)}{_doubt(row)}."


def _claim(method: str, baseline: str, measure: Measure, is_higher: bool) -> str:
    if measure.kind == "diversity":
        return f"{method} is {'more' if is_higher else 'less'} diverse than {baseline}"
    direction = "higher" if is_higher else "lower"
    better = "" if measure.higher_is_better else (" (worse)" if is_higher else " (better)")
    return f"{clean(measure.display_name)} is {direction}{better} than {baseline}'s"


def _wins(measure: Measure, row: Row, is_higher: bool) -> str:
    """Say on how many prompts or seeds the method was higher, or lower, than the baseline.

    Not of a product of cell means: it has no value of its own for a prompt, only a share in it.
    """
    if measure.kind == "product":
        return ""
    rate, n = number(row.get("win_rate")), number(row.get("n_units"))
    if rate is None or n is None or not n:
        return ""
    # The table has the share of units where the method is higher, ties counted as half.
    times = f"{rate * n if is_higher else n - rate * n:.1f}".removesuffix(".0")
    direction = "higher" if is_higher else "lower"
    return f", {direction} on {times} of {of(int(n), clean(row.get('unit') or 'unit'))}"


def _units_needed(row: Row) -> str:
    """Say how many prompts or seeds would tell; older runs do not know."""
    n = number(row.get("units_for_power_80"))
    if n is None:
        return ""
    units = of(_about(int(n)), clean(row.get("unit") or "unit"))
    return f"; a difference of this size would need about {units}"


def _about(n: int) -> int:
    """Return a number of two digits and zeros that is no less: the spread is itself estimated."""
    place = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // place) * place


def _doubt(row: Row) -> str:
    """Say so where the difference does not survive the correction for many comparisons."""
    p = number(row.get("p_holm"))
    if p is None or p < SIGNIFICANCE:
        return ""
    return f"; after correction for the number of comparisons {p_value(p)}, so it may be chance"


def caveats(evidence: Evidence) -> list[str]:
    """Return what a reader must know before the numbers, the gravest first."""
    return [
        *_miniatures(evidence),
        *_limits(evidence),
        *_images_missing(evidence),
        *_unscored(evidence),
        *_undefined(evidence),
        *_judge(evidence),
    ]


def _miniatures(evidence: Evidence) -> list[str]:
    references = {
        clip(name, NAME_LENGTH): _reference(model)
        for name, model in evidence.section("models").items()
    }
    references["the extractor"] = str(evidence.recorded("features", "model"))
    references["the judge"] = str(evidence.recorded("judge", "model"))
    names = [name for name, found in references.items() if found.startswith("miniature:")]
    if not names:
        return []
    subject = listed(names)
    what = "is a miniature model" if len(names) == 1 else "are miniature models"
    return [
        f"{subject[0].upper()}{subject[1:]} {what}: "
        "small, trained on rendered pictures of simple scenes, so that the whole evaluation runs "
        "on a laptop. These numbers show that the pipeline works. They say nothing about SDXL or "
        "SD3, and nothing about how the methods compare on them."
    ]


def _reference(model: object) -> str:
    pipeline = model.get("pipeline") if isinstance(model, dict) else None
    return str(pipeline.get("reference", "")) if isinstance(pipeline, dict) else ""


def _limits(evidence: Evidence) -> list[str]:
    if not evidence.recorded("limited"):
        return []
    prompts, seeds = evidence.recorded("prompts"), evidence.recorded("seeds")
    used = ""
    if isinstance(prompts, list) and isinstance(seeds, list):
        used = f" to {of(len(prompts), 'prompt')} and {of(len(seeds), 'seed')}"
    return [
        f"This run was limited{used} and does not cover the benchmark: "
        "its numbers are not the benchmark's."
    ]


def _images_missing(evidence: Evidence) -> list[str]:
    missing = {r["cell"]: int(number(r.get("n_missing")) or 0) for r in evidence.rows}
    total = sum(missing.values())
    if not total:
        return []
    where = ", ".join(f"{n} of {_cell(evidence, cell)}" for cell, n in missing.items() if n)
    return [f"{of(total, 'image is', 'images are')} missing or cannot be read ({where})."]


def _unscored(evidence: Evidence) -> list[str]:
    n_unscored = sum(int(number(row.get("n_unscored")) or 0) for row in evidence.rows)
    is_judged = any(measure.kind == "score" for measure in evidence.measured)
    if not n_unscored or not is_judged:
        return []
    reasons = tally(in_words(row.get("unscored_reason")) for row in evidence.images)
    shown = [f"{n} × {reason}" for reason, n in reasons[:REASONS_SHOWN]]
    if len(reasons) > REASONS_SHOWN:
        left = sum(n for _, n in reasons[REASONS_SHOWN:])
        shown.append(f"{left} for {of(len(reasons) - REASONS_SHOWN, 'other reason')}")
    because = f": {'; '.join(shown)}" if shown else ", for reasons that were not recorded"
    verb = "has no score and is" if n_unscored == 1 else "have no score and are"
    return [
        f"{of(n_unscored, 'image')} of {len(evidence.images):,} {verb} left out of the mean "
        f"scores, not counted as 0{because}."
    ]


def _undefined(evidence: Evidence) -> list[str]:
    undefined = [r for r in evidence.rows if number(r.get("n_undefined_prompts"))]
    return [
        f"{_cell(evidence, row['cell'])}: diversity is undefined for "
        f"{of(int(row['n_undefined_prompts']), 'prompt')}, left out of the mean: "
        f"{evidence.why_undefined(row['cell'])}."
        for row in undefined
    ]


def _judge(evidence: Evidence) -> list[str]:
    if not any(measure.kind == "score" for measure in evidence.measured):
        return ["No judge was asked: only diversity was measured, which alone says nothing of "
                "whether the images show what was asked for."]  # fmt: skip
    if not evidence.rubric_is_recorded:
        return ["The rubric was not recorded: the names of the scores are those of the table's "
                "columns, and higher is taken to be better."]  # fmt: skip
    return []


def _cell(evidence: Evidence, cell: str) -> str:
    row = next(r for r in evidence.rows if r["cell"] == cell)
    return f"{clip(row['model'], NAME_LENGTH)} × {evidence.labels[cell]}"
