"""Simulated results whose truth is known: coverage of intervals, error rates and power of tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated import DESIGNS, METRICS, SIMULATIONS, assert_coverage, four_standard_errors

from autolora_eval.analysis.comparisons import T_TEST, WILCOXON, holm, paired

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
def test_intervals_cover_the_true_value(design: str) -> None:
    cells = [DESIGNS[design].cell(rng) for rng in generators()]
    for name in METRICS:
        intervals = [cell[name].interval() for cell in cells]
        assert_coverage(intervals, DESIGNS[design].truth[name])


@pytest.fixture(scope="module", params=DESIGNS)
def equal_cells(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """A design, and comparisons of two independent cells of the same distribution, by metric."""
    simulate = DESIGNS[request.param].cell
    found = []
    for seed in range(SIMULATIONS):
        a, b = (simulate(np.random.default_rng([seed, cell])) for cell in range(2))
        found.append({name: paired(a[name], b[name]) for name in METRICS})
    return request.param, found


def test_differences_of_equal_cells_are_rarely_significant(equal_cells: Any) -> None:
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


def test_intervals_of_the_difference_of_equal_cells_cover_zero(equal_cells: Any) -> None:
    for name in METRICS:
        assert_coverage(ends([found[name] for found in equal_cells[1]]), 0.0)


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_of_differences_cover_the_true_one_for_shared_prompts_and_noise(
    design: str,
) -> None:
    pairs = [DESIGNS[design].pair(rng) for rng in generators()]
    for name in METRICS:
        comparisons = [paired(a[name], b[name]) for a, b in pairs]
        assert_coverage(ends(comparisons), DESIGNS[design].difference[name])


@pytest.mark.parametrize("design", DESIGNS)
def test_the_number_of_units_for_80_percent_power_has_that_power(design: str) -> None:
    """The number comes from a large pilot; smaller runs of that size show the power.

    The pilot knows the number of units to about a tenth, which is worth 4% of power.
    """
    simulate = DESIGNS[design].pair
    pilot_a, pilot_b = simulate(np.random.default_rng(0), PILOT_UNITS[design])
    for name in METRICS:
        n = paired(pilot_a[name], pilot_b[name])["units_for_power_80"]
        significant = []
        for seed in range(SIMULATIONS):
            a, b = simulate(np.random.default_rng([seed, 2]), n)
            significant.append(paired(a[name], b[name])["p_value"] < 0.05)
        power = np.mean(significant)
        assert power == pytest.approx(0.8, abs=0.04 + four_standard_errors(0.8)), (name, n)
