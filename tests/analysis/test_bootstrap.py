"""Bootstrap intervals: seeded, over whole sampling units, and none if they would be useless."""

import numpy as np
import pytest
from scipy import stats

from autolora_eval.analysis.estimates import SEED, bootstrap_interval, unit_members


def test_the_interval_is_scipys_of_the_same_resamples():
    x = np.random.default_rng(4).exponential(size=30)
    without = (x.sum() - x) / 29
    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=1999, method="BCa", rng=np.random.default_rng(SEED)
    ).confidence_interval
    for known in (None, without):
        found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 30, without=known)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_images_of_one_prompt_count_as_one_unit():
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
def test_there_is_no_interval_with_a_reason(values, reason):
    x = np.asarray(values)
    found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), len(x), "prompt")
    assert np.isnan([found.low, found.high]).all()
    assert found.reason is not None
    assert found.reason.startswith(reason)


def test_unit_members_keep_the_order_of_units_and_rows():
    assert [rows.tolist() for rows in unit_members(["b", "a", "b", 1])] == [[0, 2], [1], [3]]
