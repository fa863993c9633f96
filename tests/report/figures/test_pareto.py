"""The Pareto front against its definition, pair by pair."""

import itertools

import numpy as np
import pytest

from autolora_eval.report.figures._marks import pareto_front


def dominates(a: np.ndarray, b: np.ndarray, higher_is_better: tuple[bool, ...]) -> bool:
    signs = [1 if higher else -1 for higher in higher_is_better]
    differences = [sign * (x - y) for sign, x, y in zip(signs, a, b, strict=True)]
    return all(d >= 0 for d in differences) and any(d > 0 for d in differences)


@pytest.mark.parametrize("directions", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("seed", range(5))
def test_on_the_front_is_what_nothing_dominates(seed: int, directions: tuple[bool, bool]) -> None:
    random = np.random.default_rng(seed)
    # Few whole numbers: many ties in one respect and many equal points.
    points = random.integers(0, 5, (40, 2)).astype(float)
    expected = [
        not any(dominates(other, point, directions) for other in points) for point in points
    ]
    assert pareto_front(points, directions).tolist() == expected


def test_equal_points_are_on_the_front_together() -> None:
    points = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [0.0, 2.0]])
    assert pareto_front(points, (True, True)).tolist() == [True, True, True, False]


def test_a_point_without_a_value_is_not_on_the_front_and_hides_no_other() -> None:
    points = np.array([[9.0, np.nan], [1.0, 1.0], [0.0, 0.0], [np.nan, np.nan]])
    assert pareto_front(points, (True, True)).tolist() == [False, True, False, False]
    assert pareto_front(points[:1], (True, True)).tolist() == [False]
    assert pareto_front(np.zeros((0, 2)), (True, True)).tolist() == []
