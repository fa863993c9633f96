"""How many units a paired difference needs to be told from none. Pure."""

from __future__ import annotations

import math

from scipy import stats

# Below six pairs no signed ranks are below 0.05: of five, all of one sign have p = 2/2⁵ = 0.0625.
_LEAST_RANKS = 6
# From here on the noncentral t is a normal distribution to all digits that matter.
_LARGE = 10_000


def units_needed(
    difference: float,
    standard_deviation_of_paired_differences: float,
    power: float = 0.8,
    alpha: float = 0.05,
) -> int:
    """Return how many pairs a two-sided paired t-test needs to find a difference of this size.

    Exact by the noncentral t distribution, as in Cohen, *Statistical Power Analysis for the
    Behavioral Sciences* (1988), and G*Power; for more than 10,000 pairs by its normal limit with
    the correction z²/2 of Guenther (1981).

    Args:
        difference: the true mean of the paired differences, not 0.
        standard_deviation_of_paired_differences: their true spread from unit to unit, above 0.
        power: how often the difference is to be found.
        alpha: how often one is found where there is none.

    Raises:
        ValueError: nothing, or no finite number of pairs, would be enough.
    """
    spread = standard_deviation_of_paired_differences
    if not (math.isfinite(difference) and difference != 0.0):
        raise ValueError(f"the difference is {difference}: it must be a finite number, not 0.")
    if not (math.isfinite(spread) and spread > 0.0):
        raise ValueError(f"the standard deviation is {spread}: it must be a finite number above 0.")
    if not 0.0 < alpha < power < 1.0:
        raise ValueError(f"alpha {alpha} and power {power}: they must be 0 < alpha < power < 1.")
    effect = abs(difference) / spread
    quantile = float(stats.norm.ppf(1.0 - alpha / 2.0))
    in_the_limit = ((quantile + float(stats.norm.ppf(power))) / effect) ** 2 + quantile**2 / 2.0
    n = max(2, math.ceil(in_the_limit))
    if n > _LARGE:
        return n
    while _power(effect, n, alpha) < power:
        n += 1
    while n > 2 and _power(effect, n - 1, alpha) >= power:
        n -= 1
    return n


def units_needed_by_ranks(by_t_test: int) -> int:
    """Return how many pairs Wilcoxon's signed-rank test needs where the t-test needs so many.

    Its efficiency beside the t-test is 3/π where differences are normal (Pitman; Lehmann,
    *Nonparametrics*, 1975), for the usual α = 0.05.

    Args:
        by_t_test: what `units_needed` says.
    """
    return max(_LEAST_RANKS, math.ceil(by_t_test * math.pi / 3.0))


def _power(effect: float, n: int, alpha: float) -> float:
    """Return how often the t-test of n pairs finds a difference of `effect` deviations."""
    critical = float(stats.t.ppf(1.0 - alpha / 2.0, n - 1))
    shift = effect * math.sqrt(n)
    # Far from zero the lower tail is nothing, and scipy's series for it not a number.
    lower = float(stats.nct.cdf(-critical, n - 1, shift)) if shift < 5.0 else 0.0
    return float(stats.nct.sf(critical, n - 1, shift)) + lower
