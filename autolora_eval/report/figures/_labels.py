"""Puts short texts beside marks so that none covers another text, a mark or the axes' edge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autolora_eval.report.figures._style import SMALL, Floats, literal, text_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a text's middle may stand: directions, nearest distance first.
_DIRECTIONS = ((1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1))
_DISTANCES = (4.5, 9.0, 14.0)  # points between mark and text


@dataclass(frozen=True)
class Label:
    """A text that belongs beside the mark at (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def place_labels(axis: Axes, labels: Sequence[Label], obstacles: Floats) -> list[Label]:
    """Write labels beside their marks; one for which there is no room is left out.

    The figure must be settled, the limits of its axes included.

    Args:
        axis: where to write.
        labels: the more important first.
        obstacles: what no label may cover, data coordinates [n, 2].

    Returns:
        Those written.
    """
    per_point = axis.figure.dpi / 72
    marks = axis.transData.transform(obstacles) / per_point
    frame = axis.get_window_extent()
    edges = tuple(v / per_point for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    taken: list[tuple[float, float, float, float]] = []
    written = []
    for label in labels:
        x, y = axis.transData.transform((label.x, label.y)) / per_point
        width, height = text_size(label.text)
        for dx, dy in _offsets(width, height):
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            if _is_free(box, taken, marks, edges):
                taken.append(box)
                written.append(label)
                text = axis.annotate(
                    label.text,
                    (label.x, label.y),
                    (dx, dy),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color=label.colour,
                )
                literal(text)
                break
    return written


def _offsets(width: float, height: float) -> Iterable[tuple[float, float]]:
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            dx = right * (distance + width / 2) if right else 0.0
            dy = up * (distance + height / 2) if not right else up * distance
            yield dx, dy


def _is_free(
    box: tuple[float, float, float, float],
    taken: Sequence[tuple[float, float, float, float]],
    marks: Floats,
    edges: tuple[float, ...],
) -> bool:
    left, bottom, right, top = box
    if left < edges[0] or bottom < edges[1] or right > edges[2] + 4 or top > edges[3] + 4:
        return False
    if any(left < x1 and right > x0 and bottom < y1 and top > y0 for x0, y0, x1, y1 in taken):
        return False
    near = 2.2  # points: half of a small mark
    inside = (
        (marks[:, 0] > left - near)
        & (marks[:, 0] < right + near)
        & (marks[:, 1] > bottom - near)
        & (marks[:, 1] < top + near)
    )
    return not bool(np.any(inside))
