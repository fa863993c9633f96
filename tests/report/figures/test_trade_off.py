"""Diversity against scores: marks where the table says, bars as given, front, what is missing."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from report.figures.made_up import LORA_SCALES, SCORES, Kind, curves, made_up, with_values

from autolora_eval.report.figures._base import FigureData

pytestmark = pytest.mark.e2e
KIND = Kind("diversity_vs_scores")


def test_every_cell_is_at_its_score_and_diversity_with_its_intervals():
    data = made_up()
    first, second = KIND.panels(data)
    for axis, score in ((first, "pc"), (second, "sa")):
        for container, row in zip(axis.containers, data.table.to_dict("records"), strict=True):
            assert container.get_label() == row["method"]
            mark, _, (across, up) = container.lines
            assert mark.get_xydata().tolist() == [[row[score], row["diversity"]]]
            expected = [row[f"{score}_low"], row[f"{score}_high"]]
            assert np.allclose(across.get_segments()[0][:, 0], expected)
            expected = [row["diversity_low"], row["diversity_high"]]
            assert np.allclose(up.get_segments()[0][:, 1], expected)
    assert first.get_xlabel() == "Prompt correspondence ↑"


def test_a_cell_without_a_value_has_no_mark_and_is_named():
    data = with_values(made_up(), pc={"SDXL--AutoLoRA": None})
    first, second = KIND.panels(data)
    assert np.isnan(curves(first, "AutoLoRA")[0]).any()
    assert np.isfinite(curves(second, "AutoLoRA")[0]).all()
    caption = KIND.caption(data)
    assert "Not in every panel because a value is missing: SDXL × AutoLoRA." in caption
    assert "Not drawn" not in KIND.caption(made_up())


def test_without_any_cell_there_is_no_figure():
    data = made_up()
    assert KIND.drawings(with_values(data, diversity=dict.fromkeys(data.table["cell"]))) == []


def test_a_panel_without_cells_says_so_and_has_no_curves():
    data = made_up()
    data = with_values(data, pc=dict.fromkeys(data.table["cell"]))
    first, second = KIND.panels(data)
    assert [text.get_text() for text in first.texts] == ["no cell with both diversity and score"]
    assert [line for line in first.lines if line.get_color() == "#c4c4c4"] == []
    assert [line for line in second.lines if line.get_color() == "#c4c4c4"] != []


FRONT = {"diversity": [0.4, 0.3, 0.35, 0.1], "pc": [1.0, 2.0, 3.0, 2.5]}


def with_rows(data: FigureData, columns: Mapping[str, Sequence[float]]) -> FigureData:
    """Return the data with other columns of the result table."""
    cells = data.table["cell"]
    return with_values(data, **{c: dict(zip(cells, v, strict=True)) for c, v in columns.items()})


@pytest.mark.parametrize(
    ("higher_is_better", "expected"),
    [
        # Of those with a greater diversity, LoRA alone; LoRA+CFG surpasses both others.
        (True, {"LoRA": (1.0, 0.4), "LoRA+CFG": (3.0, 0.35)}),
        (False, {"LoRA": (1.0, 0.4)}),
    ],
)
def test_the_front_follows_the_direction_of_the_score(higher_is_better, expected):
    score = SCORES["pc"].model_copy(update={"higher_is_better": higher_is_better})
    data = with_rows(made_up(scores={"pc": score}), FRONT)
    drawn = curves(KIND.panels(data)[0], "Pareto front")
    points = [sorted(map(tuple, line)) for line in drawn]
    assert points == ([sorted(expected.values())] if len(expected) > 1 else [])
    names = " and ".join(expected)
    assert f"dominates). PC: {names}." in KIND.caption(data)
    better = "Up and right is better." if higher_is_better else "Arrows show the better directions."
    assert better in KIND.caption(data)


def test_a_front_is_drawn_over_bars_and_under_marks():
    """It runs down and across from its cells' marks, which is where their bars are."""
    axis = KIND.panels(with_rows(made_up(), FRONT))[0]
    (front,) = (line.get_zorder() for line in axis.lines if line.get_label() == "Pareto front")
    for container in axis.containers:
        mark, _, bars = container.lines
        assert [bar.get_zorder() < front < mark.get_zorder() for bar in bars] == [True, True]


def test_a_single_cell_has_no_front():
    assert "Pareto" not in KIND.caption(made_up(methods=("LoRA",)))


def test_each_model_has_its_own_front():
    values = {"diversity": [0.4, 0.3, 0.2, 0.1], "pc": [4.0, 5.0, 2.0, 3.0]}
    data = with_rows(made_up(models=("A", "B"), methods=("one", "two")), values)
    fronts = [front.tolist() for front in curves(KIND.panels(data)[0], "Pareto front")]
    assert fronts == [[[4.0, 0.4], [5.0, 0.3]], [[2.0, 0.2], [3.0, 0.1]]]


def test_published_values_are_hollow_and_tied_to_ours():
    cells = {"SDXL--LoRA": 0.25, "SDXL--AutoLoRA": 0.3}
    data = with_values(
        made_up(), diversity_published=cells, pc_published={**cells, "SDXL--LoRA+CFG": 2.0}
    )
    axis = KIND.panels(data)[0]
    lines = [line for line in axis.lines if line.get_label() == "published"]
    # The third has no published diversity.
    assert [line.get_xydata().tolist() for line in lines] == [[[0.25, 0.25]], [[0.3, 0.3]]]
    assert {line.get_fillstyle() for line in lines} == {"none"}
    caption = KIND.caption(data)
    assert "Hollow marks: published values, connected to ours." in caption


def test_curves_of_equal_product_are_of_equal_product():
    data = made_up()
    axis = KIND.panels(data)[0]
    found = [line for line in axis.lines if line.get_color() == "#c4c4c4"]
    assert len(found) >= 2
    for line in found:
        x, y = line.get_data()
        assert np.allclose(x * y, x[0] * y[0])
        level = f"{float((x * y).mean()):g}"
        assert level in [text.get_text() for text in axis.texts]


def test_many_cells_of_several_models_have_one_row_of_panels_per_model():
    data = made_up(models=("SDXL", "SD3"), sweep={"lora_scale": LORA_SCALES})
    axes = KIND.panels(data)
    titles = [axis.get_title() for axis in axes]
    assert titles == ["SDXL", "SDXL", "SD3", "SD3"]
    for axis, model in zip(axes, titles, strict=True):
        own = data.table[data.table["model"] == model]
        drawn = np.concatenate([c.lines[0].get_xdata() for c in axis.containers])
        assert len(drawn) == 48
        column = "pc" if axis.get_xlabel().startswith("Prompt") else "sa"
        assert np.allclose(np.sort(drawn), np.sort(own[column]))


def test_labels_on_a_sweep_are_its_values():
    data = made_up(methods=("LoRA", "AutoLoRA"), sweep={"lora_scale": ["0.4", "0.7", "1"]})
    axis = KIND.panels(data)[0]
    written = [text.get_text() for text in axis.texts if text.get_fontsize() > 6]
    assert sorted(written) == sorted(["0.4", "0.7", "1"] * 2)
    assert "The label next to a mark is its LoRA scale." in KIND.caption(data)


def test_without_a_judge_diversity_is_shown_by_cell():
    data = made_up(scores={})
    axis = KIND.draw(data).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(data.table["method"])
    for place, row in enumerate(data.table.to_dict("records")):
        assert curves(axis, row["method"])[0].tolist() == [[row["diversity"], place]]
