"""How many units a difference needs: known values, and simulated tests."""

from __future__ import annotations

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
def test_known_numbers(effect: float, power: float, n: int) -> None:
    assert units_needed(effect, 1.0, power) == n
    assert units_needed(-effect * 7.0, 7.0, power) == n


@pytest.mark.parametrize("effect", [0.4, 1.0, 2.0])
def test_so_many_find_it_and_one_fewer_does_not(effect: float) -> None:
    """20,000 simulated tests know a power of 0.8 to ±0.003 (one standard error)."""
    n = units_needed(3.0 * effect, 3.0)
    for pairs, is_enough in ((n, True), (n - 1, False)):
        x = np.random.default_rng(pairs).normal(3.0 * effect, 3.0, (20_000, pairs))
        found = float((stats.ttest_1samp(x, 0.0, axis=1).pvalue < 0.05).mean())
        assert found > 0.79 if is_enough else found < 0.81, (pairs, found)


@pytest.mark.parametrize("effect", [0.4, 0.8, 2.0])
def test_so_many_find_it_by_ranks(effect: float) -> None:
    """5,000 simulated tests know a power of 0.8 to ±0.006. Of six pairs all must agree: 0.87."""
    n = units_needed_by_ranks(units_needed(effect, 1.0))
    x = np.random.default_rng(n).normal(effect, 1.0, (5_000, n))
    found = float((stats.wilcoxon(x, axis=1).pvalue < 0.05).mean())
    agree = stats.norm.cdf(effect) ** n
    wanted = agree if n == 6 else 0.8
    assert found == pytest.approx(wanted, abs=0.02), n


def test_it_falls_with_the_effect_and_meets_its_limit() -> None:
    """No gap where the exact count gives way to the normal limit, between 0.027 and 0.03."""
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
def test_what_has_no_answer_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        units_needed(*arguments)
