"""The cells along a sweep as a figure shows them: lines, and texts beside their marks. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What tells cells of one model and method apart: by cell, each swept parameter with its value.
Points = Mapping[str, Mapping[str, str]]
# Labels nearer than this share of the axes' lengths would cover each other.
LABEL_ROOM = 0.05


@dataclass(frozen=True)
class Label:
    """A text beside the mark at (x, y)."""

    x: float
    y: float
    colour: str
    text: str


def cost_varies(table: pd.DataFrame, points: Points) -> bool:
    """Tell whether a sweep makes images of one model and method cost differently."""
    swept = table[[bool(points.get(cell)) for cell in table["cell"]]]
    return bool((swept.groupby(["model", "method"])["nfe"].nunique() > 1).any())


def sweep_lines(table: pd.DataFrame, points: Points) -> list[list[dict[Any, Any]]]:
    """Return the rows of cells that differ in their last swept parameter alone, line by line.

    Of one that is no number, such as an interval, each cell is a line of its own: it has no order.
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


def stacked(labels: Sequence[Label], width: float, height: float) -> list[Label]:
    """Return labels of one colour that would cover each other as one of several lines.

    Args:
        labels: what is to be written.
        width: length of the x axis, in its units.
        height: length of the y axis, in its units.
    """
    found: list[Label] = []
    for label in labels:
        for index, other in enumerate(found):
            is_near = (
                label.colour == other.colour
                and abs(label.x - other.x) < LABEL_ROOM * width
                and abs(label.y - other.y) < LABEL_ROOM * height
            )
            if is_near:
                found[index] = replace(other, text=f"{other.text}\n{label.text}")
                break
        else:
            found.append(label)
    return found
