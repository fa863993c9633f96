"""The bootstrap of equation (8): unbiased without the pair of an image with itself, else not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from simulated import true_diversity, vectors

from autolora_eval.scoring.diversity import (
    diversity,
    jackknife_standard_error,
    leave_one_out,
    one_minus_mean_cosine,
    resampled_diversity,
    unit_vectors,
)


def sample(n: int, dim: int = 3) -> np.ndarray:
    """Unit vectors that have some direction in common."""
    return unit_vectors(1.0 + np.random.default_rng(n).normal(size=(n, dim)))


def counts(places: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(places, minlength=n)


def naive(units: np.ndarray, places: np.ndarray) -> float:
    """Equation (8) of the drawn rows, as if an image drawn twice were two."""
    return one_minus_mean_cosine(units[places].sum(axis=0), len(places))


def test_it_is_the_mean_over_pairs_of_different_images() -> None:
    units, places = sample(5), np.array([0, 0, 3, 4, 3, 0])
    cosines = [float(units[a] @ units[b]) for a, b in itertools.combinations(places, 2) if a != b]
    assert len(cosines) == 15 - 4  # three pairs of the first image with itself, one of the fourth
    found = resampled_diversity(units, counts(places, 5))
    assert found == pytest.approx(1.0 - np.mean(cosines), abs=1e-12)


def test_each_image_once_is_equation_8() -> None:
    units = sample(7)
    assert resampled_diversity(units, np.ones(7)) == pytest.approx(
        diversity(units).value, abs=1e-12
    )


def test_each_image_as_often_is_equation_8_too() -> None:
    units = sample(7)
    assert resampled_diversity(units, np.full(7, 3)) == pytest.approx(
        diversity(units).value, abs=1e-12
    )


def test_one_image_alone_has_none() -> None:
    assert np.isnan(resampled_diversity(sample(4), [0, 4, 0, 0]))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_over_all_resamples_it_is_unbiased_and_the_naive_one_is_not(n: int) -> None:
    """All Nᴺ resamples, each as likely: E = D without the pair of an image with itself.

    With it, two places hold the same image in one resample of N: E = 1 − (1/N + (1 − 1/N) c) with
    c = 1 − D the mean cosine, which is (1 − 1/N) D.
    """
    units = sample(n)
    whole = diversity(units).value
    assert whole is not None
    resamples = [np.array(places) for places in itertools.product(range(n), repeat=n)]
    ours = [resampled_diversity(units, counts(places, n)) for places in resamples]
    assert sum(np.isnan(ours)) == n, "those of a single image"
    assert np.nanmean(ours) == pytest.approx(whole, abs=1e-12)
    theirs = np.mean([naive(units, places) for places in resamples])
    assert theirs == pytest.approx((1.0 - 1.0 / n) * whole, abs=1e-12)


def resampled(units: np.ndarray, times: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's distributions of equation (8): ours, and the naive one's."""
    n = len(units)
    places = np.random.default_rng(seed).integers(0, n, (times, n))
    ours = [resampled_diversity(units, counts(row, n)) for row in places]
    return np.array(ours), np.array([naive(units, row) for row in places])


def test_of_16_images_as_well() -> None:
    """4,000 resamples know their mean to a standard error of theirs; the naive one is D/16 off."""
    units = sample(16)
    whole = diversity(units).value
    assert whole is not None
    for found, expected in zip(resampled(units, 4000, 1), (1.0, 1.0 - 1.0 / 16), strict=True):
        error = found.std() / np.sqrt(len(found))
        assert found.mean() == pytest.approx(expected * whole, abs=4 * error)
        assert 4 * error < whole / 16 / 2, "else this could not tell them apart"


def test_its_spread_is_the_jackknifes() -> None:
    """Two ways to one standard error: the product's intervals are the jackknife's."""
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(20):
        units = vectors(rng.vonmises(0.0, 2.0, 64))
        ours, _ = resampled(units, 400, 2)
        ratios.append(ours.std() / jackknife_standard_error(leave_one_out(units)))
    # Each ratio knows the spread of 400 resamples to 3.5 %.
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


def test_simulated_truth_lies_in_the_middle_of_ours_alone() -> None:
    """1,000 simulated cells of 8 images: the mean of one resample each is the true diversity."""
    truth = float(true_diversity(2.0))
    rng = np.random.default_rng(5)
    ours, theirs = [], []
    for _ in range(1000):
        units = vectors(rng.vonmises(0.0, 2.0, 8))
        places = rng.integers(0, 8, 8)
        ours.append(resampled_diversity(units, counts(places, 8)))
        theirs.append(naive(units, places))
    for found, expected in ((ours, truth), (theirs, (1.0 - 1.0 / 8) * truth)):
        error = np.nanstd(found) / np.sqrt(len(found))
        assert np.nanmean(found) == pytest.approx(expected, abs=4 * error)
