"""Paired differences of cells from the baseline, and the sample size that would detect them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from autolora_eval.analysis.cell_estimates import SEED_GROUP, Estimates
from autolora_eval.analysis.estimates import CONFIDENCE, Estimate, product_estimate
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
