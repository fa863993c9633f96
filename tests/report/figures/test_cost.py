"""Metrics against cost: what was recorded, and nothing for what was not."""

import numpy as np
import pytest
from report.figures.made_up import Kind, curves, made_up, with_values

pytestmark = pytest.mark.e2e
KIND = Kind("cost")


def test_without_a_difference_in_cost_there_is_no_figure():
    data = made_up()
    assert KIND.drawings(with_values(data, nfe=dict.fromkeys(data.table["cell"], 40.0))) == []


def test_every_cell_is_at_its_nfe():
    data = made_up()
    axes = KIND.panels(data)
    assert len(axes) == len(data.metrics)
    for axis, metric in zip(axes, data.metrics, strict=True):
        assert axis.get_xlim()[0] == 0.0
        for row in data.table.to_dict("records"):
            assert curves(axis, row["method"])[0].tolist() == [[row["nfe"], row[metric.column]]]
    assert "This run did not record the seconds per image." in KIND.caption(data)


def test_seconds_are_beside_nfe_and_a_missing_one_is_not_zero():
    seconds = {"SDXL--LoRA": 1.5, "SDXL--AutoLoRA": 2.5, "SDXL--LoRA+CFG": 2.75}
    data = with_values(made_up(), seconds_per_image=seconds)
    axes = np.asarray(KIND.panels(data)).reshape(5, 2)
    assert [axis.get_xlabel() for axis in axes[-1]] == [
        *("function evaluations per image (NFE)", "seconds per image")
    ]
    for cell, method in zip(data.table["cell"], data.table["method"], strict=True):
        x = curves(axes[0, 1], method)[0][0, 0]
        assert x == seconds[cell] if cell in seconds else np.isnan(x)
    some = with_values(data, nfe={"SDXL--LoRA": None}, seconds_per_image={"SDXL--LoRA": None})
    names = [text.get_text() for text in KIND.draw(some).legends[0].get_texts()]
    assert names == ["AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG"]
    caption = KIND.caption(data)
    assert "Not in every panel because a value is missing: SDXL × AutoLoRA+CFG." in caption
    assert "Not recorded" not in caption


def test_a_method_without_any_value_is_not_in_the_legend():
    data = made_up()
    unknown = {metric.column: {"SDXL--LoRA": None} for metric in data.metrics}
    (legend,) = KIND.draw(with_values(data, **unknown)).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG")
    ]


def test_the_text_names_the_cheapest_and_the_most_expensive():
    text = KIND.drawings(made_up())[0].text
    assert "(NFE): least 20 (LoRA) and most 80 (AutoLoRA+CFG)" in text
