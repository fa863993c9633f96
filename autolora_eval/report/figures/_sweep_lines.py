"""The cells along a sweep as a figure joins them to lines. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What tells cells of one model and method apart: by cell, each swept parameter with its value.
Points = Mapping[str, Mapping[str, str]]


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
