"""Paired differences: units as pandas pairs them, intervals as the comparisons say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from report.figures.made_up import Kind, curves, made_up

pytestmark = pytest.mark.e2e
KIND = Kind("paired_differences")


def test_units_differences_and_intervals_are_at_their_values():
    data = made_up(n_prompts=9, n_seeds=4)
    axes = KIND.panels(data)
    assert [axis.get_title() for axis in axes] == ["Div ↑", "PC ↑", "SA ↑", "Div-PC ↑", "Div-SA ↑"]
    methods = ["AutoLoRA", "LoRA+CFG", "AutoLoRA+CFG"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == methods
    wide = data.diversity.pivot(index="prompt_index", columns="cell", values="diversity")
    dots = curves(axes[0], "units")[0]
    for place, method in enumerate(methods):
        expected = np.sort(wide[f"SDXL--{method}"] - wide["SDXL--LoRA"])
        here = dots[np.abs(dots[:, 1] - place) < 0.5]
        # Sorted: the lowest difference at the lower end of the row.
        assert np.allclose(here[:, 0], expected)
        assert (np.diff(here[:, 1]) < 0).all()
    for axis, metric in zip(axes, data.metrics, strict=True):
        found = data.comparisons[data.comparisons["metric"] == metric.column]
        full, hollow = curves(axis, "difference")
        assert np.allclose(full[:, 0], found["difference"])
        assert np.isnan(hollow[:, 0]).all()
        bars = [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()]
        assert bars == found[["low", "high"]].to_numpy().tolist()


def test_what_may_be_chance_is_hollow():
    data = made_up(n_prompts=5)
    data.comparisons["p_holm"] = [
        0.2 if m == "LoRA+CFG" else 0.01 for m in data.comparisons["method"]
    ]
    full, hollow = curves(KIND.panels(data)[0], "difference")
    assert np.isnan(full[:, 0]).tolist() == [False, True, False]
    assert np.isnan(hollow[:, 0]).tolist() == [True, False, True]


def test_many_units_are_a_curve_through_all_of_them():
    data = made_up(n_seeds=300)
    axis = KIND.panels(data)[1]
    (curve,) = curves(axis, "SDXL--AutoLoRA")
    a, b = (
        data.scores[data.scores["method"] == m].set_index("seed")["pc"]
        for m in ("AutoLoRA", "LoRA")
    )
    differences = (a - b).dropna()
    assert (curve[0, 0], curve[-1, 0]) == (differences.min(), differences.max())
    # Where the curve leaves a whole number is the share of differences up to it.
    ranks = (0.4 - curve[:, 1]) / 0.8
    for value in (-1.0, 0.0, 1.0):
        share = (differences <= value).mean()
        assert abs(ranks[curve[:, 0] <= value].max() - share) <= 1 / len(differences)


def test_a_single_seed_has_no_diversity():
    data = made_up(n_seeds=6)
    axes = KIND.panels(data)
    assert curves(axes[0], "units") == []
    assert len(curves(axes[1], "units")) == 1
    said = "Without dots: Div, Div-PC and Div-SA, because a single seed has no value."
    assert said in KIND.caption(data)
    alone = dataclasses.replace(data, metrics=data.metrics[:1])
    names = [text.get_text() for text in KIND.draw(alone).legends[0].get_texts()]
    assert names == ["difference, p < 0.05", "difference, p ≥ 0.05"]


def test_a_missing_difference_has_no_mark_and_is_named():
    data = made_up(n_prompts=4)
    lost = (data.comparisons["method"] == "LoRA+CFG") & (data.comparisons["metric"] == "pc")
    data.comparisons.loc[lost, ["difference", "low", "high"]] = np.nan
    full, hollow = curves(KIND.panels(data)[1], "difference")
    assert np.isnan(full[1, 0])
    assert np.isnan(hollow[1, 0])
    assert "Without a difference in some metric: LoRA+CFG." in KIND.caption(data)


def test_the_text_has_whole_differences_and_says_what_was_not_compared():
    data = made_up(methods=("LoRA", "AutoLoRA"), n_prompts=4)
    compared = data.comparisons.iloc[:2].assign(difference=[-2, 0])  # int64, as pandas reads "−2"
    (drawing,) = KIND.drawings(dataclasses.replace(data, comparisons=compared))
    assert "Diversity: −2.000; Prompt correspondence: 0.000; Style adherence: not compared;" in (
        drawing.text
    )


def test_without_comparisons_there_is_no_figure():
    data = made_up()
    none = pd.DataFrame(columns=data.comparisons.columns)
    assert KIND.drawings(dataclasses.replace(data, comparisons=none)) == []
    assert KIND.drawings(made_up(methods=("LoRA",))) == []
