"""Coverage of reference images: definition, expectation and edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autolora_eval.scoring.diversity_metric import METRICS
from autolora_eval.scoring.metrics.coverage import K, coverage

METRIC = METRICS.find("coverage")


def drawn(n: int, seed: int = 0, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)) + 0.5


def written_out(features: np.ndarray, reference: np.ndarray, k: int) -> float:
    """The definition, distance by distance."""
    unit = [[row / math.sqrt(math.fsum(row * row)) for row in m] for m in (features, reference)]
    images, others = unit
    covered = 0
    for place, other in enumerate(others):
        rest = [one for index, one in enumerate(others) if index != place]
        radius = sorted(math.dist(other, one) for one in rest)[k - 1]
        covered += min(math.dist(other, image) for image in images) <= radius
    return covered / len(others)


@pytest.mark.parametrize(("n", "m", "k"), [(3, 9, 2), (12, 8, 5), (1, 6, 5), (7, 7, 1)])
def test_coverage_equals_its_definition(n: int, m: int, k: int) -> None:
    for seed in range(10):
        features, reference = drawn(n, seed), drawn(m, seed + 100)
        assert coverage(features, reference, k) == written_out(features, reference, k)


def test_set_with_repeated_images_covers_itself() -> None:
    reference = np.repeat(drawn(4), 3, axis=0)
    assert METRIC(reference, reference).value == 1.0
    assert coverage(drawn(4), reference, k=2) == 1.0  # whose neighbourhoods are single points


def test_one_of_two_distant_clusters_covers_half() -> None:
    rng = np.random.default_rng(0)
    clusters = [centre + 0.01 * rng.normal(size=(8, 3)) for centre in np.eye(3)[:2]]
    assert METRIC(clusters[0], np.concatenate(clusters)).value == 0.5
    assert METRIC(np.eye(3)[2:], np.concatenate(clusters)).value == 0.0


@pytest.mark.parametrize(("n", "m", "k"), [(8, 12, 3), (16, 16, 5), (6, 20, 5)])
@pytest.mark.parametrize("dim", [3, 40])
def test_expected_coverage_for_equal_distributions_matches_the_paper(n, m, k, dim) -> None:
    rng = np.random.default_rng(n * m + dim)
    trials = 800
    found = [coverage(rng.normal(size=(n, dim)), rng.normal(size=(m, dim)), k) for _ in range(800)]
    expected = 1 - math.prod((m - i) / (m + n - i) for i in range(1, k + 1))
    error = np.std(found, ddof=1) / math.sqrt(trials)
    assert abs(np.mean(found) - expected) < 4 * error
    assert error < 0.01


def test_coverage_does_not_decrease_with_more_images() -> None:
    reference, features = drawn(20, 1), drawn(30, 2)
    found = [coverage(features[:n], reference) for n in range(1, 31)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_invariant_to_order_length_and_rotation() -> None:
    features, reference = drawn(6, 1), drawn(12, 2)
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    lengths = rng.uniform(1e-3, 1e3, size=(18, 1))
    changed = [rng.permutation(features) * lengths[:6] @ turn, rng.permutation(reference) @ turn]
    assert coverage(changed[0], changed[1] * lengths[6:]) == coverage(features, reference)


def test_undefined_for_too_few_reference_images() -> None:
    few = METRIC(drawn(3), drawn(K))
    assert few.value is None
    assert few.reason == f"needs at least {K + 1} images of the reference, which has {K}"
    none = METRIC(drawn(3))
    assert none.reason == f"needs at least {K + 1} images of the reference, which has 0"
    assert METRIC(np.zeros((0, 4)), drawn(9)).reason == "needs at least 1 image, has 0"
    broken = drawn(9)
    broken[4] = 0.0
    assert METRIC(drawn(3), broken).reason == "a feature vector is zero or not finite"
