"""Cells as marks with error bars, joined along their sweep, labelled where there is room."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autolora_eval.report.figures import _style
from autolora_eval.report.figures._style import Floats, MarkerStyle, marker_styles, values

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from autolora_eval.report.figures._base import FigureData, Points

# With more cells, only the most important are labelled, and all marks are smaller.
CELLS_LABELLED = 24
LABEL_ROOM = 90.0  # points: the widest label


def mark_size(cells: pd.DataFrame) -> float:
    """Return the size of marks in points: smaller where there are many."""
    return 6.5 if len(cells) <= CELLS_LABELLED else 4.5


def places(cells: pd.DataFrame, x_column: str, y_column: str) -> Floats:
    """Return the coordinates of cells, float64 [n, 2]; NaN for missing values."""
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
            xerr=_style.bars(rows, x_column),
            yerr=_style.bars(rows, y_column),
            linestyle="none",
            elinewidth=0.8 if len(cells) <= CELLS_LABELLED else 0.4,
            ecolor=mark.colour,
            label=str(method),
            zorder=3,
            **mark.style(mark_size(cells)),
        )
        # The Pareto front runs along the bars of its cells, so it is drawn over them.
        for part in found.lines[2]:
            part.set_zorder(2.2)
    for line in sweep_lines(cells, data.points):
        colour = drawn[line[0]["model"], line[0]["method"]].colour
        x, y = ([row[column] for row in line] for column in (x_column, y_column))
        axis.plot(x, y, color=colour, linewidth=0.6, alpha=0.7, zorder=2)
    return drawn


def sweep_lines(table: pd.DataFrame, points: Points) -> list[list[dict[Any, Any]]]:
    """Return the rows of cells that differ in their last swept parameter alone, line by line.

    Values that are not numbers, such as intervals, have no order: each cell is its own line.
    """
    lines: dict[tuple[object, ...], list[dict[Any, Any]]] = {}
    for row in table.to_dict("records"):
        point = points.get(row["cell"])
        if point:
            *others, last = point.values()
            key = (row["model"], row["method"], *others, "" if _is_number(last) else last)
            lines.setdefault(key, []).append(row)
    return list(lines.values())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def label_cells(
    axis: Axes,
    data: FigureData,
    cells: pd.DataFrame,
    x_column: str,
    y_column: str,
    important: Collection[str] = (),
) -> None:
    """Write beside marks where on the sweep they are; the figure must be settled.

    Of many cells, only the `important` ones and the ends of lines are labelled.
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
            _style.truncate_to_width(", ".join(data.points[row["cell"]].values()), LABEL_ROOM),
            _style.ink(drawn[row["model"], row["method"]].colour),
        )
        for row in rows
        if math.isfinite(row[x_column]) and math.isfinite(row[y_column])
    ]
    found = places(cells, x_column, y_column)
    place_labels(axis, labels, found[np.isfinite(found).all(axis=1)])


# ---- Labels

# Candidate positions of a label's centre: directions, nearest distance first.
_DIRECTIONS = ((1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1))
_DISTANCES = (4.5, 9.0, 14.0)  # points between mark and text
_NEAR = 2.2  # points: half of a small mark


class Label(NamedTuple):
    """A text that belongs beside the mark at (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def place_labels(axis: Axes, labels: Sequence[Label], obstacles: Floats) -> list[Label]:
    """Write labels beside their marks; one for which there is no room is left out.

    The figure must be settled, the limits of its axes included.

    Args:
        axis: Where to write.
        labels: The more important first.
        obstacles: What no label may cover, in data coordinates, float64 [n, 2].

    Returns:
        Those written.
    """
    per_point = axis.figure.dpi / 72
    marks = axis.transData.transform(obstacles) / per_point
    frame = np.asarray(axis.get_window_extent().extents) / per_point
    taken: list[Floats] = []
    written = []
    for label in labels:
        mark = axis.transData.transform((label.x, label.y)) / per_point
        size = np.asarray(_style.text_size(label.text))
        for offset in _offsets(*size):
            middle = mark + offset
            box = np.concatenate([middle - size / 2, middle + size / 2])
            if _is_free(box, taken, marks, frame):
                taken.append(box)
                written.append(label)
                axis.annotate(
                    label.text,
                    (label.x, label.y),
                    offset,
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    fontsize=_style.SMALL,
                    color=label.colour,
                )
                break
    return written


def _offsets(width: float, height: float) -> Iterable[tuple[float, float]]:
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            dx = right * (distance + width / 2) if right else 0.0
            dy = up * (distance + height / 2) if not right else up * distance
            yield dx, dy


def _is_free(box: Floats, taken: Sequence[Floats], marks: Floats, frame: Floats) -> bool:
    """Return whether a box is inside the axes and covers no other box and no mark."""
    if (box[:2] < frame[:2]).any() or (box[2:] > frame[2:] + 4).any():
        return False
    if any((box[:2] < other[2:]).all() and (box[2:] > other[:2]).all() for other in taken):
        return False
    return not ((marks > box[:2] - _NEAR) & (marks < box[2:] + _NEAR)).all(axis=1).any()


# ---- Pareto front


def pareto_front(points: Floats, higher_is_better: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Return which points no other point dominates.

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
