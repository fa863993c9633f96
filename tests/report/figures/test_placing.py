"""Labels beside marks: none covers a mark, another label or the edge."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from autolora_eval.report.figures._marks import Label, place_labels
from autolora_eval.report.figures._style import settle


def test_written_labels_cover_neither_marks_nor_each_other() -> None:
    random = np.random.default_rng(0)
    points = random.uniform(0, 1, (200, 2))
    figure = Figure(figsize=(4.0, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(*points.T, "o", markersize=4)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    settle(figure)
    labels = [Label(x, y, f"{x:.2f}", "#000000") for x, y in points]
    written = place_labels(axis, labels, points)
    assert written[0] == labels[0]  # the most important has the first choice
    assert 20 < len(written) < 200  # not for all is there room
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == len(written)
    marker_styles = axis.transData.transform(points)
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert not any(box.contains(x, y) for x, y in marker_styles)
        assert box.x0 >= axis.get_window_extent().x0


def test_a_label_for_which_there_is_no_room_is_left_out() -> None:
    figure = Figure(figsize=(2.0, 2.0), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    settle(figure)
    labels = [Label(0.5, 0.5, "M" * 60, "#000000"), Label(0.5, 0.5, "short", "#000000")]
    assert place_labels(axis, labels, np.array([[0.5, 0.5]])) == labels[1:]
