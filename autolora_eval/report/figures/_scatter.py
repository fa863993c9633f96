"""The Pareto front: the cells of which no other is better in one respect and as good in all."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autolora_eval.report.figures._base import FigureData
from autolora_eval.report.figures._labels import Label, place_labels
from autolora_eval.report.figures._style import (
    Floats,
    Mark,
    bars,
    fitted,
    ink,
    marks,
    values,
)
from autolora_eval.report.figures._sweep_lines import sweep_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


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


# --------------------
# Cells as marks with bars, joined along their sweep, and labelled where there is room.


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
) -> dict[tuple[str, str], Mark]:
    """Draw a mark with bars for each cell that has both values, and join them along the sweep.

    Returns:
        How each (model, method) is drawn.
    """
    drawn = marks(data.table)
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
    drawn = marks(data.table)
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
            fitted(", ".join(data.points[row["cell"]].values()), LABEL_ROOM),
            ink(drawn[row["model"], row["method"]].colour),
        )
        for row in rows
        if math.isfinite(row[x_column]) and math.isfinite(row[y_column])
    ]
    found = places(cells, x_column, y_column)
    place_labels(axis, labels, found[np.isfinite(found).all(axis=1)])
