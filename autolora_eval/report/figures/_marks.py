"""Cells as marks with error bars, joined along their sweep, labelled where there is room."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autolora_eval.report.figures._base import FigureData
from autolora_eval.report.figures._style import (
    SMALL,
    Floats,
    MarkerStyle,
    bars,
    ink,
    literal,
    marker_styles,
    text_size,
    truncate_to_width,
    values,
)
from autolora_eval.report.figures._sweeps import sweep_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Of more cells than these only the most important are labelled, and all are drawn smaller.
CELLS_LABELLED = 24
LABEL_ROOM = 90.0  # points: the widest label


def mark_size(cells: pd.DataFrame) -> float:
    """Return the size of marks in points: smaller where there are many."""
    return 6.5 if len(cells) <= CELLS_LABELLED else 4.5


def places(cells: pd.DataFrame, x_column: str, y_column: str) -> Floats:
    """Return where cells stand, float64 [n, 2]; NaN where a value is missing."""
    return np.stack([values(cells, x_column), values(cells, y_column)], axis=1)


def draw_cells(
    axis: Axes, data: FigureData, cells: pd.DataFrame, x_column: str, y_column: str
) -> dict[tuple[str, str], MarkerStyle]:
    """Draw a mark with bars for each cell that has both values, and join them along the sweep.

    Returns:
        How each (model, method) is drawn.
    """
    drawn = marker_styles(data.table)
    for (model, method), rows in cells.groupby(["model", "method"], sort=False):
        mark = drawn[str(model), str(method)]
        found = axis.errorbar(
            values(rows, x_column),
            values(rows, y_column),
            xerr=bars(rows, x_column),
            yerr=bars(rows, y_column),
            linestyle="none",
            elinewidth=0.8 if len(cells) <= CELLS_LABELLED else 0.4,
            ecolor=mark.colour,
            label=str(method),
            zorder=3,
            **mark.style(mark_size(cells)),
        )
        # A front runs along the bars of its cells: between them and the marks it can be seen.
        for part in found.lines[2]:
            part.set_zorder(2.2)
    for line in sweep_lines(cells, data.points):
        colour = drawn[line[0]["model"], line[0]["method"]].colour
        x, y = ([row[column] for row in line] for column in (x_column, y_column))
        axis.plot(x, y, color=colour, linewidth=0.6, alpha=0.7, zorder=2)
    return drawn


def label_cells(
    axis: Axes,
    data: FigureData,
    cells: pd.DataFrame,
    x_column: str,
    y_column: str,
    important: Collection[str] = (),
) -> None:
    """Write beside marks where on the sweep they are; the figure must be settled.

    Args:
        axis: where to write.
        data: the figure's.
        cells: those of this panel; of many only the important and the ends of lines are labelled.
        x_column: what stands along x.
        y_column: what stands along y.
        important: cells to label first.
    """
    drawn = marker_styles(data.table)
    lines = sweep_lines(cells, data.points)
    rows = [row for line in lines for row in line]
    if len(rows) > CELLS_LABELLED:
        ends = {line[n]["cell"] for line in lines for n in (0, -1)}
        rows = [row for row in rows if row["cell"] in ends or row["cell"] in important]
    rows.sort(key=lambda row: row["cell"] not in important)
    labels = [
        Label(
            row[x_column],
            row[y_column],
            truncate_to_width(", ".join(data.points[row["cell"]].values()), LABEL_ROOM),
            ink(drawn[row["model"], row["method"]].colour),
        )
        for row in rows
        if math.isfinite(row[x_column]) and math.isfinite(row[y_column])
    ]
    found = places(cells, x_column, y_column)
    place_labels(axis, labels, found[np.isfinite(found).all(axis=1)])


# ---- Labels

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
    marker_styles = axis.transData.transform(obstacles) / per_point
    frame = axis.get_window_extent()
    edges = tuple(v / per_point for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    taken: list[tuple[float, float, float, float]] = []
    written = []
    for label in labels:
        x, y = axis.transData.transform((label.x, label.y)) / per_point
        width, height = text_size(label.text)
        for dx, dy in _offsets(width, height):
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            if _is_free(box, taken, marker_styles, edges):
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
    marker_styles: Floats,
    edges: tuple[float, ...],
) -> bool:
    left, bottom, right, top = box
    if left < edges[0] or bottom < edges[1] or right > edges[2] + 4 or top > edges[3] + 4:
        return False
    if any(left < x1 and right > x0 and bottom < y1 and top > y0 for x0, y0, x1, y1 in taken):
        return False
    near = 2.2  # points: half of a small mark
    inside = (
        (marker_styles[:, 0] > left - near)
        & (marker_styles[:, 0] < right + near)
        & (marker_styles[:, 1] > bottom - near)
        & (marker_styles[:, 1] < top + near)
    )
    return not bool(np.any(inside))


# ---- Pareto front


def pareto_front(
    points: npt.NDArray[np.float64], higher_is_better: Sequence[bool]
) -> npt.NDArray[np.bool_]:
    """Tell which points no other point dominates.

    A point dominates another if it is at least as good in every respect and better in one, so
    that of equal points all or none are on the front.

    Args:
        points: float64 [n, k]; one with a NaN is neither on the front nor dominates.
        higher_is_better: direction of each of the k respects.

    Returns:
        bool [n].
    """
    directed = np.where(np.asarray(higher_is_better), points, -points)
    known = np.flatnonzero(np.isfinite(directed).all(axis=1))
    front = np.zeros(len(points), dtype=np.bool_)
    found = directed[known]
    for place, point in zip(known, found, strict=True):
        as_good = (found >= point).all(axis=1)
        front[place] = not (as_good & (found > point).any(axis=1)).any()
    return front
