"""Sample size for a given power: published values, and simulated tests."""

import numpy as np
import pytest
from scipy import stats

from autolora_eval.analysis.comparisons import units_needed, units_needed_by_ranks


@pytest.mark.parametrize(
    ("effect", "power", "n"),
    # G*Power 3.1, "Means: difference between two dependent means", two tails, α = 0.05; the
    # effects are Cohen's (1988) small, medium and large.
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.2, 0.95, 327), (0.5, 0.95, 54)],
)
def test_sample_sizes_equal_those_of_gpower(effect, power, n):
    assert units_needed(effect, 1.0, power) == n
    assert units_needed(-effect * 7.0, 7.0, power) == n


@pytest.mark.parametrize("effect", [0.4, 0.8, 2.0])
def test_the_rank_test_has_the_power(effect):
    """The tolerance is four standard errors of the power of 5,000 simulated tests.

    With six pairs, the test is significant only if all signs agree.
    """
    n = units_needed_by_ranks(units_needed(effect, 1.0))
    x = np.random.default_rng(n).normal(effect, 1.0, (5_000, n))
    found = float((stats.wilcoxon(x, axis=1).pvalue < 0.05).mean())
    agree = stats.norm.cdf(effect) ** n
    expected = agree if n == 6 else 0.8
    assert found == pytest.approx(expected, abs=4 * np.sqrt(0.8 * 0.2 / 5_000)), n


def test_the_sample_size_falls_with_the_effect_and_meets_its_limit():
    """There is no gap where the exact count is replaced by the normal limit (0.027 to 0.03)."""
    effects = np.concatenate([np.geomspace(1e-8, 0.02, 20), np.linspace(0.026, 0.032, 60)])
    found = [units_needed(float(effect), 1.0) for effect in (*effects, 0.1, 1.0, 5.0, 1e3, 1e9)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 2
    near = [n * effect**2 for n, effect in zip(found[20:80], effects[20:], strict=True)]
    limit = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2
    assert near == pytest.approx([limit] * 60, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "difference is 0"),
        ((np.nan, 1.0), "difference is nan"),
        ((1.0, 0.0), "standard deviation is 0"),
        ((1.0, np.inf), "standard deviation is inf"),
        ((1.0, 1.0, 1.0), "power 1.0"),
        ((1.0, 1.0, 0.05, 0.05), "alpha 0.05"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        units_needed(*arguments)
