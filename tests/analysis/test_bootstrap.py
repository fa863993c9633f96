"""Bootstrap intervals: seeded, over whole sampling units, and none if they would be useless."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autolora_eval.analysis.estimates import SEED, bootstrap_interval, unit_members


def test_the_interval_of_a_mean_is_close_to_the_t_interval() -> None:
    x = np.random.default_rng(1).normal(size=60)
    found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 60)
    low, high = stats.t.interval(0.95, 59, loc=x.mean(), scale=stats.sem(x))
    # The ends of 1999 resamples have a Monte Carlo error of about 0.06 standard errors.
    assert found.low == pytest.approx(low, abs=0.25 * stats.sem(x))
    assert found.high == pytest.approx(high, abs=0.25 * stats.sem(x))
    assert found.reason is None


def test_the_interval_is_scipys_of_the_same_resamples() -> None:
    x = np.random.default_rng(4).exponential(size=30)
    without = (x.sum() - x) / 29
    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=1999, method="BCa", rng=np.random.default_rng(SEED)
    ).confidence_interval
    for known in (None, without):
        found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 30, without=known)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_interval_is_reproducible() -> None:
    x = np.random.default_rng(2).normal(size=20)
    first, second = (bootstrap_interval(lambda d: float(x[d].mean()), 20) for _ in range(2))
    assert first == second


def test_images_of_one_prompt_count_as_one_unit() -> None:
    """Ten equal images per prompt must not make the interval narrower than one."""
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
def test_there_is_no_interval_with_a_reason(values: list[float], reason: str) -> None:
    x = np.asarray(values)
    found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), len(x), "prompt")
    assert np.isnan([found.low, found.high]).all()
    assert found.reason is not None
    assert found.reason.startswith(reason)


def test_unit_members_keep_the_order_of_units_and_rows() -> None:
    assert [rows.tolist() for rows in unit_members(["b", "a", "b", 1])] == [[0, 2], [1], [3]]
