"""What figures compute: the Pareto front, paired units, shares of scores, places of labels."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report.figures.made_up import made_up

from autolora_eval.analysis.cell_estimates import unit_estimates
from autolora_eval.analysis.comparisons import unit_differences
from autolora_eval.report.figures._base import join_points
from autolora_eval.report.figures._marks import Label, pareto_front, place_labels
from autolora_eval.report.figures._style import clipped_limits, settle
from autolora_eval.report.figures.paired_differences import thinned
from autolora_eval.report.figures.score_distributions import levels, shares

NAN = np.nan


def dominates(a: np.ndarray, b: np.ndarray, higher_is_better: tuple[bool, ...]) -> bool:
    signs = [1 if higher else -1 for higher in higher_is_better]
    differences = [sign * (x - y) for sign, x, y in zip(signs, a, b, strict=True)]
    return all(d >= 0 for d in differences) and any(d > 0 for d in differences)


@pytest.mark.parametrize("directions", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("seed", range(5))
def test_on_the_front_is_what_nothing_dominates(seed, directions):
    # Few whole numbers: many ties in one respect and many equal points.
    points = np.random.default_rng(seed).integers(0, 5, (40, 2)).astype(float)
    expected = [not any(dominates(q, p, directions) for q in points) for p in points]
    assert pareto_front(points, directions).tolist() == expected


def test_a_point_without_a_value_is_not_on_the_front_and_hides_no_other():
    points = np.array([[9.0, NAN], [1.0, 1.0], [0.0, 0.0], [NAN, NAN]])
    assert pareto_front(points, (True, True)).tolist() == [False, True, False, False]
    assert pareto_front(points[:1], (True, True)).tolist() == [False]
    assert pareto_front(np.zeros((0, 2)), (True, True)).tolist() == []


def test_prompts_are_paired_by_their_diversity_and_mean_score():
    data = made_up(n_prompts=8, n_seeds=5)
    data.scores[["pc", "sa"]] = data.scores[["pc", "sa"]].fillna(2.0)
    a, b = (f"SDXL--{method}" for method in ("AutoLoRA", "LoRA"))
    estimates = unit_estimates(data.scores, data.diversity, ["pc", "sa"])
    for metric, frame in (("diversity", data.diversity), ("pc", data.scores)):
        means = frame.groupby(["cell", "prompt_index"])[metric].mean()
        found = unit_differences(estimates[a][metric], estimates[b][metric])
        assert np.allclose(np.sort(found), np.sort(means[a] - means[b]), atol=1e-8)


def test_a_curve_keeps_both_ends_of_every_step():
    x, ranks = thinned(np.repeat([-2.0, 0.0, 3.0], [100, 50, 51]), 100)
    assert x.tolist() == [-2.0, -2.0, 0.0, 0.0, 3.0, 3.0]
    assert (ranks * 200).round().astype(int).tolist() == [0, 99, 100, 149, 150, 200]


def test_a_curve_of_many_values_keeps_its_ends_and_few_points():
    differences = np.sort(np.random.default_rng(0).standard_normal(5_000))
    x, ranks = thinned(differences, 100)
    assert len(x) == 100
    assert (x[0], x[-1], ranks[0], ranks[-1]) == (differences[0], differences[-1], 0.0, 1.0)
    # It stays on the curve: a value's rank is where it stands among all.
    assert np.allclose(ranks, np.searchsorted(differences, x) / 4_999)
    assert thinned(np.zeros(0), 10)[0].tolist() == []


def test_whole_scores_have_a_level_for_each_value():
    scores = np.array([0.0, 5.0, 5.0, NAN, 2.0, 3.0])
    on = levels(scores, 0.0, 5.0)
    assert list(on.names) == ["0", "1", "2", "3", "4", "5"]
    # The third cell has no image.
    found = shares(scores, np.array([0, 0, 0, 0, 1, 1]), 3, on)
    assert found[0].tolist() == [0.25, 0.0, 0.0, 0.0, 0.0, 0.5, 0.25]
    assert found[1].tolist() == [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert np.isnan(found[2]).all()


def test_other_scores_fall_into_equal_parts_the_greatest_into_the_last():
    scores = np.array([0.5, 1.0, 4.5, 5.0])
    on = levels(scores, 0.0, 5.0)
    assert list(on.names) == ["0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"]
    assert shares(scores, np.zeros(4, dtype=int), 1, on).tolist() == [[0.25, 0.25, 0, 0, 0.5, 0]]
    long = levels(np.array([1.0, 100.0]), 0.0, 100.0)
    assert list(long.names) == ["0 to 20", "20 to 40", "40 to 60", "60 to 80", "80 to 100"]


def cells(*rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["pc", "pc_low", "pc_high"])


def test_an_interval_far_longer_than_the_others_is_cut_at_as_much_room_as_the_values_take():
    found = clipped_limits(cells((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), (1.5, 0.0, 50.0)), "pc")
    # Values from 1 to 2, so that 0 and 3 are the ends; a twentieth of that is margin.
    assert found == pytest.approx((-0.15, 3.15))


@pytest.mark.parametrize(
    "rows",
    [
        ((1.0, 0.0, 2.0), (1.01, 0.0, 2.0)),  # the values hardly differ, and all are as vague
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((1.0, NAN, NAN), (2.0, NAN, NAN)),
        ((NAN,) * 3,),
    ],
)
def test_usual_intervals_are_not_cut(rows):
    assert clipped_limits(cells(*rows), "pc") is None


def test_published_values_are_never_cut():
    ours = cells((1.0, 0.9, 1.1), (2.0, 1.9, 99.0))
    found = clipped_limits(ours.assign(pc_published=[7.0, 1.0]), "pc")
    assert found is not None
    assert found[1] > 7.0


@pytest.mark.e2e
def test_written_labels_cover_neither_marks_nor_each_other():
    points = np.random.default_rng(0).uniform(0, 1, (200, 2))
    figure = Figure(figsize=(4.0, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(*points.T, "o", markersize=4)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    settle(figure)
    labels = [Label(x, y, f"{x:.2f}", "#000000") for x, y in points]
    too_long = Label(0.5, 0.5, "M" * 60, "#000000")
    written = place_labels(axis, [too_long, *labels], points)
    assert written[0] == labels[0]  # the most important that fits has the first choice
    assert 20 < len(written) < 200  # not for all is there room
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == len(written)
    marks = axis.transData.transform(points)
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert not any(box.contains(x, y) for x, y in marks)
        assert box.x0 >= axis.get_window_extent().x0


def test_points_of_one_parameter_are_named_together():
    assert join_points(["LoRA scale 0.5", "LoRA scale 1"]) == "LoRA scale 0.5 and 1"
    points = ["LoRA scale 1, interval 0–1", "LoRA scale 2, interval 0–1"]
    assert join_points(points) == "; ".join(points)
