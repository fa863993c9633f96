"""The shares of images on the levels of a score."""

import numpy as np
import pytest

from autolora_eval.report.figures.score_distributions import levels, shares

NAN = np.nan


def test_whole_scores_have_a_level_for_each_value() -> None:
    scores = np.array([0.0, 5.0, 5.0, NAN, 2.0, 3.0])
    on = levels(scores, 0.0, 5.0)
    assert list(on.names) == ["0", "1", "2", "3", "4", "5"]
    found = shares(scores, np.array([0, 0, 0, 0, 1, 1]), 2, on)
    assert found[0].tolist() == [0.25, 0.0, 0.0, 0.0, 0.0, 0.5, 0.25]
    assert found[1].tolist() == [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0]


def test_scores_between_whole_numbers_fall_into_equal_parts_the_greatest_into_the_last() -> None:
    scores = np.array([0.5, 1.0, 4.5, 5.0])
    on = levels(scores, 0.0, 5.0)
    assert list(on.names) == ["0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"]
    assert shares(scores, np.zeros(4, dtype=int), 1, on).tolist() == [[0.25, 0.25, 0, 0, 0.5, 0]]


def test_a_long_scale_of_whole_numbers_is_cut_into_parts() -> None:
    on = levels(np.array([1.0, 100.0]), 0.0, 100.0)
    assert list(on.names) == ["0 to 20", "20 to 40", "40 to 60", "60 to 80", "80 to 100"]


@pytest.mark.parametrize("whole", [True, False])
def test_shares_sum_to_one_with_the_unscored_and_equal_counts(whole: bool) -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 6, 600).astype(float) if whole else random.uniform(0, 5, 600)
    scores[random.random(600) < 0.1] = NAN
    cells = random.integers(0, 4, 600)
    found = shares(scores, cells, 4, levels(scores, 0.0, 5.0))
    assert np.allclose(found.sum(axis=1), 1.0)
    for cell in range(4):
        own = scores[cells == cell]
        assert found[cell, -1] == np.isnan(own).mean()
        lowest = (own < (0.5 if whole else 1.0)).mean()
        assert found[cell, 0] == lowest


def test_a_cell_without_images_has_no_shares() -> None:
    on = levels(np.array([1.0]), 0.0, 5.0)
    found = shares(np.array([1.0]), np.array([1]), 2, on)
    assert np.isnan(found[0]).all()
    assert found[1, 1] == 1.0
