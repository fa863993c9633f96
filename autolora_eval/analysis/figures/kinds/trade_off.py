"""Diversity against every judged score, one mark a cell; without a judge, diversity by cell.

Below it, where a sweep changes what an image costs, each measure against that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from autolora_eval.analysis.figures.declaration import Drawing, FigureData, FigureKind
from autolora_eval.analysis.figures.style import (
    Mark,
    axis_title,
    errors,
    in_words,
    legend,
    listed,
    literal,
    marks,
    number,
    short,
)
from autolora_eval.analysis.measures import DIVERSITY, Measure
from autolora_eval.analysis.sweep_lines import Label, Points, cost_varies, stacked, sweep_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Of more marks than these only the ends of a line are labelled with their swept parameters.
POINTS_LABELLED = 24
COST_COLUMNS = 4


@dataclass(frozen=True)
class _Drawn:
    """What is drawn in every panel."""

    table: pd.DataFrame
    points: Points
    marks: dict[tuple[str, str], Mark]

    @property
    def is_sweep(self) -> bool:
        return any(self.points.values())

    def places(
        self, rows: Sequence[dict[Any, Any]], x_column: str, y_column: str
    ) -> Iterator[tuple[float, float, dict[Any, Any]]]:
        """Yield the rows that have both values, with the values."""
        for row in rows:
            x, y = number(row.get(x_column)), number(row.get(y_column))
            if x is not None and y is not None:
                yield x, y, row


def diversity_vs_scores(table: pd.DataFrame, measured: Sequence[Measure], points: Points) -> Figure:
    """Return the figure: one panel a score, which all share the axis of diversity."""
    scores = [measure for measure in measured if measure.kind == "score"]
    if not scores:
        return _dot_plot(table, points)
    columns = min(len(scores), 3)
    rows = math.ceil(len(scores) / columns)
    width, height = max(3.4 * columns, 4.6), 3.0 * rows + 0.6
    drawn = _Drawn(table, points, marks(table))
    if not cost_varies(table, points):
        figure = Figure(figsize=(width, height), layout="constrained")
        _against_scores(figure, drawn, scores, rows, columns)
        legend(figure, table)
        return figure
    costs = [DIVERSITY, *scores]
    more = math.ceil(len(costs) / COST_COLUMNS)
    # Flatter, so that both parts fit beside a table on a page.
    upper_height, lower_height = 2.6 * rows, 2.0 * more + 0.6
    figure = Figure(figsize=(width, upper_height + lower_height), layout="constrained")
    ratios = (upper_height, lower_height)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
    _against_scores(upper, drawn, scores, rows, columns)
    _against_cost(lower, drawn, costs, more)
    legend(lower, table)
    return figure


def _against_scores(
    figure: FigureBase, drawn: _Drawn, scores: Sequence[Measure], rows: int, columns: int
) -> None:
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, score in zip(axes, scores, strict=False):
        _panel(axis, drawn, score.column, DIVERSITY.column)
        literal(axis.set_xlabel(axis_title(score)))
    for row in range(rows):
        axes[row * columns].set_ylabel(axis_title(DIVERSITY))
    for axis in axes[len(scores) :]:
        axis.set_axis_off()
    for axis, score in zip(axes, scores, strict=False):
        # The diversity axis is shared: its limits are known only once all panels are drawn.
        _equal_products(axis, score)


def _against_cost(
    figure: FigureBase, drawn: _Drawn, measured: Sequence[Measure], rows: int
) -> None:
    columns = min(len(measured), COST_COLUMNS)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, measure in zip(axes, measured, strict=False):
        _panel(axis, drawn, "nfe", measure.column)
        axis.set_xlabel("NFE for one image")
        literal(axis.set_ylabel(axis_title(measure)))
    for axis in axes[len(measured) :]:
        axis.set_axis_off()


def _panel(axis: Axes, drawn: _Drawn, x_column: str, y_column: str) -> None:
    places = list(drawn.places(drawn.table.to_dict("records"), x_column, y_column))
    size = {"markersize": 4.5} if drawn.is_sweep else {}  # there are many
    for x, y, row in places:
        mark = drawn.marks[row["model"], row["method"]]
        axis.errorbar(
            x,
            y,
            xerr=errors(row, x_column, x),
            yerr=errors(row, y_column, y),
            elinewidth=0.4 if drawn.is_sweep else 0.9,
            capsize=0,
            ecolor=mark.colour,
            zorder=3,
            **mark.style() | size,
        )
    _sweep(axis, drawn, x_column, y_column)
    axis.margins(0.12)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if not places:
        axis.text(
            0.5,
            0.5,
            "no cell with both diversity and score",
            ha="center",
            transform=axis.transAxes,
            color="#666666",
        )


def _sweep(axis: Axes, drawn: _Drawn, x_column: str, y_column: str) -> None:
    """Join the cells along a sweep, and write beside their marks where on it they are."""
    n_points = sum(bool(point) for point in drawn.points.values())
    labels: list[Label] = []
    for line in sweep_lines(drawn.table, drawn.points):
        places = list(drawn.places(line, x_column, y_column))
        colour = drawn.marks[line[0]["model"], line[0]["method"]].colour
        axis.plot([x for x, _, _ in places], [y for _, y, _ in places], color=colour, linewidth=0.7)
        labelled = places if n_points <= POINTS_LABELLED else places[:1] + places[1:][-1:]
        labels += [
            Label(x, y, colour, short(", ".join(drawn.points[row["cell"]].values())))
            for x, y, row in labelled
        ]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for label in stacked(labels, right - left, top - bottom):
        text = axis.annotate(
            label.text, (label.x, label.y), (4, 4), textcoords="offset points", fontsize=6
        )
        text.set_color(label.colour)
        literal(text)


def _equal_products(axis: Axes, score: Measure) -> None:
    """Draw faint curves of equal Diversity × score: a cell further out has the greater Div-X."""
    if not score.higher_is_better or not axis.has_data():
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    x, y = np.meshgrid(
        np.linspace(max(left, 0.0), right, 120), np.linspace(max(bottom, 0.0), top, 120)
    )
    levels = [
        v for v in MaxNLocator(6).tick_values(float((x * y).min()), float((x * y).max())) if v
    ]
    curves = axis.contour(x, y, x * y, levels=levels, colors="#c4c4c4", linewidths=0.6, zorder=1)
    axis.clabel(curves, fmt="%g", fontsize=6, colors="#8a8a8a")
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def _dot_plot(table: pd.DataFrame, points: Points) -> Figure:
    """Return diversity by cell with its interval, for a run without a judge."""
    rows = table.to_dict("records")
    figure = Figure(figsize=(6.4, 0.3 * len(rows) + 1.2), layout="constrained")
    axis, drawn = figure.subplots(), marks(table)
    for place, row in enumerate(rows):
        value = number(row.get(DIVERSITY.column))
        if value is not None:
            mark = drawn[row["model"], row["method"]]
            bars = errors(row, DIVERSITY.column, value)
            axis.errorbar(value, place, xerr=bars, elinewidth=0.9, **mark.style())
    several_models = table["model"].nunique() > 1
    names = [f"{r['model']} · {r['method']}" if several_models else r["method"] for r in rows]
    at = [", ".join(points.get(r["cell"], {}).values()) for r in rows]
    names = [f"{name} ({point})" if point else name for name, point in zip(names, at, strict=True)]
    axis.set_yticks(range(len(rows)), [short(name) for name in names])
    for label in axis.get_yticklabels():
        literal(label)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(axis_title(DIVERSITY))
    return figure


def _drawings(data: FigureData) -> Iterator[Drawing]:
    yield Drawing(
        name=FIGURE.name,
        title="Diversity and scores",
        caption=_caption(data),
        text=_text(data),
        draw=lambda: diversity_vs_scores(data.table, data.measured, data.points),
    )


def _caption(data: FigureData) -> str:
    bars = f"Bars: 95 % intervals.{_not_drawn(data)}"
    scores = [measure for measure in data.measured if measure.kind == "score"]
    swept = list(dict.fromkeys(name for point in data.points.values() for name in point))
    beside = f" Beside a mark: its {listed([in_words(name) for name in swept])}." if swept else ""
    if not scores:
        return f"Diversity of each cell. {bars}"
    curves = below = ""
    if cost_varies(data.table, data.points):
        below = " Below, diversity and each score against the denoiser passes for one image."
    if any(score.higher_is_better for score in scores):
        curves = " Grey curves join places of equal Diversity × score; up and right is better."
    return f"Diversity against each score, one mark a cell.{below}{beside}{curves} {bars}"


def _not_drawn(data: FigureData) -> str:
    """Name the cells that lack a mark somewhere: what is missing must not look like nothing."""
    drawn = [measure.column for measure in data.measured if measure.kind != "product"]
    lacking = [
        f"{row['model']} × {data.labels[row['cell']]}"
        for row in data.table.to_dict("records")
        if any(number(row.get(column)) is None for column in drawn)
    ]
    return f" Without a mark, for want of a value: {'; '.join(lacking)}." if lacking else ""


def _text(data: FigureData) -> str:
    cells = f"{len(data.table)} cell{'s' if len(data.table) != 1 else ''}"
    scores = [m.display_name for m in data.measured if m.kind == "score"]
    against = f" against {listed(scores)}" if scores else ""
    return f"Diversity of {cells}{against}; the numbers are in the result table."


FIGURE = FigureKind("diversity_vs_scores", place=10, drawings=_drawings)
