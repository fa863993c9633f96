"""Intervals by resampling: seeded, over whole units, and none where they would say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autolora_eval.analysis.estimates import bootstrap_interval, unit_members


def test_the_interval_of_a_mean_is_near_students() -> None:
    x = np.random.default_rng(1).normal(size=60)
    found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 60)
    low, high = stats.t.interval(0.95, 59, loc=x.mean(), scale=stats.sem(x))
    # The ends of 1999 resamples have a Monte Carlo error of about 0.06 standard errors.
    assert found.low == pytest.approx(low, abs=0.25 * stats.sem(x))
    assert found.high == pytest.approx(high, abs=0.25 * stats.sem(x))
    assert found.reason is None


def test_the_same_units_give_the_same_interval() -> None:
    x = np.random.default_rng(2).normal(size=20)
    first, second = (bootstrap_interval(lambda d: float(x[d].mean()), 20) for _ in range(2))
    assert first == second


def test_images_of_one_prompt_count_as_one() -> None:
    """Ten equal images a prompt say no more than one: the interval must not be narrower."""
    x = np.random.default_rng(3).normal(size=12)
    tenfold, members = np.repeat(x, 10), unit_members(np.repeat(np.arange(12), 10).tolist())
    assert [len(rows) for rows in members] == [10] * 12

    def mean_of_all(drawn: np.ndarray) -> float:
        return float(tenfold[np.concatenate([members[n] for n in drawn])].mean())

    clustered = bootstrap_interval(mean_of_all, 12)
    single = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 12)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0, 2.0, 3.0, 4.0], "an interval needs at least 5 prompts, has 4"),
        ([1.0] * 6, "no interval: the same in every resample of 6 prompts"),
        ([1.0, np.nan, 1.0, 2.0, 3.0], "no interval: undefined in some resamples of 5 prompts"),
    ],
)
def test_where_resampling_says_nothing_there_is_no_interval(
    values: list[float], reason: str
) -> None:
    x = np.asarray(values)
    found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), len(x), "prompt")
    assert np.isnan([found.low, found.high]).all()
    assert found.reason is not None
    assert found.reason.startswith(reason)


def test_units_keep_their_order_and_rows() -> None:
    assert [rows.tolist() for rows in unit_members(["b", "a", "b", 1])] == [[0, 2], [1], [3]]
