"""Paired comparisons: equal to scipy's tests on means, exact on ties, honest about gaps."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from autolora_eval.analysis.comparisons import holm, paired, units_needed, units_needed_by_ranks
from autolora_eval.analysis.estimates import (
    Estimate,
    mean_estimate,
    product_estimate,
    ratio_estimate,
)


def means(values: object, units: object = None) -> Estimate:
    x = np.asarray(values, dtype=np.float64)
    return mean_estimate(x, list(range(len(x)) if units is None else units))


@pytest.mark.parametrize("n", [5, 12, 30])
def test_a_paired_mean_is_scipys_paired_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    result = paired(means(a), means(b))
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert result["n_units"] == n
    assert result["difference"] == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert (result["low"], result["high"]) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert result["p_value"] == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-9)
    assert result["win_rate"] == np.mean(a > b)


# Judges give whole numbers, so that ties are the rule. Means over 7 and 9 are no float exactly.
TIED = [
    ([4, 4, 3, 5, 2, 4, 1], [4, 4, 4, 2, 2, 4, 3]),
    ([5, 3, 4, 4, 0, 2, 5, 3, 4], [5, 2, 4, 5, 1, 2, 4, 1, 3]),
    ([4.1, 0.3, 2.7, 4.1, 0.1], [4.0, 0.3, 2.8, 4.2, 0.1]),
]


@pytest.mark.parametrize(("a", "b"), TIED)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_ties_are_ties_and_not_rounding(a, b, scale):
    """Whatever the scale of a score. Small differences are no ties."""
    result = paired(means(np.multiply(a, scale)), means(np.multiply(b, scale)))
    differences = np.round(np.subtract(a, b), 6)
    wins, ties = (differences > 0).sum(), (differences == 0).sum()
    assert result["win_rate"] == pytest.approx((wins + ties / 2) / len(a), rel=1e-12)
    assert result["n_ties"] == ties
    assert result["p_value"] == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)
    x = np.array([0.2, 0.3, 0.25, 0.35]) * scale
    assert paired(means(x + 1e-6 * scale), means(x))["win_rate"] == 1.0


@pytest.mark.parametrize("n_ahead", [0, 2, 6, 11])
def test_the_exact_test_of_ties_does_not_try_all_signs(monkeypatch, n_ahead):
    """All of 13 differences have the same size, so that the test is the sign test."""
    monkeypatch.setattr(stats, "permutation_test", None)
    signs = np.where(np.arange(13) < n_ahead, 1.0, -1.0)
    expected = stats.binomtest(n_ahead, 13).pvalue
    found = paired(means(signs), means(np.zeros(13)))
    assert found["p_value"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.5], [0.1] * 7, [0.0, 0.0]])
def test_a_cell_against_itself(values):
    assert paired(means(values), means(values)) == {
        "n_units": len(values),
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "test": "Wilcoxon signed-rank",
        "p_value": 1.0,
        "win_rate": 0.5,
        "n_ties": len(values),
        "units_for_power_80": None,
    }


def test_a_difference_says_how_many_units_its_test_needs():
    a, b = [1.0, 4.0, 2.0, 8.0], [2.0, 3.0, 1.0, 1.0]
    by_t_test = units_needed(2.0, np.std(np.subtract(a, b), ddof=1))
    ranks = paired(means(a), means(b))
    assert ranks["test"] == "Wilcoxon signed-rank"
    assert ranks["units_for_power_80"] == units_needed_by_ranks(by_t_test)
    t_test = paired(dataclasses.replace(means(a), counts=None), means(b))
    assert t_test["units_for_power_80"] == by_t_test
    assert isinstance(ranks["units_for_power_80"], int)


def test_fewer_units_than_ranks_can_tell_are_never_said_to_be_enough():
    """Of five pairs Wilcoxon's least p-value is 0.0625, however great the difference."""
    a, b = means([10.0, 10.1, 9.9, 10.0, 10.2, 9.8]), means([0.0, 0.1, 0.0, 0.2, 0.0, 0.1])
    assert paired(means([10.0, 10.1, 9.9, 10.0, 10.2]), means([0.0] * 5))["p_value"] == 0.0625
    assert paired(a, b)["units_for_power_80"] == 6
    assert paired(a, b)["p_value"] < 0.05


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.1, 0.2, 0.6], [0.2, 0.6, 1.1]),  # the same mean, but for the last bit
        ([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]),  # the same difference everywhere: no spread to go by
        ([2.0], [1.0]),
    ],
)
def test_where_no_number_of_units_follows_there_is_none(a, b):
    assert paired(means(a), means(b))["units_for_power_80"] is None


def test_statistics_that_are_not_means_are_tested_by_their_interval():
    """The t-test of the pseudo-values' differences: below 0.05 where the interval leaves 0 out."""
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.2, 0.5, 1.0):
        a, b = rng.normal(shift, 1, 20), rng.normal(0, 1, 20)
        result = paired(dataclasses.replace(means(a), counts=None), means(b))
        assert result["test"] == "jackknife t"
        assert result["p_value"] == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
        assert (result["p_value"] < 0.05) == (not result["low"] <= 0.0 <= result["high"])


def test_a_few_units_that_differ_by_the_same_amount_are_no_proof():
    """One score is missing, so t would be used and is infinite. Three signs agree in 2/2³."""
    a, b = ratio_estimate([12.0, 16.0, 16.0], [3, 4, 4], range(3)), means([3.0, 3.0, 3.0])
    result = paired(a, b)
    assert (result["difference"], result["low"], result["high"]) == pytest.approx((1.0, 1.0, 1.0))
    assert (result["test"], result["p_value"]) == ("Wilcoxon signed-rank", 0.25)
    assert result["units_for_power_80"] is None


def test_exchanging_the_cells_turns_the_signs():
    a, b = means([1.0, 4.0, 2.0, 8.0]), means([2.0, 3.0, 1.0, 1.0])
    one, other = paired(a, b), paired(b, a)
    assert other["difference"] == -one["difference"]
    assert (other["low"], other["high"]) == (-one["high"], -one["low"])
    assert other["p_value"] == one["p_value"]
    assert other["win_rate"] == 1.0 - one["win_rate"]


def test_only_shared_units_are_compared():
    """The baseline alone has a prompt d, which is easy: it must not count against the cell."""
    a, b = means([1.0, 2.0, 4.0], "abc"), means([0.5, 1.5, 3.0, 90.0], "abcd")
    assert paired(a, b) == pytest.approx(paired(a, means([0.5, 1.5, 3.0], "abc")))
    assert paired(a, b)["difference"] == pytest.approx(2.0 / 3, abs=1e-12)


def test_products_and_means_of_unequal_units_are_those_of_the_shared_units_alone():
    """A cell that lacks prompts is compared as if the baseline lacked them too."""
    rng = np.random.default_rng(2)

    def metrics(kept: list[int]) -> dict[str, Estimate]:
        spread = mean_estimate(spreads[kept], kept)
        score = ratio_estimate(sums[kept], counts[kept], kept)
        return {"score": score, "product": product_estimate(spread, score)}

    spreads, sums = rng.uniform(0.1, 0.9, 6), rng.uniform(1, 20, 6)
    counts = np.array([3, 8, 8, 5, 8, 8])
    some, every = metrics([0, 1, 3, 4]), metrics([*range(6)])
    for metric in ("score", "product"):
        result = paired(some[metric], every[metric])
        assert (result["difference"], result["low"], result["high"]) == (0.0, 0.0, 0.0)
        assert (result["n_ties"], result["p_value"]) == (4, 1.0)
    # Prompt 5 has scores in both cells, but a diversity in one: the other's does not count.
    lacking = spreads.copy()
    lacking[5] = np.nan
    a, b = (
        product_estimate(mean_estimate(spread, range(6)), every["score"])
        for spread in (lacking, spreads)
    )
    assert paired(a, b)["difference"] == 0.0


def test_a_product_that_shares_one_diversity_has_a_difference_without_an_interval():
    """Prompt 1 alone has a diversity in both cells, 0.5 and 0.2; the scores are 3 and 4."""
    lacking, score = mean_estimate([np.nan, 0.5], range(2)), means([2.0, 4.0])
    a = product_estimate(lacking, score)
    b = product_estimate(means([0.9, 0.2]), means([5.0, 3.0]))
    result = paired(a, b)
    assert result["difference"] == pytest.approx(0.5 * 3.0 - 0.2 * 4.0)
    assert np.isnan(result["low"])


def test_units_are_paired_by_name_and_not_by_place():
    a = means([1.0, 2.0, 4.0], "abc")
    expected = paired(a, means([0.5, 1.5, 3.0], "abc"))
    assert paired(a, means([3.0, 0.5, 1.5], "cab")) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "n"),
    [
        (means([1.0], "a"), means([2.0], "a"), 1),
        (means([1.0, 2.0], "ab"), means([1.0, 2.0], "bc"), 1),
        (means([1.0, 2.0], "ab"), means([1.0, 2.0], "cd"), 0),
        (means([], ""), means([1.0, 2.0], "ab"), 0),
    ],
)
def test_fewer_than_two_shared_units_have_no_test(a, b, n):
    result = paired(a, b)
    assert result["n_units"] == n
    assert all(np.isnan(result[name]) for name in ("low", "high", "p_value", "win_rate"))


def test_a_unit_that_is_not_finite_leaves_no_test():
    """Such as the leave-one-out values of a diversity of two images."""
    a = Estimate(0.5, np.full(2, np.nan), (1, 2))
    result = paired(a, means([0.2, 0.4], (1, 2)))
    assert result["difference"] == pytest.approx(0.2)
    assert all(np.isnan(result[name]) for name in ("low", "high", "p_value", "win_rate"))


def test_holm_by_hand():
    """Sorted: .01·4 = .04, .02·3 = .06, .03·2 = .06, .2·1 = .2."""
    assert holm(np.array([0.03, 0.01, 0.2, 0.02])) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    # .01·3 = .03; .04·2 = .08; .045·1 = .045, but not below the one before: .08.
    assert holm(np.array([0.045, 0.04, 0.01])) == pytest.approx([0.08, 0.08, 0.03])


def test_holm_is_monotone_and_at_most_one():
    p = np.random.default_rng(0).uniform(size=50)
    corrected = holm(p)
    order = np.argsort(p)
    assert (np.diff(corrected[order]) >= 0).all()
    assert (corrected >= p).all()
    assert corrected.max() == 1.0
    assert corrected[order[0]] == pytest.approx(min(1.0, 50 * p.min()))


def test_holm_does_not_count_what_has_no_p_value():
    corrected = holm(np.array([np.nan, 0.01, np.nan, 0.02]))
    assert corrected[[1, 3]] == pytest.approx([0.02, 0.02])
    assert np.isnan(corrected[[0, 2]]).all()
    assert holm(np.array([])).shape == (0,)


# ---- Sample size for a power of 80%


@pytest.mark.parametrize(
    ("effect", "n"),
    # G*Power 3.1, "Means: difference between two dependent means", two tails, α = 0.05; the
    # effects are Cohen's (1988) small, medium and large.
    [(0.2, 199), (0.5, 34), (0.8, 15)],
)
def test_sample_sizes_equal_those_of_gpower(effect, n):
    assert units_needed(effect, 1.0) == n
    assert units_needed(-effect * 7.0, 7.0) == n


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


def test_the_sample_size_falls_with_the_effect():
    found = [units_needed(float(effect), 1.0) for effect in np.geomspace(1e-8, 1e9, 60)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 2


@pytest.mark.parametrize("effect", [0.02, 0.1, 0.35, 0.6, 1.0, 1.7, 3.0])
def test_the_sample_size_is_exact_to_one_unit(effect):
    """By scipy's noncentral t distribution; the far tail is nothing at this power."""

    def power(n: int) -> float:
        critical = stats.t.ppf(0.975, n - 1)
        return float(stats.nct.sf(critical, n - 1, effect * np.sqrt(n)))

    n = units_needed(effect, 1.0)
    assert power(n + 1) >= 0.8 > power(max(2, n - 2))
