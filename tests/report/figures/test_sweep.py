"""Metrics against swept parameters: lines, bands, levels, gaps, and what stands beside what."""

import itertools

import numpy as np
import pytest
from report.figures.made_up import INTERVALS, LORA_SCALES, Kind, curves, made_up, with_values

from autolora_eval.report.figures.sweep import Sweep

pytestmark = pytest.mark.e2e
KIND = Kind("sweep")


def test_without_a_sweep_there_is_no_figure():
    assert KIND.drawings(made_up()) == []
    assert KIND.drawings(made_up(sweep={"lora_scale": ["1"]})) == []


def test_every_swept_parameter_has_its_figure():
    values = {"lora_scale": ["0.4", "1"], "guidance_scale": ["3", "5", "7"], "eta": ["0"]}
    names = [drawing.name for drawing in KIND.drawings(made_up(sweep=values))]
    assert names == ["sweep_lora_scale", "sweep_guidance_scale"]  # one value is no sweep


def test_numbers_are_in_order_and_intervals_as_they_come():
    sweep = Sweep.of("lora_scale", ["1", "0.4", "10"])
    assert (sweep.texts, sweep.places.tolist()) == (("0.4", "1", "10"), [0.4, 1.0, 10.0])
    sweep = Sweep.of("interval", INTERVALS)
    assert (sweep.texts, sweep.places.tolist()) == (tuple(INTERVALS), [0.0, 1.0, 2.0, 3.0])


def test_lines_and_bands_are_those_of_the_table():
    data = made_up(sweep={"lora_scale": LORA_SCALES})
    axes = KIND.panels(data)
    assert [axis.get_title() for axis in axes] == ["Div ↑", "PC ↑", "SA ↑", "Div-PC ↑", "Div-SA ↑"]
    for axis, metric in zip(axes, data.metrics, strict=True):
        for place, method in enumerate(data.table["method"].unique()):
            rows = data.table[data.table["method"] == method]
            (line,) = curves(axis, method)
            assert line[:, 0].tolist() == [float(text) for text in LORA_SCALES]
            assert line[:, 1].tolist() == rows[metric.column].tolist()
            corners = axis.collections[2 * place].get_paths()[0].vertices
            ends = rows[[f"{metric.column}_low", f"{metric.column}_high"]].to_numpy()
            for x, (low, high) in zip(line[:, 0], ends, strict=True):
                here = corners[np.isclose(corners[:, 0], x), 1]
                assert (here.min(), here.max()) == (low, high)


def test_a_cell_without_a_value_leaves_a_gap_and_is_named():
    scales = ["0.2", "0.4", "0.6", "0.8"]
    missing = {"SDXL--LoRA--0.4": None}
    data = made_up(methods=("LoRA",), sweep={"lora_scale": scales})
    columns = ("diversity", "diversity_low", "diversity_high")
    data = with_values(data, **dict.fromkeys(columns, missing))
    axis = KIND.panels(data)[0]
    (line,) = curves(axis, "LoRA")
    assert np.isnan(line[:, 1]).tolist() == [False, True, False, False]
    # Left of the gap one cell stands alone: a band has no width there, so it has a bar.
    alone = axis.collections[1].get_segments()
    low, high = data.table.loc[0, ["diversity_low", "diversity_high"]]
    assert [segment.tolist() for segment in alone] == [[[0.2, low], [0.2, high]]]
    message = "Not in every panel because a value is missing: SDXL × LoRA (LoRA scale 0.4)."
    assert message in KIND.caption(data)


def test_a_method_that_does_not_take_the_parameter_is_a_level():
    data = made_up(
        methods=("LoRA+CFG", "AutoLoRA+CFG"),
        sweep={"interval": INTERVALS},
        taken_by={"interval": ["AutoLoRA+CFG"]},
    )
    axis, *_, last = KIND.panels(data)
    (level,) = curves(axis, "LoRA+CFG")
    assert set(level[:, 1]) == {data.table["diversity"][0]}
    assert level[:, 0].tolist() == [-0.5, 3.5]
    (marker_styles,) = curves(axis, "AutoLoRA+CFG")
    assert marker_styles.tolist() == [[n, y] for n, y in enumerate(data.table["diversity"][1:])]
    assert [label.get_text() for label in last.get_xticklabels()] == INTERVALS
    caption = KIND.caption(data)
    assert "At each interval, one mark per method." in caption
    assert "A horizontal line without marks is a method without this parameter." in caption


def test_another_parameter_gives_panels_side_by_side():
    scales, guidance = ["0.4", "0.7", "1", "1.3"], ["3.5", "4", "4.5", "5", "5.5", "6", "6.5"]
    data = made_up(
        methods=("LoRA+CFG", "AutoLoRA+CFG"),
        sweep={"lora_scale": scales, "guidance_scale": guidance},
    )
    by_scale, by_guidance = (KIND.panels(data, n) for n in (0, 1))
    titles = [axis.get_title() for axis in by_guidance[:4]]
    assert titles == [f"LoRA scale {scale}" for scale in scales]
    rows = data.table.set_index("cell")
    grid = np.asarray(by_guidance).reshape(5, 4)
    for axis, (metric, scale) in zip(
        grid.flat, itertools.product(data.metrics, scales), strict=True
    ):
        (line,) = curves(axis, "AutoLoRA+CFG")
        cells = [f"SDXL--AutoLoRA+CFG--{scale}--{g}" for g in guidance]
        assert line[:, 1].tolist() == rows.loc[cells, metric.column].tolist()
    # Seven do not fit: the first, the last and two between.
    titles = [axis.get_title() for axis in by_scale[:4]]
    assert titles == [f"guidance scale {g}" for g in ("3.5", "4.5", "5.5", "6.5")]
    assert "4 of 7 panels are shown" in KIND.caption(data)
    assert "panels are shown" not in KIND.caption(data, 1)


def test_models_are_side_by_side_or_in_separate_figures():
    one = made_up(models=("SDXL", "SD3"), sweep={"lora_scale": ["0.4", "1"]})
    assert [axis.get_title() for axis in KIND.panels(one)[:2]] == ["SDXL", "SD3"]
    two = made_up(
        models=("SDXL", "SD3"), sweep={"lora_scale": ["0.4", "1"], "guidance_scale": ["3", "5"]}
    )
    assert [drawing.name for drawing in KIND.drawings(two)] == [
        *("sweep_lora_scale_SDXL", "sweep_lora_scale_SD3"),
        *("sweep_guidance_scale_SDXL", "sweep_guidance_scale_SD3"),
    ]


def test_published_values_are_hollow():
    data = made_up(methods=("LoRA",), sweep={"lora_scale": ["0.4", "0.7", "1"]})
    data = with_values(data, diversity_published={"SDXL--LoRA--0.4": 0.3, "SDXL--LoRA--1": 0.2})
    axis = KIND.panels(data)[0]
    (line,) = (line for line in axis.lines if line.get_label() == "published")
    assert line.get_fillstyle() == "none"
    x, y = line.get_data()
    assert x.tolist() == [0.4, 0.7, 1.0]
    assert (y[0], y[2], np.isnan(y[1])) == (0.3, 0.2, True)
    assert "Hollow marks: published values." in KIND.caption(data)
