"""Intervals of statistics that have no closed form, by resampling whole sampling units. Pure.

Images of one prompt are alike: the prompt is what is drawn again, with all of its images, where
there are several prompts, and the image where there is one. Of few units such intervals are too
narrow: of the mean of 5, 8, 15 and 30 normal values they cover the truth in 83, 89, 90 and 92 % of
300 trials, not in 95 %.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from autolora_eval.analysis.estimates import CONFIDENCE

Indices = npt.NDArray[np.intp]

N_RESAMPLES = 1999
SEED = 0
# Of three units, one resample in nine is one unit three times: their quantiles say nothing.
MIN_UNITS = 5
# Places of one array of drawn units: 16 MB.
MAX_PLACES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, or why there is none.

    Attributes:
        low: NaN without one.
        high: NaN without one.
        reason: why there is none; None if there is one.
    """

    low: float
    high: float
    reason: str | None = None


def no_interval(reason: str) -> Interval:
    """Return the interval that is not there."""
    return Interval(float("nan"), float("nan"), reason)


def unit_members(units: Sequence[Hashable]) -> list[Indices]:
    """Return the places of each unit's rows, in order of first appearance.

    Args:
        units: name of the sampling unit of each row, [n].
    """
    places: dict[Hashable, list[int]] = {}
    for place, unit in enumerate(units):
        places.setdefault(unit, []).append(place)
    return [np.asarray(rows, dtype=np.intp) for rows in places.values()]


def bootstrap_interval(
    statistic: Callable[[Indices], float],
    n_units: int,
    unit: str = "unit",
    n_resamples: int = N_RESAMPLES,
) -> Interval:
    """Return the 95 % BCa interval of a statistic over sampling units (Efron 1987).

    The same units give the same interval: the resampling is seeded.

    Args:
        statistic: of drawn units, given by their places in 0 … n_units − 1, [n_units], with
            repetition; NaN where it is undefined.
        n_units: how many there are.
        unit: what they are, for the reason.
        n_resamples: how often they are drawn.

    Returns:
        An interval; none with a reason below five units, where a resample leaves the statistic
        undefined, and where all resamples agree, as those of perfect agreement do.
    """
    if n_units < MIN_UNITS:
        return no_interval(f"an interval needs at least {MIN_UNITS} {unit}s, has {n_units}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what scipy warns of is answered below, with a reason
        found = stats.bootstrap(
            (np.arange(n_units, dtype=np.intp),),
            statistic,
            vectorized=False,
            batch=max(1, MAX_PLACES // n_units),
            n_resamples=n_resamples,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(SEED),
        )
    drawn = np.asarray(found.bootstrap_distribution)
    low, high = map(float, found.confidence_interval)
    if np.isnan(drawn).any():
        return no_interval(f"no interval: undefined in some resamples of {n_units} {unit}s")
    if np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():  # what is left is rounding
        return no_interval(f"no interval: the same in every resample of {n_units} {unit}s")
    if not (np.isfinite(low) and np.isfinite(high)):
        return no_interval(f"no interval: the resamples of {n_units} {unit}s are too much alike")
    return Interval(low, high)
