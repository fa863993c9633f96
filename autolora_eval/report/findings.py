"""Who is ahead in a run: the measure that decides, and the cells that stand for their methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from autolora_eval._text import (
    as_finite_float,
    format_fixed,
    format_interval,
    format_p_value,
    parameter_label,
    pluralize,
    point_label,
    sanitize,
    truncate,
)
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.analysis.sentences import (
    MOST_UNITS,
    Verdict,
    about,
    clause,
    is_doubted,
    is_told,
    needed,
    unit_of,
    units_ahead,
    verdict,
)
from autolora_eval.report.run_view import NAME_LENGTH, Row, RunView

# More cells of a model than these are not all shown side by side.
CELLS_SIDE_BY_SIDE = 9


def deciding_measure(evidence: RunView) -> Measure:
    """Return the measure that methods are ranked by where there must be one.

    As in the paper it is the product of diversity and score, of which the first score's is taken;
    without a judge it is diversity.
    """
    products = [measure for measure in evidence.measured if measure.kind == "product"]
    return products[0] if products else evidence.measured[0]


def best_of(rows: Sequence[Row], measure: Measure) -> Row | None:
    """Return the row with the best value; the first of equals, None where none has a value."""
    known = [row for row in rows if as_finite_float(row.get(measure.column)) is not None]
    if not known:
        return None
    sign = 1.0 if measure.higher_is_better else -1.0
    return max(known, key=lambda row: sign * float(row[measure.column]))


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows of one model by method, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["method"]), []).append(row)
    return groups


def best_settings(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """Return for each method of one model its best cell; its first where none has a value."""
    return [best_of(alike, measure) or alike[0] for alike in by_method(rows).values()]


def at_point(evidence: RunView, rows: Sequence[Row], point: Mapping[str, str]) -> list[Row]:
    """Return for each method of one model its cell at a sweep point.

    Args:
        evidence: the run.
        rows: of one model.
        point: swept parameters; one that a method does not take does not matter for it. Of several
            cells, which differ in a parameter that is not in the point, the first is taken.
    """
    found = []
    for alike in by_method(rows).values():
        for row in alike:
            own = evidence.points.get(row["cell"], {})
            if all(point.get(name, value) == value for name, value in own.items()):
                found.append(row)
                break
    return found


def side_by_side(evidence: RunView, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Return the cells of a model that are shown side by side, and which those are.

    Args:
        evidence: the run.
        rows: of one model.

    Returns:
        All cells if they are few; else those at the sweep point where the deciding measure is
        best, and a sentence that says so.
    """
    if len(rows) <= CELLS_SIDE_BY_SIDE:
        return list(rows), ""
    measure = deciding_measure(evidence)
    best = best_of(rows, measure) or rows[0]
    point = evidence.points.get(best["cell"], {})
    if not point:
        return list(rows[:CELLS_SIDE_BY_SIDE]), f"The first {CELLS_SIDE_BY_SIDE} methods."
    told = (
        f"Each at {point_label(point)}, where {best['method']} has the best {measure.label} of the "
        "run, as far as a method takes it."
    )
    return at_point(evidence, rows, point)[:CELLS_SIDE_BY_SIDE], told


# --------------------
# What the run found, in words: who is first, by how much, how sure.


MODELS_TOLD = 3
METHODS_TOLD = 4
PRODUCTS_TOLD = 2
# More sentences than these do not fit the first page: then each method has one.
SENTENCES_IN_FULL = 6
Style = Literal["all in words", "told in words", "brief"]


@dataclass(frozen=True)
class Finding:
    """What was found of one cell, or of one method along a sweep.

    Attributes:
        lead: who is compared with whom.
        clauses: one statement a measure, or a group of measures.
        listed: whether they are sentences of their own.
    """

    lead: str
    clauses: list[str]
    listed: bool = False


# ---- Who is first


def verdicts(evidence: RunView) -> list[Finding]:
    """Return who is first by diversity × score, of each model, and whether that can be told.

    Without a judge it is by diversity.
    """
    products = [m for m in evidence.measured if m.kind == "product"][:PRODUCTS_TOLD]
    several = len(evidence.models) > 1
    found = []
    for model, rows in list(evidence.models.items())[:MODELS_TOLD]:
        for measure in products or [deciding_measure(evidence)]:
            first = best_of(rows, measure)
            if first is None:
                continue
            what = (
                measure.display_name
                if measure.label == measure.display_name
                else (f"{sanitize(measure.display_name)} ({measure.label})")
            )
            base = ", the baseline," if first["method"] == evidence.baseline else ""
            lead = f"{_where(model, several)}{what}: {_called(evidence, first)}{base} is first"
            found.append(Finding(lead, [_verdict(evidence, rows, first, measure)]))
    left = len(evidence.models) - MODELS_TOLD
    if left > 0:
        found.append(Finding(f"{pluralize(left, 'more model')}: see the results.", []))
    return found


def _where(model: str, several: bool) -> str:
    return f"{truncate(model, NAME_LENGTH)}, " if several else ""


def _called(evidence: RunView, row: Row) -> str:
    """Return a cell's name in a sentence: its method, and where on a sweep it is."""
    point = evidence.points.get(row["cell"], {})
    name = truncate(row["method"], NAME_LENGTH)
    return f"{name} at {point_label(point)}" if point else name


def _verdict(evidence: RunView, rows: Sequence[Row], first: Row, measure: Measure) -> str:
    """Say with what the first is first, how it stands to the baseline, and what comes next."""
    own = _value(first, measure)
    is_baseline = first["method"] == evidence.baseline
    second = best_of([row for row in rows if row["method"] != first["method"]], measure)
    if second is None and is_baseline:
        return f"with {own}; nothing else has a value."
    stands = "" if is_baseline else _stands(evidence, first, measure)
    # The baseline's cell that the first was compared with has been told of.
    if second is None or second["cell"] == _compared(evidence, first["cell"], measure).get(
        "baseline_cell", second["cell"] if second["method"] == evidence.baseline else None
    ):
        return f"with {own}{stands}."
    value = _value(second, measure)
    after = _stands(evidence, second, measure) if is_baseline else ""
    return f"with {own}{stands}. Next is {_called(evidence, second)} with {value}{after}."


def _value(row: Row, measure: Measure) -> str:
    within = format_interval(row.get(f"{measure.column}_low"), row.get(f"{measure.column}_high"))
    return f"{format_fixed(row.get(measure.column))} {within}".rstrip()


def _stands(evidence: RunView, row: Row, measure: Measure) -> str:
    """Say how a cell differs from the baseline's cell that it is compared with."""
    found = _compared(evidence, row["cell"], measure)
    if not found or verdict(found) == "not compared":
        return ""
    baseline = _baseline_called(evidence, row, found)
    how = verdict(found)
    if how == "no interval":
        return f"; its difference from {baseline} has no interval"
    low, high = (float(found[end]) for end in ("low", "high"))
    if how == "not told":
        signed = (
            f"{format_fixed(found['difference'], signed=True)} "
            f"{format_interval(low, high, signed=True)}"
        )
        return f"; it cannot be told from {baseline} ({signed})"
    size = (
        f"{format_fixed(abs(float(found['difference'])))} "
        f"{format_interval(*sorted((abs(low), abs(high))))}"
    )
    p = as_finite_float(found.get("p_holm"))
    sure = "" if p is None else f" ({format_p_value(p)})"
    chance = f"{sure}, which may be chance" if is_doubted(found) else sure
    return f"; {how} than {baseline} by {size}{chance}"


def _baseline_called(evidence: RunView, row: Row, found: Row) -> str:
    baseline = truncate(found["baseline"], NAME_LENGTH)
    base = next((r for r in evidence.rows if r["cell"] == found.get("baseline_cell")), None)
    value = evidence.points.get(row["cell"], {}) and base and evidence.points.get(base["cell"])
    return f"{baseline} there" if value else baseline


def _compared(evidence: RunView, cell: str, measure: Measure) -> Row:
    return next(
        (r for r in evidence.compared if r["cell"] == cell and r["measure"] == measure.column), {}
    )


# ---- What differs from the baseline


def findings(evidence: RunView) -> list[Finding]:
    """Return one finding for each method that was compared with the baseline, along its sweep."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in evidence.compared:
        if row["method"] != row["baseline"]:
            cells = groups.setdefault((str(row["model"]), str(row["method"])), {})
            cells.setdefault(str(row["cell"]), []).append(row)
    single = all(len(cells) == 1 for cells in groups.values())
    n_told = sum(map(is_told, evidence.compared))
    style: Style = "brief" if n_told > SENTENCES_IN_FULL else "told in words"
    if single and len(groups) * len(evidence.measured) <= SENTENCES_IN_FULL:
        style = "all in words"
    several = len(evidence.models) > 1
    shown = _leading(evidence, groups)
    told = [
        _finding(evidence, _where(model, several), method, groups[model, method], style)
        for model, method in shown
    ]
    left = len(groups) - len(shown)
    return (
        told if not left else [*told, Finding(f"{pluralize(left, 'more method')}: see inside.", [])]
    )


def _leading(evidence: RunView, groups: Mapping[tuple[str, str], object]) -> list[tuple[str, str]]:
    """Return the methods for which there is room, those first by the deciding measure."""
    measure = deciding_measure(evidence)
    sign = -1.0 if measure.higher_is_better else 1.0

    def rank(key: tuple[str, str]) -> float:
        rows = [row for row in evidence.models[key[0]] if row["method"] == key[1]]
        best = best_of(rows, measure)
        return float("inf") if best is None else sign * float(best[measure.column])

    kept = sorted(groups, key=rank)[:METHODS_TOLD]
    return [key for key in groups if key in kept]


def _finding(
    evidence: RunView, where: str, method: str, cells: dict[str, list[Row]], style: Style
) -> Finding:
    rows = [row for found in cells.values() for row in found]
    baseline, name = truncate(rows[0]["baseline"], NAME_LENGTH), truncate(method, NAME_LENGTH)
    lead = f"{where}{name} against {baseline}"
    known = [
        (measure, found)
        for measure in evidence.measured
        if (found := [row for row in rows if row["measure"] == measure.column])
    ]
    if len(cells) > 1:
        swept = {name for cell in cells for name in evidence.points.get(cell, {})}
        at = f" at {pluralize(len(cells), 'point')} of {', '.join(sorted(map(_plain, swept)))}"
        return Finding(f"{lead}{at}:", [_along(evidence, m, found) for m, found in known])
    pairs = [(m, found[0]) for m, found in known]
    if style == "all in words":
        clauses = [f"{clause(row, m, name, baseline)}." for m, row in pairs]
        return Finding(f"{lead}:", clauses, listed=True)
    in_words = [pair for pair in pairs if style == "told in words" and is_told(pair[1])]
    sentences = [clause(row, m, name, baseline) for m, row in in_words]
    rest = [pair for pair in pairs if pair not in in_words]
    return Finding(f"{lead}:", [*sentences, *_in_brief(rest)])


def _plain(name: str) -> str:
    return sanitize(parameter_label(name))


def _in_brief(known: Sequence[tuple[Measure, Row]]) -> list[str]:
    """Return what is significant, what may be chance, and what cannot be told, in few words."""
    groups: dict[str, list[str]] = {}
    for measure, row in known:
        how = verdict(row)
        if how in ("not compared", "no interval"):
            groups.setdefault("not compared", []).append(measure.label)
        elif how == "not told":
            told = f"{_size(measure, row)}{_needs(row)}"
            groups.setdefault("no difference can be told", []).append(told)
        elif is_doubted(row):
            groups.setdefault("may be chance", []).append(_claim(measure, row, how))
        else:
            groups.setdefault("significant", []).append(_claim(measure, row, how))
    order = ("significant", "may be chance", "no difference can be told", "not compared")
    return [f"{name}: {', '.join(groups[name])}" for name in order if name in groups]


def _size(measure: Measure, row: Row) -> str:
    within = format_interval(row.get("low"), row.get("high"), signed=True)
    return f"{measure.label} {format_fixed(row.get('difference'), signed=True)} {within}"


def _needs(row: Row) -> str:
    n = as_finite_float(row.get("units_for_power_80"))
    return f" (needs {needed(n, unit_of(row)).removeprefix('about ')})" if n else ""


def _claim(measure: Measure, row: Row, how: Verdict) -> str:
    p, ahead = as_finite_float(row.get("p_holm")), units_ahead(row, measure, how)
    share = f" {ahead}" if ahead else ""
    return f"{_size(measure, row)}{share}{'' if p is None else f' ({format_p_value(p)})'}"


def _along(evidence: RunView, measure: Measure, rows: Sequence[Row]) -> str:
    """Return how a method stands to the baseline along a sweep, in a few words."""
    known = [row for row in rows if as_finite_float(row.get("difference")) is not None]
    if not known:
        return f"{measure.label} not compared"
    middle = median(float(row["difference"]) for row in known)
    up, down = (sum(s * float(row["difference"]) > 0 for row in known) for s in (1.0, -1.0))
    # Where most points are ties the median says nothing of the others.
    sign = -1.0 if (down, -middle) > (up, middle) else 1.0
    way: Verdict = "higher" if sign > 0 else "lower"
    ahead = up if sign > 0 else down
    told = sum(is_told(row) and verdict(row) == way for row in known)
    against = sum(is_told(row) and verdict(row) != way for row in known)
    other = f", {against} significantly the other way" if against else ""
    most = max(known, key=lambda row: sign * float(row["difference"]))
    within = format_interval(most.get("low"), most.get("high"), signed=True)
    at = point_label(evidence.points.get(str(most["cell"]), {}))
    return (
        f"{measure.label} {way} at {ahead} of {len(known)}, {told} significantly{other}: "
        f"median {format_fixed(middle, signed=True)}, at most "
        f"{format_fixed(most['difference'], signed=True)} "
        f"{within} at {at}"
    )


# ---- How sure


def certainty(evidence: RunView) -> list[str]:
    """Return how far the differences can be believed: correction, number of units, power."""
    rows = [row for row in evidence.compared if as_finite_float(row.get("p_holm")) is not None]
    if not rows:
        return []
    n_told = sum(is_told(row) for row in rows)
    none = "none" if n_told == 0 else str(n_told)
    unit, n = unit_of(rows[0]), max(int(as_finite_float(row.get("n_units")) or 0) for row in rows)
    told = [
        f"{none[0].upper()}{none[1:]} of {pluralize(len(rows), 'comparison')} "
        f"{'is' if n_told == 1 else 'are'} significant: p below 0.05 after Holm's correction for "
        f"their number. Intervals are 95 %, paired over {pluralize(n, unit)}."
    ]
    powers = [text for m in evidence.measured if (text := _power(m, rows))]
    if powers:
        told.append(
            f"To find differences of these sizes 80 times in 100 takes about, in {unit}s: "
            f"{'; '.join(powers)}."
        )
    return told


def _power(measure: Measure, rows: Sequence[Row]) -> str:
    found = [
        about(int(n))
        for row in rows
        if row["measure"] == measure.column
        and (n := as_finite_float(row.get("units_for_power_80"))) is not None
    ]
    if not found:
        return ""
    least, most = min(found), max(found)
    ends = f"{least:,}" if least <= MOST_UNITS else f"more than {MOST_UNITS:,}"
    if least <= MOST_UNITS and most != least:
        ends += f" to {most:,}" if most <= MOST_UNITS else f" to more than {MOST_UNITS:,}"
    return f"{measure.label} {ends}"
