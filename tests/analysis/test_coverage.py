"""Simulated results whose truth is known: coverage of intervals, error rates and power of tests."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated import DESIGNS, METRICS, SIMULATIONS, assert_coverage, four_standard_errors

from autolora_eval.analysis.comparisons import T_TEST, WILCOXON, holm, paired
from autolora_eval.analysis.reliability import ordinal_alpha

pytestmark = pytest.mark.model  # each simulates hundreds of runs

PILOT_UNITS = {"one prompt": 20_000, "many prompts": 5_000}
# The test of each metric's comparison, by the sampling unit of the design.
TESTS = {
    "one prompt": {"diversity": T_TEST, "pc": WILCOXON, "div_pc": T_TEST},
    "many prompts": {"diversity": WILCOXON, "pc": WILCOXON, "div_pc": T_TEST},
}


def generators() -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(SIMULATIONS)]


def ends(comparisons: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(found["low"], found["high"]) for found in comparisons]


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_the_true_value(design):
    cells = [DESIGNS[design].cell(rng) for rng in generators()]
    for name in METRICS:
        intervals = [cell[name].interval() for cell in cells]
        assert_coverage(intervals, DESIGNS[design].truth[name])


@pytest.fixture(scope="module", params=DESIGNS)
def equal_cells(request) -> tuple[str, list[dict[str, Any]]]:
    """A design, and comparisons of two independent cells of the same distribution, by metric."""
    simulate = DESIGNS[request.param].cell
    found = []
    for seed in range(SIMULATIONS):
        a, b = (simulate(np.random.default_rng([seed, cell])) for cell in range(2))
        found.append({name: paired(a[name], b[name]) for name in METRICS})
    return request.param, found


def test_differences_of_equal_cells_are_rarely_significant(equal_cells):
    """At most 5% of the single tests, and of the tables after Holm's correction."""
    design, comparisons = equal_cells
    assert all(
        {name: result["test"] for name, result in found.items()} == TESTS[design]
        for found in comparisons
    )
    p_values = np.array([[found[name]["p_value"] for name in METRICS] for found in comparisons])
    significant = (p_values < 0.05).mean(axis=0)
    tables = np.mean([(holm(row) < 0.05).any() for row in p_values])
    limit = 0.05 + four_standard_errors(0.05)
    assert (significant <= limit).all(), significant
    assert tables <= limit


def test_intervals_of_the_difference_of_equal_cells_cover_zero(equal_cells):
    for name in METRICS:
        assert_coverage(ends([found[name] for found in equal_cells[1]]), 0.0)


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_of_differences_cover_the_true_one_for_shared_prompts_and_noise(design):
    pairs = [DESIGNS[design].pair(rng) for rng in generators()]
    for name in METRICS:
        comparisons = [paired(a[name], b[name]) for a, b in pairs]
        assert_coverage(ends(comparisons), DESIGNS[design].difference[name])


@pytest.mark.parametrize("design", DESIGNS)
def test_the_number_of_units_for_80_percent_power_has_that_power(design):
    """The number comes from a large pilot; smaller runs of that size show the power.

    The pilot knows the number of units to about a tenth, which is worth 4% of power.
    """
    simulate = DESIGNS[design].pair
    pilot_a, pilot_b = simulate(np.random.default_rng(0), PILOT_UNITS[design])
    # Over prompts, diversity and PC have the same test.
    for name in METRICS if design == "one prompt" else ("diversity", "div_pc"):
        n = paired(pilot_a[name], pilot_b[name])["units_for_power_80"]
        significant = []
        for seed in range(SIMULATIONS):
            a, b = simulate(np.random.default_rng([seed, 2]), n)
            significant.append(paired(a[name], b[name])["p_value"] < 0.05)
        power = np.mean(significant)
        assert power == pytest.approx(0.8, abs=0.04 + four_standard_errors(0.8)), (name, n)


def test_bootstrap_intervals_cover_the_truth(monkeypatch):
    """Of normal pairs with correlation r, ordinal α is 6/π·asin(r/2), as Spearman's ρ.

    The BCa interval of so few units covers about 2% less than 95%.
    """
    r, n = 0.7, 40
    truth, rng = 6 / np.pi * np.arcsin(r / 2), np.random.default_rng(6)
    monkeypatch.setattr("autolora_eval.analysis.estimates.N_RESAMPLES", 199)
    intervals = []
    for _ in range(100):
        pairs = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], n).T.round(1)
        _, found = ordinal_alpha(pairs, pd.DataFrame({"prompt_index": np.zeros(n)}))
        intervals.append((found.low, found.high))
    assert_coverage(intervals, truth, shortfall=0.02)
