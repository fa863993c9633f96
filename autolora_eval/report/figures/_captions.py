"""What captions say of cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autolora_eval._text import join_names, parameter_label, point_label
from autolora_eval.report.figures._base import FigureData
from autolora_eval.report.figures._style import short, values

NAMES_LISTED = 12


def named_cells(data: FigureData, cells: Sequence[str]) -> str:
    """Return the names of cells, those of one method together with their places on the sweep.

    Args:
        data: the figure's.
        cells: which; of many only their number by method is told.
    """
    rows = data.table[data.table["cell"].isin(cells)]
    several = data.table["model"].nunique() > 1
    groups: dict[str, list[str]] = {}
    for cell, model, method in rows[["cell", "model", "method"]].itertuples(index=False):
        name = f"{model} × {method}" if several else str(method)
        groups.setdefault(name, []).append(_place(data, cell))
    if len(rows) > NAMES_LISTED:
        return join_names([f"{len(places)} of {name}" for name, places in groups.items()])
    told = [
        f"{name} at {_together(places)}" if any(places) else name for name, places in groups.items()
    ]
    return "; ".join(told) if len(told) < len(rows) else join_names(told)


def beside_method(data: FigureData, cell: str) -> str:
    """Return the method of a cell with its place on the sweep, the parameters' names left out."""
    method = short(str(data.table["method"][data.table["cell"] == cell].iloc[0]), 24)
    return " ".join([method, ", ".join(data.points.get(cell, {}).values())]).strip()


def beside(data: FigureData, what: str) -> Iterator[str]:
    """Yield a sentence on the bare values that stand beside something, if there is a sweep."""
    swept = list(dict.fromkeys(name for point in data.points.values() for name in point))
    if swept:
        yield f"Beside {what}: its {join_names([parameter_label(name) for name in swept])}."


def _place(data: FigureData, cell: str) -> str:
    return point_label(data.points.get(cell, {}))


def _together(places: Sequence[str]) -> str:
    """Return "LoRA scale 0.2, 0.3 and 0.4" for three places that begin alike."""
    heads = {place.rpartition(" ")[0] for place in places}
    if len(heads) > 1 or len(places) == 1:
        return join_names(list(places))
    return f"{heads.pop()} {join_names([place.rpartition(' ')[2] for place in places])}"


def lacking(
    data: FigureData, columns: Sequence[str], cells: Sequence[str] | None = None
) -> Iterator[str]:
    """Yield a sentence that names the cells without a mark: missing must not look like nothing.

    Args:
        data: the figure's.
        columns: what is drawn; a cell lacks a mark if it lacks one of them.
        cells: which cells; all if not given.
    """
    asked = data.table["cell"].isin(data.table["cell"] if cells is None else cells)
    known = np.isfinite([values(data.table, column) for column in columns]).all(axis=0)
    rows = data.table.loc[np.asarray(asked) & ~known]
    if not len(rows):
        return
    pairs = zip(rows["model"], rows["cell"], strict=True)
    names = [f"{model} × {data.labels[cell]}" for model, cell in pairs]
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    yield f"Without a mark, for want of a value: {'; '.join(names[:NAMES_LISTED])}{more}."
