"""The bars of the scores: as long as the shares are, one a cell, none lost."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from report.figures.made_up import LORA_SCALES, SCORES, Kind, made_up

from autolora_eval.report.figures.score_distributions import levels

pytestmark = pytest.mark.e2e
KIND = Kind("score_distributions")


def bars(axis: Axes) -> np.ndarray:
    """Return the lengths of the bars, float64 [levels + 1, cells]."""
    return np.array([[patch.get_width() for patch in container] for container in axis.containers])


def test_bars_are_the_shares_of_the_images():
    data = made_up(n_prompts=3, n_seeds=40)
    for axis, score in zip(KIND.panels(data), ("pc", "sa"), strict=True):
        found = bars(axis)
        assert np.allclose(found.sum(axis=0), 1.0)
        for place, cell in enumerate(data.table["cell"]):
            own = data.scores.loc[data.scores["cell"] == cell, score]
            for level in range(6):
                assert np.isclose(found[level, place], (own == level).mean())
            assert np.isclose(found[6, place], own.isna().mean())
    lost = int(data.scores["pc"].isna().sum())
    assert f"PC: {lost} of 480 images unscored." in KIND.caption(data)


def test_negative_levels_have_a_minus_sign():
    found = np.array([-2.0, 1.0])
    assert levels(found, -2.0, 1.0).names == ["−2", "−1", "0", "1"]
    assert levels(found + 0.5, -2.0, 3.0).names[:2] == ["−2 to −1", "−1 to 0"]


def test_scores_of_different_levels_have_a_figure_each_with_its_legend():
    scores = SCORES | {"sa": SCORES["sa"].model_copy(update={"max": 3.0})}
    found = [drawing.draw() for drawing in KIND.drawings(made_up(scores=scores))]
    levels_shown = [
        [text.get_text() for text in figure.legends[0].get_texts() if text.get_text().isdigit()]
        for figure in found
    ]
    assert levels_shown == [list("012345"), list("0123")]


def test_a_cell_without_any_score_is_a_bar_of_unscored_images():
    data = made_up()
    data.scores.loc[data.scores["cell"] == "SDXL--LoRA", ["pc", "sa"]] = np.nan
    found = bars(KIND.panels(data)[0])
    assert found[:, 0].tolist() == [0.0] * 6 + [1.0]


def test_48_cells_have_one_panel_per_method_and_each_bar_its_swept_value():
    scores = {"pc": SCORES["pc"]}
    data = made_up(sweep={"lora_scale": LORA_SCALES}, scores=scores)
    axes = KIND.panels(data)
    assert [axis.get_title(loc="left") for axis in axes] == list(data.table["method"].unique())
    for axis in axes:
        assert [label.get_text() for label in axis.get_yticklabels()] == LORA_SCALES
        assert bars(axis).shape == (7, 12)


def test_without_scores_there_is_no_figure():
    assert KIND.drawings(made_up(scores={})) == []
