"""Every metric against what an image costs: denoiser passes, and seconds where they were taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from autolora_eval._sentences import Sentences
from autolora_eval._text import join_names
from autolora_eval.analysis.scores import SECONDS_PER_IMAGE
from autolora_eval.analysis.sentences import Metric
from autolora_eval.report.figures._base import (
    Drawing,
    Extreme,
    FigureData,
    FigureKind,
    cell_names,
    cells_not_drawn,
    swept_names,
)
from autolora_eval.report.figures._marks import draw_cells, label_cells
from autolora_eval.report.figures._style import (
    WIDTH,
    clip_axis,
    clipped_labels,
    label_title,
    literal,
    method_legend,
    panel_titles,
    settle,
    values,
)

COLUMNS, ROWS = 3, 6
say = Sentences("captions")


@dataclass(frozen=True)
class Cost:
    """What an image costs.

    Attributes:
        column: of the result table.
        display_name: on axes.
        digits: decimals in words.
    """

    column: str
    display_name: str
    digits: int


COSTS = (
    Cost("nfe", "function evaluations per image (NFE)", 0),
    Cost(SECONDS_PER_IMAGE, "seconds per image", 2),
)


def _drawn(data: FigureData) -> list[Cost]:
    """Return the costs in which cells differ."""
    found = {cost: values(data.table, cost.column) for cost in COSTS}
    return [cost for cost, x in found.items() if len(np.unique(x[np.isfinite(x)])) > 1]


def _drawings(data: FigureData) -> Iterator[Drawing]:
    costs = _drawn(data)
    if not costs:
        return
    room = ROWS if len(costs) > 1 else ROWS * COLUMNS
    for start in range(0, len(data.metrics), room):
        metrics = data.metrics[start : start + room]
        yield Drawing(
            name=FIGURE.name,
            title=f"{join_names([metric.label for metric in metrics])} against cost",
            caption=_caption(data, costs, metrics),
            text=_text(data, costs, metrics),
            draw=lambda metrics=metrics: _draw(data, costs, metrics),  # type: ignore[misc]
        )


def _draw(data: FigureData, costs: Sequence[Cost], metrics: Sequence[Metric]) -> Figure:
    both = len(costs) > 1
    n_columns = len(costs) if both else min(len(metrics), COLUMNS)
    n_rows = len(metrics) if both else -(-len(metrics) // n_columns)
    key = method_legend(data.table)
    height = (1.05 if both else 1.4 if n_rows > 1 else 2.2) * n_rows + 0.35 + key.height
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    share_x: Literal["col", "all"] = "col" if both else "all"
    share_y: Literal["row", "none"] = "row" if both else "none"
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=share_x, sharey=share_y)
    pairs = list(itertools.product(metrics, costs))
    titles = panel_titles(metrics, n_columns)
    for place, (axis, (metric, cost)) in enumerate(zip(grid.flat, pairs, strict=False)):
        draw_cells(axis, data, data.table, cost.column, metric.column)
        axis.margins(0.1)
        clip_axis(axis, data.table, metric.column)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        if not both:
            literal(axis.set_title(titles[place], fontsize=7.5))
        elif place % n_columns == 0:
            literal(axis.set_ylabel(label_title(metric)))
        if place + n_columns >= len(pairs):  # nothing stands below
            axis.set_xlabel(cost.display_name if n_columns < COLUMNS else cost.column.upper())
            axis.xaxis.set_tick_params(labelbottom=True)
    for axis in list(grid.flat)[len(pairs) :]:
        axis.set_axis_off()
    key.put(figure)
    for axis, (_, cost) in zip(grid.flat, pairs, strict=False):
        axis.set(
            xlim=(0.0, 1.12 * np.nanmax(values(data.table, cost.column))), ylim=axis.get_ylim()
        )
    settle(figure)
    for axis, (metric, cost) in zip(grid.flat, pairs, strict=False):
        label_cells(axis, data, data.table, cost.column, metric.column)
    return figure


def _caption(data: FigureData, costs: Sequence[Cost], metrics: Sequence[Metric]) -> str:
    unknown = [c.display_name for c in COSTS if not np.isfinite(values(data.table, c.column)).any()]
    columns = [*(cost.column for cost in costs), *(metric.column for metric in metrics)]
    return say.cost(
        [cost.display_name for cost in costs],
        unknown,
        clipped_labels(data.table, metrics),
        swept_names(data),
        cells_not_drawn(data, columns),
    )


def _text(data: FigureData, costs: Sequence[Cost], metrics: Sequence[Metric]) -> str:
    found = []
    for cost in costs:
        x = values(data.table, cost.column)
        ends = [
            Extreme(x[n], cell_names(data, [data.table["cell"].iloc[n]]), cost.digits)
            for n in (int(np.nanargmin(x)), int(np.nanargmax(x)))
        ]
        found.append((cost.display_name, *ends))
    return say.cost_text([metric.display_name for metric in metrics], found)


FIGURE = FigureKind("cost", place=30, drawings=_drawings)
