"""Swept parameters as the figures show them: axes, panels, and lines of cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora_eval._text import point_label
from autolora_eval.report.figures._base import FigureData, Points

if TYPE_CHECKING:
    import pandas as pd

    from autolora_eval.report.figures._style import Floats


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


@dataclass(frozen=True)
class Sweep:
    """A swept parameter as an axis.

    Attributes:
        parameter: its name.
        texts: its values, in order.
        places: where they stand, float64 [n]: the values themselves, or 0, 1, … where they are
            not numbers, such as intervals.
        is_number: whether they are numbers.
    """

    parameter: str
    texts: tuple[str, ...]
    places: Floats
    is_number: bool

    @classmethod
    def of(cls, parameter: str, texts: Sequence[str]) -> Sweep:
        """Return the axis of these values: numbers in their order, other values as they come."""
        try:
            places = np.asarray([float(text) for text in texts])
        except ValueError:
            return cls(parameter, tuple(texts), np.arange(len(texts), dtype=np.float64), False)
        order = np.argsort(places, kind="stable")
        return cls(parameter, tuple(texts[n] for n in order), places[order], True)


@dataclass(frozen=True)
class Facet:
    """Cells that differ in one swept parameter and in method alone.

    Attributes:
        title: what they share.
        cells: rows of the result table.
    """

    title: str
    cells: pd.DataFrame


def sweeps(data: FigureData) -> list[Sweep]:
    """Return the swept parameters that have several values."""
    found: dict[str, dict[str, None]] = {}
    for cell in data.table["cell"]:
        for name, value in data.points.get(cell, {}).items():
            found.setdefault(name, {})[value] = None
    return [Sweep.of(name, list(texts)) for name, texts in found.items() if len(texts) > 1]


def facets(data: FigureData, model: str, sweep: Sweep, others: Sequence[Sweep]) -> list[Facet]:
    """Return a model's cells, apart by the values of the other swept parameters.

    A method that does not take one of those stands beside each of its values.
    """
    rows = data.table[data.table["model"] == model]
    found = []
    for texts in itertools.product(*(other.texts for other in others)):
        point = {other.parameter: text for other, text in zip(others, texts, strict=True)}
        fits = [_agrees(data.points.get(cell, {}), point) for cell in rows["cell"]]
        cells = rows[fits]
        if any(sweep.parameter in data.points.get(cell, {}) for cell in cells["cell"]):
            title = point_label(point)
            found.append(Facet(title, cells))
    return found


def _agrees(own: Mapping[str, str], point: Mapping[str, str]) -> bool:
    return all(own.get(name, text) == text for name, text in point.items())


def spread_out(n: int, at_most: int) -> list[int]:
    """Return at most so many of 0 … n − 1, the first and the last among them, evenly spread."""
    return sorted(set(np.linspace(0, n - 1, min(n, at_most)).round().astype(int).tolist()))
