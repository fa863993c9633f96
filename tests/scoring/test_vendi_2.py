"""The Vendi score of order 2: known values, its definition, and order 1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autolora_eval.scoring.diversity_metric import METRICS

VENDI, VENDI_2 = METRICS.find("vendi"), METRICS.find("vendi_2")


def drawn(n: int, dim: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, dim)) + 0.5


@pytest.mark.parametrize(("n", "dim"), [(3, 5), (5, 3)])
def test_equal_images_give_one_and_orthogonal_images_n(n: int, dim: int) -> None:
    assert VENDI_2(np.tile(drawn(1, dim), (n, 1))).value == pytest.approx(1.0)
    assert VENDI_2(np.eye(n, n + 1)).value == pytest.approx(n)


def test_clusters_give_the_inverse_sum_of_squared_fractions() -> None:
    features = np.repeat(np.eye(3), [5, 3, 2], axis=0)
    assert VENDI_2(features).value == pytest.approx(1 / (0.25 + 0.09 + 0.04))


@pytest.mark.parametrize(("n", "dim"), [(7, 4), (4, 7)])
def test_equals_its_definition_over_pairs(n: int, dim: int) -> None:
    features = drawn(n, dim)
    cosines = [
        math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))
        for a in features
        for b in features
    ]
    expected = n**2 / math.fsum(c * c for c in cosines)
    assert VENDI_2(features).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "dim"), [(7, 4), (4, 7), (16, 16)])
def test_order_2_is_less_than_order_1(n: int, dim: int) -> None:
    first, second = (measure(drawn(n, dim)).value for measure in (VENDI, VENDI_2))
    assert first is not None
    assert second is not None
    assert second < first - 1e-3, "equal only where all shares are"
