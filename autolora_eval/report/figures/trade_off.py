"""Diversity against every judged score, one mark a cell; without a judge, diversity by cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autolora_eval._sentences import Sentences
from autolora_eval._text import join_names
from autolora_eval.analysis.sentences import DIVERSITY, Metric
from autolora_eval.report.figures._base import (
    Drawing,
    Extreme,
    FigureData,
    FigureKind,
    cell_names,
    cells_not_drawn,
    swept_names,
)
from autolora_eval.report.figures._marks import (
    draw_cells,
    label_cells,
    mark_size,
    pareto_front,
    places,
)
from autolora_eval.report.figures._style import (
    DARK,
    GREY,
    LIGHT,
    SMALL,
    WIDTH,
    Floats,
    Indices,
    Legend,
    MarkerStyle,
    axis_title,
    bars,
    literal,
    literal_ticks,
    marker_styles,
    method_legend,
    settle,
    short,
    values,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Published values of more cells than these would hide ours: they stand in the sweep's figure.
PUBLISHED_DRAWN = 16
# More cells than these in one panel: a row of panels for each model.
CELLS_TOGETHER = 30
COLUMNS = 3
say = Sentences("captions")
PUBLISHED, FRONT = "published", "Pareto front"
_FRONT_STYLE: dict[str, Any] = {"color": DARK, "linewidth": 0.8, "linestyle": (0, (4, 2))}


@dataclass(frozen=True)
class _Panel:
    """One panel: some cells, by diversity and a score."""

    cells: pd.DataFrame
    score: Metric
    title: str

    @property
    def places(self) -> Floats:
        """Score and diversity of each cell, float64 [n, 2]."""
        return places(self.cells, self.score.column, DIVERSITY.column)

    @property
    def is_empty(self) -> bool:
        """Whether no cell has both."""
        return not np.isfinite(self.places).all(axis=1).any()

    @property
    def published(self) -> Floats:
        """Published score and diversity of each cell, float64 [n, 2]."""
        columns = (f"{self.score.column}_published", f"{DIVERSITY.column}_published")
        return places(self.cells, *columns)

    @property
    def fronts(self) -> list[Indices]:
        """Places of the cells that no other of their model dominates, best score last."""
        directions = (self.score.higher_is_better, DIVERSITY.higher_is_better)
        points = self.places
        found: list[Indices] = []
        for indices in self.cells.groupby("model", sort=False).indices.values():
            cells = np.asarray(indices, dtype=np.intp)
            front = cells[pareto_front(points[cells], directions)]
            order = np.lexsort((points[front, 1], points[front, 0]))
            found.append(front[order if self.score.higher_is_better else order[::-1]])
        return found

    @property
    def front_cells(self) -> list[str]:
        """The cells on the fronts."""
        return [str(self.cells["cell"].iloc[n]) for front in self.fronts for n in front]


def _drawings(data: FigureData) -> Iterator[Drawing]:
    judged = _scores(data)
    yield Drawing(
        name=FIGURE.name,
        title=f"Diversity against {join_names([m.label for m in judged])}"
        if judged
        else "Diversity",
        caption=_caption(data),
        text=_text(data),
        draw=lambda: _trade_off(data) if judged else _diversity_alone(data),
    )


def _scores(data: FigureData) -> list[Metric]:
    return [metric for metric in data.metrics if metric.kind == "score"]


def _panels(data: FigureData) -> list[list[_Panel]]:
    """Return the panels row by row: a row for all, or for each model where there are many cells."""
    table, scores = data.table, _scores(data)
    if len(table) > CELLS_TOGETHER and table["model"].nunique() > 1:
        groups = [(str(model), rows) for model, rows in table.groupby("model", sort=False)]
        return [[_Panel(rows, score, model) for score in scores] for model, rows in groups]
    panels = [_Panel(table, score, "") for score in scores]
    return [panels[n : n + COLUMNS] for n in range(0, len(panels), COLUMNS)]


def _trade_off(data: FigureData) -> Figure:
    rows = _panels(data)
    n_columns = max(map(len, rows))
    key = _key(data, rows)
    height = (3.3 if n_columns == 1 else 2.6) * len(rows) + key.height
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(rows), n_columns, squeeze=False, sharey=True)
    for axes, panels in zip(grid, rows, strict=True):
        axes[0].set_ylabel(axis_title(DIVERSITY))
        for axis, panel in zip(axes, panels, strict=False):
            _draw_panel(axis, data, panel)
            literal(axis.set_xlabel(axis_title(panel.score)))
            literal(axis.set_title(short(panel.title, 60), fontsize=SMALL + 0.5))
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    key.put(figure)
    panels_of = [
        (axis, panel)
        for axes, panels in zip(grid, rows, strict=True)
        for axis, panel in zip(axes, panels, strict=False)
    ]
    for axis, panel in panels_of:
        # The axis of diversity is shared: its limits are known now, and are to stay.
        axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
        _draw_fronts(axis, panel)
    settle(figure)
    for axis, panel in panels_of:
        if not panel.is_empty:
            _equal_products(axis, panel.score)
        columns = (panel.score.column, DIVERSITY.column)
        label_cells(axis, data, panel.cells, *columns, important=panel.front_cells)
    return figure


def _key(data: FigureData, rows: Sequence[Sequence[_Panel]]) -> Legend:
    more: dict[str, Any] = {}
    if any(len(front) > 1 for panels in rows for panel in panels for front in panel.fronts):
        more[FRONT] = Line2D([], [], **_FRONT_STYLE)
    if _published_is_drawn(data):
        more[PUBLISHED] = Line2D(
            [], [], linestyle="none", **MarkerStyle(GREY, "o", "none").hollow()
        )
    return method_legend(data.table, more)


def _published_is_drawn(data: FigureData) -> bool:
    have = [np.isfinite(panel.published).all(axis=1).sum() for r in _panels(data) for panel in r]
    return 0 < max(have, default=0) <= PUBLISHED_DRAWN


def _draw_panel(axis: Axes, data: FigureData, panel: _Panel) -> None:
    drawn = draw_cells(axis, data, panel.cells, panel.score.column, DIVERSITY.column)
    if _published_is_drawn(data):
        _draw_published(axis, panel, drawn)
    axis.margins(0.13)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if panel.is_empty:
        text = "no cell with both diversity and score"
        axis.text(0.5, 0.5, text, ha="center", transform=axis.transAxes, color=GREY)


def _draw_published(axis: Axes, panel: _Panel, drawn: dict[tuple[str, str], MarkerStyle]) -> None:
    """Draw published values hollow, each tied to ours."""
    size = mark_size(panel.cells)
    rows = panel.cells[["model", "method"]].itertuples(index=False)
    for (model, method), ours, theirs in zip(rows, panel.places, panel.published, strict=True):
        if np.isfinite(theirs).all():
            mark = drawn[model, method]
            axis.plot(*theirs, linestyle="none", label=PUBLISHED, zorder=3, **mark.hollow(size))
            if np.isfinite(ours).all():
                pair = np.stack([ours, theirs], axis=1)
                axis.plot(*pair, color=mark.colour, linewidth=0.5, linestyle=":", zorder=2)


def _draw_fronts(axis: Axes, panel: _Panel) -> None:
    """Draw each model's front as steps: what lies inside them is dominated."""
    for front in panel.fronts:
        if len(front) > 1:
            x, y = panel.places[front].T
            # From the worst score to the best: down first, then across to the better score.
            axis.plot(x, y, drawstyle="steps-pre", label=FRONT, zorder=2.5, **_FRONT_STYLE)


def _equal_products(axis: Axes, score: Metric) -> None:
    """Draw faint curves of equal Diversity × score: a cell further out has the greater Div-X."""
    if not score.higher_is_better or not axis.has_data():
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    left, bottom = max(left, right * 1e-3, 0.0), max(bottom, top * 1e-3, 0.0)
    if right <= left or top <= bottom:
        return
    levels = MaxNLocator(6).tick_values(left * bottom, right * top)
    for level in (v for v in levels if left * bottom < v < right * top):
        x = np.linspace(max(left, level / top), min(right, level / bottom), 40)
        axis.plot(x, level / x, color=LIGHT, linewidth=0.6, zorder=1)
        _label_curve(axis, level, right, top)


def _label_curve(axis: Axes, level: float, right: float, top: float) -> None:
    """Write a curve's value just inside the axes, where it leaves them."""
    through_top = level / top > axis.get_xlim()[0]
    axis.annotate(
        f"{level:g}",
        (level / top, top) if through_top else (right, level / right),
        (2, -1) if through_top else (-1, 1.5),
        textcoords="offset points",
        ha="left" if through_top else "right",
        va="top" if through_top else "bottom",
        fontsize=6,
        color="#8a8a8a",
    )


def _diversity_alone(data: FigureData) -> Figure:
    """Return diversity by cell with its interval, for a run without a judge."""
    table = data.table
    figure = Figure(figsize=(WIDTH, min(0.22 * len(table) + 0.8, 8.8)), layout="constrained")
    axis, drawn = figure.subplots(), marker_styles(table)
    for (model, method), cells in table.groupby(["model", "method"], sort=False):
        mark = drawn[str(model), str(method)]
        axis.errorbar(
            values(cells, DIVERSITY.column),
            np.flatnonzero(table["cell"].isin(cells["cell"])),
            xerr=bars(cells, DIVERSITY.column),
            linestyle="none",
            elinewidth=0.9,
            label=str(method),
            **mark.style(),
        )
    several = table["model"].nunique() > 1
    pairs = zip(table["cell"], table["model"], strict=True)
    names = [
        f"{model} · {data.labels[cell]}" if several else data.labels[cell] for cell, model in pairs
    ]
    axis.set_yticks(range(len(table)), [short(name, 48) for name in names])
    literal_ticks(axis)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(axis_title(DIVERSITY))
    return figure


def _fronts(data: FigureData) -> list[tuple[str, str]]:
    """Return for each score the names of the cells on the Pareto fronts."""
    panels = [panel for row in _panels(data) for panel in row]
    found = []
    for score in _scores(data):
        cells = [cell for panel in panels if panel.score == score for cell in panel.front_cells]
        found += [(score.label, cell_names(data, cells))] if cells else []
    return found


def _caption(data: FigureData) -> str:
    scores = _scores(data)
    missing = cells_not_drawn(data, [DIVERSITY.column, *(score.column for score in scores)])
    if not scores:
        return say.diversity_alone(missing)
    has_curves = any(score.higher_is_better for score in scores)
    published = _published_is_drawn(data)
    return say.trade_off(swept_names(data), has_curves, published, _fronts(data), missing)


def _text(data: FigureData) -> str:
    found = values(data.table, DIVERSITY.column)
    ends = []
    if np.isfinite(found).any():
        for n in (int(np.nanargmin(found)), int(np.nanargmax(found))):
            ends.append(Extreme(found[n], cell_names(data, [data.table["cell"].iloc[n]])))
    names = [score.display_name for score in _scores(data)]
    return say.trade_off_text(len(data.table), names, ends, _fronts(data))


FIGURE = FigureKind("diversity_vs_scores", place=10, drawings=_drawings)
