"""Every metric against the cost of an image: function evaluations, and seconds if known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from autolora_eval._text import Sentences, join_names
from autolora_eval.analysis.metrics import Metric
from autolora_eval.analysis.scores import SECONDS_PER_IMAGE
from autolora_eval.report.figures import _base, _marks, _style
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
from autolora_eval.report.figures._style import values

say = Sentences("captions")


class Cost(NamedTuple):
    """A cost of an image: its column in the result table, its name, and its decimals."""

    column: str
    display_name: str
    digits: int


COSTS = (
    Cost("nfe", "function evaluations per image (NFE)", 0),
    Cost(SECONDS_PER_IMAGE, "seconds per image", 2),
)


def _drawings(data: FigureData) -> Iterator[Drawing]:
    found = {cost: values(data.table, cost.column) for cost in COSTS}
    costs = [cost for cost, x in found.items() if len(np.unique(x[np.isfinite(x)])) > 1]
    if not costs:
        return
    for metrics in _style.metrics_of_a_figure(data.metrics, len(costs)):
        yield Drawing(
            name=FIGURE.name,
            title=f"{join_names([metric.label for metric in metrics])} against cost",
            caption=_caption(data, costs, metrics),
            text=_text(data, costs, metrics),
            draw=partial(_draw, data, costs, metrics),
        )


def _draw(data: FigureData, costs: Sequence[Cost], metrics: Sequence[Metric]) -> Figure:
    both = len(costs) > 1
    shape = n_rows, n_columns = _style.metric_shape(len(metrics), len(costs))
    panels = list(itertools.product(metrics, costs))
    figure, axes = _style.panel_grid(
        shape,
        len(panels),
        (1.05 if both else 1.4 if n_rows > 1 else 2.2) * n_rows + 0.35,
        _style.method_legend(
            data.table, [cost.column for cost in costs], [metric.column for metric in metrics]
        ),
        sharex="col" if both else "all",
        sharey="row" if both else "none",
    )
    for axis, (metric, cost) in zip(axes, panels, strict=True):
        _marks.draw_cells(axis, data, data.table, cost.column, metric.column)
        axis.margins(0.1)
        _style.clip_axis(axis, data.table, metric.column)
        axis.yaxis.set_major_locator(_style.few_ticks())
        axis.xaxis.set_major_locator(_style.few_ticks())
    broad = n_columns < _style.METRICS_ACROSS
    names = [cost.display_name if broad else cost.column.upper() for cost in costs]
    _style.name_panels(axes, metrics, n_columns, names)
    for axis, (_, cost) in zip(axes, panels, strict=True):
        most = np.nanmax(values(data.table, cost.column))
        axis.set(xlim=(0.0, 1.12 * most), ylim=axis.get_ylim())
    _style.settle(figure)
    for axis, (metric, cost) in zip(axes, panels, strict=True):
        _marks.label_cells(axis, data, data.table, cost.column, metric.column)
    return figure


def _caption(data: FigureData, costs: Sequence[Cost], metrics: Sequence[Metric]) -> str:
    unknown = [c.display_name for c in COSTS if not np.isfinite(values(data.table, c.column)).any()]
    columns = [*(cost.column for cost in costs), *(metric.column for metric in metrics)]
    return say.cost(
        costs=[cost.display_name for cost in costs],
        not_recorded=unknown,
        clipped_metrics=_style.clipped_labels(data.table, metrics),
        parameters=_base.swept_names(data),
        missing=_base.cells_not_drawn(data, columns),
    )


def _text(data: FigureData, costs: Sequence[Cost], metrics: Sequence[Metric]) -> str:
    ends = [(c.display_name, *_base.extremes(data, c.column, c.digits)) for c in costs]
    return say.cost_text([metric.display_name for metric in metrics], ends)


FIGURE = FigureKind("cost", place=30, drawings=_drawings)
