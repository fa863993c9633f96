"""A comparison in words: who is ahead, by how much, on how many prompts, how sure. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from autolora_eval._text import (
    as_finite_float,
    format_fixed,
    format_interval,
    format_p_value,
    format_swept_value,
    pluralize,
    point_label,
    sanitize,
)
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.config.plan import Cell

SIGNIFICANCE = 0.05
MOST_UNITS = 10_000
Row = Mapping[str, Any]
Verdict = Literal["higher", "lower", "not told", "no interval", "not compared"]


def verdict(row: Row) -> Verdict:
    """Return what a row of comparisons.csv says; a difference only if its interval leaves out 0."""
    difference, low, high = (as_finite_float(row.get(key)) for key in ("difference", "low", "high"))
    if difference is None:
        return "not compared"
    if low is None or high is None:
        return "no interval"
    if low <= 0.0 <= high:
        return "not told"
    return "higher" if low > 0.0 else "lower"


def is_doubted(row: Row) -> bool:
    """Tell whether a difference does not survive the correction for many comparisons."""
    p = as_finite_float(row.get("p_holm"))
    return p is not None and p >= SIGNIFICANCE


def is_told(row: Row) -> bool:
    """Tell whether a difference is there by its interval and by its corrected p-value."""
    return verdict(row) in ("higher", "lower") and not is_doubted(row)


def sentence(row: Row, measure: Measure, method: str, baseline: str, where: str = "") -> str:
    """Return a comparison as one sentence.

    Args:
        row: of comparisons.csv.
        measure: what was compared.
        method: what the cell is called.
        baseline: what it is compared with.
        where: what both have in common, such as a model or a swept parameter.
    """
    told = clause(row, measure, method, baseline)
    return f"{sanitize(where)}: {told}." if where else f"{told}."


def clause(row: Row, measure: Measure, method: str, baseline: str) -> str:
    """Return a comparison in words, without the full stop."""
    method, baseline, name = sanitize(method), sanitize(baseline), sanitize(measure.display_name)
    found = verdict(row)
    if found == "not compared":
        return f"{name}: {method} and {baseline} could not be compared"
    difference, low, high = (row.get(key) for key in ("difference", "low", "high"))
    signed = format_fixed(difference, signed=True)
    if found == "no interval":
        return f"{name}: {method} differs from {baseline} by {signed}; it has no interval"
    if found == "not told":
        within = f"{signed} {format_interval(low, high, signed=True)}"
        wins = units_ahead(row, measure, "higher")
        told = f"{name}: no difference of {method} from {baseline} can be told: {within}"
        return f"{told}{f', higher {wins}' if wins else ''}{_units_needed(row)}"
    ends = sorted(abs(float(end)) for end in (low, high) if end is not None)
    size = f"by {format_fixed(abs(float(difference or 0.0)))} {format_interval(*ends)}"
    claim = _claim(measure, method, baseline, found)
    wins = units_ahead(row, measure, found)
    return f"{claim} {size}{f', {wins}' if wins else ''}{_doubt(row)}"


def _claim(measure: Measure, method: str, baseline: str, found: Verdict) -> str:
    if measure.kind == "diversity":
        return f"{method} is {'more' if found == 'higher' else 'less'} diverse than {baseline}"
    worth = "" if measure.higher_is_better else (" (worse)" if found == "higher" else " (better)")
    return f"{method} has {found}{worth} {sanitize(measure.display_name)} than {baseline}"


def units_ahead(row: Row, measure: Measure, direction: Verdict) -> str:
    """Say on how many prompts or seeds the method was higher, or lower, and on how many equal.

    Empty where a unit has no value of its own: of a product of cell means, and of equation (8)
    over seeds, since one image has no diversity; and in older runs, which do not count ties.
    """
    rate, n, ties = (as_finite_float(row.get(key)) for key in ("win_rate", "n_units", "n_ties"))
    has_values = measure.kind == "score" or (measure.kind != "product" and unit_of(row) != "seed")
    if not has_values or rate is None or not n or ties is None:
        return ""
    # The table has the share of units where the method is higher, ties counted as half.
    ahead = (rate if direction == "higher" else 1.0 - rate) * n - 0.5 * ties
    equal = f" and equal on {round(ties):,}" if ties else ""
    return f"on {round(ahead):,} of {pluralize(int(n), unit_of(row))}{equal}"


def unit_of(row: Row) -> str:
    """Return what the differences are paired over: prompt or seed."""
    unit = row.get("unit")
    return sanitize(unit) if isinstance(unit, str) and unit else "unit"


def _units_needed(row: Row) -> str:
    """Say how many prompts or seeds would tell; older runs do not know."""
    n = as_finite_float(row.get("units_for_power_80"))
    if n is None:
        return ""
    return f"; a difference of this size would need {needed(n, unit_of(row))}"


def needed(n: float, unit: str) -> str:
    """Say about how many units are needed; beyond what anybody would make, only that."""
    if n > MOST_UNITS:
        return f"more than {MOST_UNITS:,} {unit}s"
    return f"about {pluralize(about(int(n)), unit)}"


def about(n: int) -> int:
    """Return a number of two digits and zeros that is no less: the spread is itself estimated."""
    place = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // place) * place


def _doubt(row: Row) -> str:
    p = as_finite_float(row.get("p_holm"))
    if p is None:
        return ""
    if p < SIGNIFICANCE:
        return f" ({format_p_value(p)})"
    return (
        f"; after correction for the number of comparisons {format_p_value(p)}, so it may be chance"
    )


def with_sentences(
    comparisons: pd.DataFrame, cells: Sequence[Cell], measured: Sequence[Measure]
) -> pd.DataFrame:
    """Return the comparisons with a column `sentence`.

    Args:
        comparisons: from `compare_with_baseline`.
        cells: whose.
        measured: the measures, in order.
    """
    by_id = {cell.id: cell for cell in cells}
    by_column = {measure.column: measure for measure in measured}
    several_models = len({cell.model.name for cell in cells}) > 1
    told = []
    for row in comparisons.to_dict("records"):
        cell, base = by_id[row["cell"]], by_id[row["baseline_cell"]]
        shared = {name: value for name, value in cell.point.items() if name in base.point}
        models = [cell.model.name] if several_models else []
        where = ", ".join([*models, *([_at(shared)] if shared else [])])
        named = {str(key): value for key, value in row.items()}
        told.append(
            sentence(named, by_column[row["measure"]], _name(cell, base), _name(base, cell), where)
        )
    return comparisons.assign(sentence=pd.array(told, dtype="string"))


def _name(cell: Cell, other: Cell) -> str:
    """Return a method's name, with the swept parameters that only it takes."""
    own = {name: value for name, value in cell.point.items() if name not in other.point}
    return f"{cell.method.name} ({_at(own)})" if own else cell.method.name


def _at(point: Mapping[str, Any]) -> str:
    return point_label({name: format_swept_value(value) for name, value in point.items()})
