"""A cell's diversity, mean scores and their products, each with its uncertainty. Pure.

The sampling unit is the prompt where there are several, the seed where there is one. Every
estimate θ comes with its leave-one-out values θ_(i), from which follow the jackknife's standard
error and, for paired comparisons, the pseudo-values n·θ − (n−1)·θ_(i) of each unit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit, logit, ndtr, ndtri

from autolora_eval.scoring.diversity import Floats, jackknife_standard_error

CONFIDENCE = 0.95
Scale = Literal["plain", "logit", "log"]
# The scale, the way back, and the values between which it is defined.
_SCALES: dict[Scale, tuple[Callable[[Any], Any], Callable[[Any], Any], float, float]] = {
    "plain": (np.asarray, float, -np.inf, np.inf),
    "logit": (logit, expit, 0.0, 1.0),
    "log": (np.log, np.exp, 0.0, np.inf),
}


@dataclass(frozen=True)
class Estimate:
    """A statistic of a cell, and its leave-one-out values over the sampling units.

    Attributes:
        value: θ; NaN if undefined.
        leave_one_out: θ_(i), float64 [n], in the order of `units`.
        units: names of the units that contribute, so that cells can be paired.
        counts: of a mean, the number of values of each unit, float64 [n]; None for any other
            statistic.
        factors: the two statistics that a product is made of.
        scale: the scale of the interval. Equation (8) over seeds is nearly always between 0 and 1
            and skewed away from the nearer end, hence `logit`. Its products are skewed away from
            0, hence `log`.
        unit: the name of the unit, if it is not the run's prompt or seed.
    """

    value: float
    leave_one_out: Floats
    units: tuple[Hashable, ...]
    counts: Floats | None = None
    factors: tuple[Estimate, Estimate] | None = None
    scale: Scale = "plain"
    unit: str = ""

    @property
    def is_mean(self) -> bool:
        """True for a mean over units of equal weight: its pseudo-values are the units' own values.

        Pseudo-values of other statistics depend on each other, so a test must not treat them as
        independent.
        """
        return self.counts is not None and len(set(self.counts.tolist())) <= 1

    def interval(self) -> tuple[float, float]:
        """Return the jackknife's 95% t-interval with n − 1 degrees of freedom.

        NaN if undefined. The interval is computed on `scale` and transformed back, unless a value
        is outside the domain of the scale. In simulations with 48 seeds, this gives equation (8) a
        coverage of 93% to 97%, instead of 90% on the plain scale. The coverage is lower (82%) if a
        tenth of the images are outliers.
        """
        to, back, low, high = _SCALES[self.scale]
        values = np.asarray([self.value, *self.leave_one_out])
        if not np.isfinite(values).all():
            return float("nan"), float("nan")
        if not ((values > low) & (values < high)).all():
            to, back = _SCALES["plain"][:2]
        ends = t_interval(float(to(self.value)), to(self.leave_one_out))
        return float(back(ends[0])), float(back(ends[1]))

    def pseudo_values(self) -> dict[Hashable, float]:
        """Return n·θ − (n−1)·θ_(i) for each unit; for a mean, these are the units' own values."""
        n = len(self.units)
        if n == 1:
            return {self.units[0]: self.value}
        values = n * self.value - (n - 1) * self.leave_one_out
        return dict(zip(self.units, values.tolist(), strict=True))

    def on(self, units: Collection[Hashable]) -> Estimate:
        """Return the same statistic for those of its units that are among `units`.

        For a mean this is exact. For any other statistic it is the mean of pseudo-values.
        """
        shared = set(units)
        keep = np.asarray([unit in shared for unit in self.units], dtype=bool)
        if keep.all():
            return self
        counts = np.ones(len(keep)) if self.counts is None else self.counts
        total = counts.sum()
        sums = total * self.value - (total - counts) * self.leave_one_out
        found = ratio_estimate(sums, np.where(keep, counts, 0.0), self.units)
        return found if self.counts is not None else replace(found, counts=None)


def t_interval(value: float, leave_one_out: Floats) -> tuple[float, float]:
    """Return θ ∓ t_{0.975, n−1} · SE from leave-one-out values θ_(i), [n]; NaN for n < 2."""
    n = len(leave_one_out)
    if n < 2:
        return float("nan"), float("nan")
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    half = quantile * jackknife_standard_error(leave_one_out)
    return value - half, value + half


def mean_estimate(values: npt.ArrayLike, units: Sequence[Hashable]) -> Estimate:
    """Return the mean over units [n], those without a value (NaN) left out."""
    return ratio_estimate(values, np.isfinite(np.asarray(values, dtype=np.float64)), units)


def ratio_estimate(
    sums: npt.ArrayLike, counts: npt.ArrayLike, units: Sequence[Hashable]
) -> Estimate:
    """Return Σ sums / Σ counts over units: the mean over images of units of unequal size.

    Args:
        sums: of the values of each unit, float [n].
        counts: how many values each unit has, [n]; units without any are left out.
        units: their names.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    keep = numbers > 0
    totals, numbers = np.asarray(sums, dtype=np.float64)[keep], numbers[keep]
    names = tuple(unit for unit, kept in zip(units, keep, strict=True) if kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.float64(totals.sum()) / numbers.sum()
        without = (totals.sum() - totals) / (numbers.sum() - numbers)
    return Estimate(float(value), without, names, counts=numbers)


def product_estimate(a: Estimate, b: Estimate) -> Estimate:
    """Return Div-X = Diversity × mean X, both at the level of the cell.

    Leaving out a unit that only one factor has does not change the other factor.
    """
    units = tuple(dict.fromkeys((*a.units, *b.units)))
    without = _without_each(a, units) * _without_each(b, units)
    scale: Scale = "log" if (a.scale, b.scale) != ("plain", "plain") else "plain"
    value = a.value * b.value
    return Estimate(value, without, units, factors=(a, b), scale=scale)


def _without_each(estimate: Estimate, units: Sequence[Hashable]) -> Floats:
    """Return θ_(i) of each of the units, float64 [n]; θ where a unit did not contribute."""
    known = dict(zip(estimate.units, estimate.leave_one_out.tolist(), strict=True))
    return np.asarray([known.get(unit, estimate.value) for unit in units], dtype=np.float64)


# --------------------
# Bootstrap intervals of statistics without a closed form. Pure.
#
# Images of one prompt are alike, so prompts are resampled with all of their images; with a single
# prompt, images are resampled. With few units such intervals are too narrow: for the mean of 5, 8,
# 15 and 30 normal values, their coverage is 83%, 89%, 90% and 92% in 300 trials.


Indices = npt.NDArray[np.intp]

N_RESAMPLES = 1999
SEED = 0
# With three units, one resample in nine repeats a single unit.
MIN_UNITS = 5


@dataclass(frozen=True)
class Interval:
    """A 95% interval, or why there is none.

    Attributes:
        low: NaN without one.
        high: NaN without one.
        reason: why there is none; None if there is one.
    """

    low: float = float("nan")
    high: float = float("nan")
    reason: str | None = None


def unit_members(units: Sequence[Hashable]) -> list[Indices]:
    """Return the indices of each unit's rows, in order of first appearance."""
    places: dict[Hashable, list[int]] = {}
    for place, unit in enumerate(units):
        places.setdefault(unit, []).append(place)
    return [np.asarray(rows, dtype=np.intp) for rows in places.values()]


def bootstrap_interval(
    statistic: Callable[[Indices], float],
    n_units: int,
    unit: str = "unit",
    without: Floats | None = None,
) -> Interval:
    """Return the 95% BCa interval of a statistic over sampling units (Efron 1987).

    The same units give the same interval: the resampling is seeded.

    Args:
        statistic: its value for drawn units, given by their indices, [n_units]; NaN if undefined.
        n_units: number of units.
        unit: the name of a unit, for the reason.
        without: the statistic without each unit, [n_units]. The default calls `statistic`, which
            takes n_units² steps.

    Returns:
        The interval. It is missing, with a reason, if there are fewer than five units, if the
        statistic is undefined in a resample, or if all resamples agree.
    """
    if n_units < MIN_UNITS:
        return Interval(reason=f"an interval needs at least {MIN_UNITS} {unit}s, has {n_units}")
    every, rng = np.arange(n_units, dtype=np.intp), np.random.default_rng(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what scipy warns of has a reason below
        drawn = np.asarray(
            [statistic(rng.integers(0, n_units, n_units)) for _ in range(N_RESAMPLES)]
        )
        if without is None:
            without = np.asarray([statistic(np.delete(every, n)) for n in every])
        low, high = bca_interval(drawn, statistic(every), without)
    if np.isnan(drawn).any():
        return Interval(reason=f"no interval: undefined in some resamples of {n_units} {unit}s")
    if np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():  # only rounding errors are left
        return Interval(reason=f"no interval: the same in every resample of {n_units} {unit}s")
    if not (np.isfinite(low) and np.isfinite(high)):
        return Interval(reason=f"no interval: resamples of {n_units} {unit}s are too much alike")
    return Interval(low, high)


def bca_interval(resampled: Floats, value: float, leave_one_out: Floats) -> tuple[float, float]:
    """Return the 95% BCa interval of a statistic (Efron 1987, doi 10.1080/01621459.1987.10478410).

    Its ends are the quantiles Φ(z₀ + (z₀ + z)/(1 − a(z₀ + z))) of the resampled values, z = ∓1.96,
    with the bias z₀ = Φ⁻¹(share of them below θ) and the acceleration a = Σ d_i³/(6 (Σ d_i²)^1.5),
    d_i = θ̄_(·) − θ_(i).

    Args:
        resampled: the statistic of each resample; of those equal to θ, half count as below it.
        value: θ.
        leave_one_out: θ_(i), float64 [n].
    """
    bias = ndtri((np.mean(resampled < value) + np.mean(resampled <= value)) / 2.0)
    d = leave_one_out.mean() - leave_one_out
    acceleration = np.sum(d**3) / (6.0 * np.sum(d**2) ** 1.5)
    z = bias + ndtri(0.5 + np.array([-0.5, 0.5]) * CONFIDENCE)
    quantiles = ndtr(bias + z / (1.0 - acceleration * z))
    if np.isnan(quantiles).any():
        return float("nan"), float("nan")
    low, high = np.quantile(resampled, quantiles)
    return float(low), float(high)
