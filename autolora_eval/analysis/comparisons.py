"""Paired differences of cells from the baseline: numbers, sample sizes and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from autolora_eval._text import (
    Sentences,
    as_finite_float,
    format_swept_value,
    point_label,
    sanitize,
)
from autolora_eval.analysis.cell_estimates import SEED_GROUP, Estimates
from autolora_eval.analysis.estimates import CONFIDENCE, Estimate, product_estimate
from autolora_eval.analysis.metrics import Metric
from autolora_eval.runs.records import CellRecord
from autolora_eval.scoring.diversity import Floats

# Below six pairs no signed ranks are below 0.05: of five, all of one sign have p = 2/2⁵ = 0.0625.
_LEAST_RANKS = 6
_POWER, _ALPHA = 0.8, 0.05
# Up to here scipy's signed-rank test is exact with ties too, but tries all signs, for up to 1 s.
_MOST_PERMUTED = 13


def units_needed(difference: float, spread: float) -> int:
    """Return how many pairs give a two-sided paired t-test a power of 80%, at α = 0.05.

    The normal limit with the correction z²/2 of Guenther (1981). It differs by at most 1 from the
    exact count by the noncentral t distribution, as in G*Power.

    Args:
        difference: the true mean of the paired differences, not 0.
        spread: their true standard deviation, above 0.
    """
    effect = abs(difference) / spread
    quantile = float(stats.norm.ppf(1.0 - _ALPHA / 2.0))
    in_the_limit = ((quantile + float(stats.norm.ppf(_POWER))) / effect) ** 2 + quantile**2 / 2.0
    return max(2, math.ceil(in_the_limit))


def units_needed_by_ranks(by_t_test: int) -> int:
    """Return how many pairs the Wilcoxon signed-rank test needs if the t-test needs `by_t_test`.

    Its efficiency relative to the t-test is 3/π for normal differences (Pitman; Lehmann,
    *Nonparametrics*, 1975).
    """
    return max(_LEAST_RANKS, math.ceil(by_t_test * math.pi / 3.0))


# --------------------
# Paired comparisons of cells with the baseline: they share prompts and seeds. Pure.


WILCOXON, T_TEST = "Wilcoxon signed-rank", "jackknife t"
COLUMNS = (
    *("cell", "model", "method", "baseline", "baseline_cell", "metric", "n_units", "unit"),
    *("difference", "low", "high", "test", "p_value", "p_holm"),
    *("win_rate", "n_ties", "units_for_power_80"),
)
# Below this share of the other, a mean or a spread of differences is zero up to rounding.
_NO_DIFFERENCE = 1e-8


def compare_with_baseline(
    cells: Sequence[CellRecord], estimates: Mapping[str, Estimates], baseline: str, unit: str
) -> pd.DataFrame:
    """Return the paired difference of every cell from the baseline's cell at its sweep point.

    There is one row per cell and metric. `p_holm` is corrected over all rows of the table.
    """
    base = baseline_cells(cells, baseline)
    rows = [
        {
            "cell": cell.id,
            "model": cell.model,
            "method": cell.method,
            "baseline": baseline,
            "baseline_cell": base[cell.id],
            "metric": metric,
            "unit": estimate.unit or unit,
            **paired(estimate, estimates[base[cell.id]][metric]),
        }
        for cell in cells
        if cell.id in base
        for metric, estimate in estimates[cell.id].items()
    ]
    frame = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "p_holm"])
    # There are never more groups than MAX_GROUPS: more seeds make them larger.
    frame.loc[frame["unit"] == SEED_GROUP, "units_for_power_80"] = None
    frame["p_holm"] = holm(frame["p_value"].to_numpy(dtype=np.float64))
    counts = ["n_ties", "units_for_power_80"]
    frame[counts] = frame[counts].astype("Int64")
    return frame[list(COLUMNS)]


def baseline_cells(cells: Sequence[CellRecord], baseline: str) -> dict[str, str]:
    """Return the cell of the baseline with which each other cell is compared, by cell.

    It has the same model and the same values of all swept parameters that both take. A cell without
    a parameter over which the baseline was swept is compared with none.
    """
    candidates = [cell for cell in cells if cell.method == baseline]
    found: dict[str, str] = {}
    for cell in cells:
        alike = [
            other.id
            for other in candidates
            if other.model == cell.model
            and all(other.point.get(name, value) == value for name, value in cell.point.items())
        ]
        if cell.method != baseline and len(alike) == 1:
            found[cell.id] = alike[0]
    return found


def paired(a: Estimate, b: Estimate) -> dict[str, Any]:
    """Return the paired difference of two estimates over the units that both have.

    For a product, each factor is restricted to the units that both cells have. Means over units
    are tested with the Wilcoxon signed-rank test. Pseudo-values of other statistics depend on each
    other, which gives that test too many false positives (10% for equation (8) over seeds). They
    are tested with the t-test that belongs to the interval, unless all units differ equally.

    Returns:
        The columns of comparisons.csv from `n_units` to `units_for_power_80`, without `unit` and
        `p_holm`; NaN or None if undefined.
    """
    a, b = _on_shared_units(a, b)
    differences = unit_differences(a, b)
    n, is_finite = len(differences), bool(np.isfinite(differences).all())
    difference = a.value - b.value
    if n and not differences.any():
        difference = 0.0  # without the rounding error of the two values
    result: dict[str, Any] = {
        "n_units": n,
        "difference": difference,
        "low": np.nan,
        "high": np.nan,
        "p_value": np.nan,
        "test": "",
        "win_rate": np.nan,
        "n_ties": None,
        "units_for_power_80": None,
    }
    if n < 2 or not is_finite:
        return result
    spread = float(differences.std(ddof=1))
    error = spread / np.sqrt(n)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * error
    # Without a spread, t is infinite: few units that differ by the same amount are no proof.
    by_ranks = (a.is_mean and b.is_mean) or spread < _NO_DIFFERENCE * abs(difference)
    ties = int((differences == 0).sum())
    wins = (differences > 0).mean() + 0.5 * ties / n
    return result | {
        "low": difference - half,
        "high": difference + half,
        "p_value": _wilcoxon(differences) if by_ranks else _t_test(difference, error, n),
        "test": WILCOXON if by_ranks else T_TEST,
        "win_rate": float(wins),
        "n_ties": ties,
        "units_for_power_80": _units_for_power_80(difference, spread, by_ranks=by_ranks),
    }


def _units_for_power_80(difference: float, spread: float, *, by_ranks: bool) -> int | None:
    """Return how many units the test needs; None without a difference or without a spread."""
    if spread == 0.0 or abs(difference) < _NO_DIFFERENCE * spread:
        return None
    n = units_needed(difference, spread)
    return units_needed_by_ranks(n) if by_ranks else n


def _on_shared_units(a: Estimate, b: Estimate) -> tuple[Estimate, Estimate]:
    if a.factors is None or b.factors is None:
        return (a, b) if a.units == b.units else (a.on(b.units), b.on(a.units))
    if all(x.units == y.units for x, y in zip(a.factors, b.factors, strict=True)):
        return a, b  # a million units are not paired once more
    (a1, b1), (a2, b2) = map(_on_shared_units, a.factors, b.factors)
    return product_estimate(a1, a2), product_estimate(b1, b2)


def unit_differences(a: Estimate, b: Estimate) -> Floats:
    """Return the differences of the pseudo-values of the units that both estimates have.

    They are rounded to 10 digits of the greatest: pseudo-values of equal units may differ in their
    last bits, but must stay ties.
    """
    left, right = (one.pseudo_values() for one in _on_shared_units(a, b))
    pairs = np.asarray([(left[unit], right[unit]) for unit in left if unit in right])
    if not len(pairs):
        return np.zeros(0)
    scale = np.abs(pairs).max()
    differences = pairs[:, 0] - pairs[:, 1]
    if not (np.isfinite(scale) and scale > 0):
        return np.asarray(differences)
    return np.asarray(np.round(differences / scale, 10) * scale)


def _wilcoxon(differences: Floats) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if nothing differs."""
    if not differences.any():
        return 1.0
    if len(differences) > _MOST_PERMUTED:
        return float(stats.wilcoxon(differences).pvalue)
    found = differences[differences != 0.0]
    doubled = np.rint(2.0 * stats.rankdata(np.abs(found))).astype(np.intp)  # ranks of ties end in ½
    counts = np.ones(1)  # of signs, by twice the sum of the positive ranks
    for rank in doubled:
        counts = np.pad(counts, (rank, 0)) + np.pad(counts, (0, rank))
    total = doubled[found > 0.0].sum()
    tail = min(counts[: total + 1].sum(), counts[total:].sum()) / counts.sum()
    return float(min(1.0, 2.0 * tail))


def _t_test(difference: float, error: float, n: int) -> float:
    """Return the two-sided p-value of t = difference / error with n − 1 degrees of freedom."""
    if difference == 0.0:
        return 1.0
    return float(2.0 * stats.t.sf(abs(difference) / error, n - 1))


def holm(p_values: Floats) -> Floats:
    """Return p-values [m] corrected by Holm's step-down method (Holm 1979); NaN does not count.

    They are the max over smaller-or-equal ranks of (m − rank)·p, at most 1.
    """
    corrected = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return corrected


# --------------------
# The comparisons as typed values, and as one sentence each.


SIGNIFICANCE = 0.05
Row = Mapping[str, Any]
Ends = tuple[float | None, float | None]
Outcome = Literal["higher", "lower", "unclear", "no interval", "not compared"]
say = Sentences("comparisons")


@dataclass(frozen=True)
class Comparison:
    """A row of comparisons.csv.

    Attributes:
        difference: The method's value minus the baseline's.
        interval: The ends of the 95% interval.
        p: The p-value after Holm's correction.
        unit: What the differences are paired over: "prompt" or "seed".
        units_ahead: On how many units the method is higher, or lower if the difference is
            significantly below zero; None if a unit has no value of its own.
        ties: On how many units both are equal.
        units_needed: Number of units for 80% power at this effect size, rounded up.
    """

    metric: Metric
    method: str
    baseline: str
    difference: float | None
    interval: Ends
    p: float | None
    unit: str
    n_units: int
    units_ahead: int | None
    ties: int
    units_needed: int | None

    @property
    def metric_name(self) -> str:
        """The metric's name on one line."""
        return sanitize(self.metric.display_name)

    @property
    def outcome(self) -> Outcome:
        """The direction of the difference; "unclear" if its interval contains 0."""
        return _outcome(self.difference, *self.interval)

    @property
    def may_be_chance(self) -> bool:
        """True if the difference does not survive the correction for multiple comparisons."""
        return self.p is not None and self.p >= SIGNIFICANCE

    @property
    def is_significant(self) -> bool:
        """True if both the interval and the corrected p-value show a difference."""
        return self.outcome in ("higher", "lower") and not self.may_be_chance

    @property
    def size(self) -> float:
        """The absolute difference."""
        return abs(self.difference or 0.0)

    @property
    def size_interval(self) -> Ends:
        """The interval of the absolute difference, for an interval that does not contain 0."""
        low, high = sorted(abs(end or 0.0) for end in self.interval)
        return low, high


def read_comparison(row: Row, metric: Metric, method: str, baseline: str) -> Comparison:
    """Return a row of comparisons.csv as typed values."""
    difference, low, high = (as_finite_float(row.get(key)) for key in ("difference", "low", "high"))
    needed, unit = as_finite_float(row.get("units_for_power_80")), row.get("unit")
    return Comparison(
        metric=metric,
        method=sanitize(method),
        baseline=sanitize(baseline),
        difference=difference,
        interval=(low, high),
        p=as_finite_float(row.get("p_holm")),
        unit=sanitize(unit) if isinstance(unit, str) and unit else "unit",
        n_units=int(as_finite_float(row.get("n_units")) or 0),
        units_ahead=_units_ahead(row, metric, _outcome(difference, low, high)),
        ties=round(as_finite_float(row.get("n_ties")) or 0),
        units_needed=round_up(int(needed)) if needed else None,
    )


def _outcome(difference: float | None, low: float | None, high: float | None) -> Outcome:
    if difference is None:
        return "not compared"
    if low is None or high is None:
        return "no interval"
    if low <= 0.0 <= high:
        return "unclear"
    return "higher" if low > 0.0 else "lower"


def _units_ahead(row: Row, metric: Metric, outcome: Outcome) -> int | None:
    """Return on how many units the method is ahead.

    A unit has no value of its own for a product of cell means, and for diversity over seeds or
    groups of seeds, since a single image has no diversity.
    """
    rate, n, ties = (as_finite_float(row.get(key)) for key in ("win_rate", "n_units", "n_ties"))
    by_unit = metric.kind == "score" or (metric.kind != "product" and row.get("unit") == "prompt")
    if not by_unit or rate is None or not n or ties is None:
        return None
    # The table has the share of units where the method is higher, with ties counted as half.
    return round((1.0 - rate if outcome == "lower" else rate) * n - 0.5 * ties)


def round_up(n: int) -> int:
    """Round up to two significant digits: the effect size is itself an estimate."""
    step = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // step) * step


def with_sentences(
    comparisons: pd.DataFrame, cells: Sequence[CellRecord], metrics: Sequence[Metric]
) -> pd.DataFrame:
    """Return the comparisons with a column `sentence`."""
    by_id = {cell.id: cell for cell in cells}
    by_column = {metric.column: metric for metric in metrics}
    several_models = len({cell.model for cell in cells}) > 1
    sentences = []
    for row in comparisons.to_dict("records"):
        cell, base = by_id[row["cell"]], by_id[row["baseline_cell"]]
        shared = {name: value for name, value in cell.point.items() if name in base.point}
        models = [cell.model] if several_models else []
        where = sanitize(", ".join([*models, *([_at(shared)] if shared else [])]))
        named = {str(key): value for key, value in row.items()}
        metric = by_column[row["metric"]]
        found = read_comparison(named, metric, _name(cell, base), _name(base, cell))
        sentences.append(say.sentence(found, where))
    return comparisons.assign(sentence=pd.array(sentences, dtype="string"))


def _name(cell: CellRecord, other: CellRecord) -> str:
    """Return a method's name, with the swept parameters that only it takes."""
    own = {name: value for name, value in cell.point.items() if name not in other.point}
    return f"{cell.method} ({_at(own)})" if own else cell.method


def _at(point: Mapping[str, Any]) -> str:
    return point_label({name: format_swept_value(value) for name, value in point.items()})
