"""Simulated cells whose truth is known, alone and in pairs that share prompts and noise.

Features are unit vectors in the plane with angles from von Mises distributions of concentration κ.
The mean of such a vector has length A(κ) = I₁(κ)/I₀(κ), so that the diversity of independent
images is 1 − A(κ)² exactly. Scores are whole numbers from 0 to 5 with mean 5·quality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from autolora_eval.analysis.estimates import (
    Estimate,
    mean_estimate,
    product_estimate,
    ratio_estimate,
)
from autolora_eval.scoring.diversity import diversity, leave_one_out

# 250 simulations take seconds; every tolerance below follows from their number.
SIMULATIONS = 250
Estimates = dict[str, Estimate]
KAPPAS = np.array([0.5, 1.0, 2.0, 4.0])
QUALITIES = 0.4 + 0.1 * np.arange(len(KAPPAS))
SEEDS = 16
METRICS = ("diversity", "pc", "div_pc")


def true_diversity(kappa: np.ndarray | float) -> np.ndarray:
    return 1.0 - (special.i1e(kappa) / special.i0e(kappa)) ** 2


def vectors(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def scores(rng: np.random.Generator, quality: float, n: int) -> np.ndarray:
    """Whole numbers from 0 to 5, as a judge gives them, with mean 5·quality."""
    return rng.binomial(5, quality, n).astype(float)


def over_seeds(angles: np.ndarray, found: np.ndarray) -> Estimates:
    """One prompt's cell: the seed is the unit."""
    features = vectors(angles)
    spread = diversity(features).value
    assert spread is not None
    without = leave_one_out(features)
    div = Estimate(spread, without, tuple(range(len(angles))), scale="logit")
    pc = mean_estimate(found, range(len(angles)))
    return {"diversity": div, "pc": pc, "div_pc": product_estimate(div, pc)}


def over_prompts(angles: np.ndarray, found: np.ndarray) -> Estimates:
    """A cell of many prompts, [prompts, seeds] each: the prompt is the unit."""
    spreads = [diversity(vectors(row)).value for row in angles]
    prompts, seeds = found.shape
    div = mean_estimate(spreads, range(prompts))
    pc = ratio_estimate(found.sum(axis=1), [seeds] * prompts, range(prompts))
    return {"diversity": div, "pc": pc, "div_pc": product_estimate(div, pc)}


def one_prompt(rng: np.random.Generator, n: int = 48) -> Estimates:
    angles = rng.vonmises(0.0, 2.0, n)
    return over_seeds(angles, scores(rng, 0.7, n))


def many_prompts(rng: np.random.Generator, n: int = 30) -> Estimates:
    """Prompts that differ in spread and difficulty, 16 seeds each.

    The harder a prompt the more its images differ: the two factors of the product are dependent.
    """
    kinds = rng.integers(0, len(KAPPAS), n)
    angles = np.array([rng.vonmises(0.0, KAPPAS[kind], SEEDS) for kind in kinds])
    return over_prompts(angles, np.array([scores(rng, QUALITIES[k], SEEDS) for k in kinds]))


# Pairs: half of the images of the cell and its baseline come from the same noise.


def one_prompt_pair(rng: np.random.Generator, n: int = 48) -> tuple[Estimates, Estimates]:
    """A cell and a baseline of one prompt and the same seeds."""
    noise, luck = _shared(rng, n), _shared(rng, n)
    return (
        over_seeds(_angles(noise[0], 1.7), stats.binom.ppf(luck[0], 5, 0.76)),
        over_seeds(_angles(noise[1], 2.0), stats.binom.ppf(luck[1], 5, 0.70)),
    )


def many_prompts_pair(rng: np.random.Generator, n: int = 30) -> tuple[Estimates, Estimates]:
    """A cell and a baseline of the same prompts, more alike the harder the prompt is."""
    kinds = rng.integers(0, len(KAPPAS), n)
    noise, luck = _shared(rng, n, SEEDS), _shared(rng, n, SEEDS)
    cells = []
    for place, (factor, better) in enumerate(((0.9, 0.03), (1.0, 0.0))):
        rows = zip(noise[place], factor * KAPPAS[kinds], strict=True)
        angles = np.array([_angles(row, kappa) for row, kappa in rows])
        found = stats.binom.ppf(luck[place], 5, (QUALITIES[kinds] + better)[:, None])
        cells.append(over_prompts(angles, found))
    return cells[0], cells[1]


def _shared(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Shares of a distribution for both cells, [2, *shape]: every second one is the same."""
    first, second, coin = rng.uniform(size=(3, *shape))
    return np.stack([first, np.where(coin < 0.5, first, second)])


_GRID = np.linspace(-np.pi, np.pi, 4001)
_SHARES: dict[float, np.ndarray] = {}


def _angles(noise: np.ndarray, kappa: float) -> np.ndarray:
    """The angles of von Mises' distribution at shares `noise`, by its tabled distribution."""
    if kappa not in _SHARES:
        _SHARES[kappa] = stats.vonmises.cdf(_GRID, kappa)
    return np.interp(noise, _SHARES[kappa], _GRID)


@dataclass(frozen=True)
class Design:
    """How cells are simulated, and what is true of them.

    Attributes:
        cell: generator and number of units → a cell.
        truth: of such a cell, by metric.
        pair: generator and number of units → a cell and its baseline.
        difference: what the pair differs by, by metric.
    """

    cell: Callable[..., Estimates]
    truth: dict[str, float]
    pair: Callable[..., tuple[Estimates, Estimates]]
    difference: dict[str, float]


def _truth(spread: np.ndarray, score: np.ndarray) -> dict[str, float]:
    div, pc = float(np.mean(spread)), float(np.mean(score))
    return {"diversity": div, "pc": pc, "div_pc": div * pc}


def _less(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a[name] - b[name] for name in METRICS}


_ONE = _truth(true_diversity(2.0), np.array(5 * 0.70))
_MANY = _truth(true_diversity(KAPPAS), 5 * QUALITIES)
DESIGNS = {
    "one prompt": Design(
        one_prompt,
        _ONE,
        one_prompt_pair,
        _less(_truth(true_diversity(1.7), np.array(5 * 0.76)), _ONE),
    ),
    "many prompts": Design(
        many_prompts,
        _MANY,
        many_prompts_pair,
        _less(_truth(true_diversity(0.9 * KAPPAS), 5 * (QUALITIES + 0.03)), _MANY),
    ),
}


def four_standard_errors(rate: float, n: int = SIMULATIONS) -> float:
    """Four standard errors of a rate that is estimated from n simulations."""
    return 4.0 * float(np.sqrt(rate * (1.0 - rate) / n))


def assert_coverage(
    intervals: Sequence[tuple[float, float]], truth: float, shortfall: float = 0.0
) -> None:
    """Assert that 95% intervals contain the truth as often as they should, less `shortfall`.

    The rate must be within four standard errors of 95%. It must also be below 1: 250 intervals of
    the right width all contain the truth with a probability of 3e-6.
    """
    rate = float(np.mean([low <= truth <= high for low, high in intervals]))
    assert 0.95 - shortfall - four_standard_errors(0.95, len(intervals)) <= rate < 1.0
