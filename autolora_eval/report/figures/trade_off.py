"""Diversity against every judged score, one mark per cell; without a judge, diversity by cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autolora_eval._text import Sentences, join_names
from autolora_eval.analysis.metrics import DIVERSITY, Metric
from autolora_eval.report.figures import _base, _marks, _style
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
from autolora_eval.report.figures._style import (
    MAX_HEIGHT,
    WIDTH,
    Floats,
    Indices,
    MarkerStyle,
    values,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# With more cells than this, published values would hide ours. The sweep figure shows them.
PUBLISHED_DRAWN = 16
# More cells than these in one panel: a row of panels for each model.
CELLS_TOGETHER = 30
COLUMNS = 3
say = Sentences("captions")
PUBLISHED, FRONT = "published", "Pareto front"
_FRONT_STYLE: dict[str, Any] = {"color": _style.DARK, "linewidth": 0.8, "linestyle": (0, (4, 2))}


@dataclass(frozen=True)
class _Panel:
    """One panel: some cells, by diversity and a score."""

    cells: pd.DataFrame
    score: Metric
    title: str = ""

    @cached_property
    def places(self) -> Floats:
        """Score and diversity of each cell, float64 [n, 2]."""
        return _marks.places(self.cells, self.score.column, DIVERSITY.column)

    @cached_property
    def published(self) -> Floats:
        """Published score and diversity of each cell, float64 [n, 2]."""
        columns = (f"{self.score.column}_published", f"{DIVERSITY.column}_published")
        return _marks.places(self.cells, *columns)

    @property
    def is_empty(self) -> bool:
        """Whether no cell has both."""
        return not np.isfinite(self.places).all(axis=1).any()

    @cached_property
    def fronts(self) -> list[Indices]:
        """Indices of the cells that no other cell of their model dominates, best score last."""
        directions = (self.score.higher_is_better, DIVERSITY.higher_is_better)
        points = self.places
        found: list[Indices] = []
        for indices in self.cells.groupby("model", sort=False).indices.values():
            cells = np.asarray(indices, dtype=np.intp)
            front = cells[_marks.pareto_front(points[cells], directions)]
            order = np.lexsort((points[front, 1], points[front, 0]))
            found.append(front[order if self.score.higher_is_better else order[::-1]])
        return found

    @property
    def front_cells(self) -> list[str]:
        """The cells on the fronts."""
        return [str(self.cells["cell"].iloc[n]) for front in self.fronts for n in front]


def _drawings(data: FigureData) -> Iterator[Drawing]:
    scores = _base.scores_of(data)
    if not data.metrics or (scores and all(panel.is_empty for panel in _panels(data)[0])):
        return
    title = f"Diversity against {join_names([m.label for m in scores])}" if scores else "Diversity"
    draw = partial(_trade_off if scores else _diversity_alone, data)
    yield Drawing(FIGURE.name, title, _caption(data), _text(data), draw)


def _panels(data: FigureData) -> tuple[list[_Panel], int]:
    """Return the panels and the number of columns; with many cells, one row per model."""
    table, scores = data.table, _base.scores_of(data)
    if len(table) > CELLS_TOGETHER and table["model"].nunique() > 1:
        models = table.groupby("model", sort=False)
        panels = [_Panel(rows, score, str(model)) for model, rows in models for score in scores]
        return panels, len(scores)
    return [_Panel(table, score) for score in scores], min(len(scores), COLUMNS)


def _trade_off(data: FigureData) -> Figure:
    panels, n_columns = _panels(data)
    n_rows = -(-len(panels) // n_columns)
    height = (3.3 if n_columns == 1 else 2.6) * n_rows
    key = _key(data, panels)
    figure, axes = _style.panel_grid((n_rows, n_columns), len(panels), height, key, sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, data, panel, _published_is_drawn(panels))
        axis.set_xlabel(_style.axis_title(panel.score))
        axis.set_title(_style.short(panel.title, 60), fontsize=_style.SMALL + 0.5)
    for axis in axes[::n_columns]:
        axis.set_ylabel(_style.axis_title(DIVERSITY))
    for axis, panel in zip(axes, panels, strict=True):
        # The shared axis of diversity has its final limits now. Fix them.
        axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
        for front in panel.fronts:
            if len(front) > 1:
                # From the worst score to the best: down first, then across to the better score.
                x, y = panel.places[front].T
                axis.plot(x, y, drawstyle="steps-pre", label=FRONT, zorder=2.5, **_FRONT_STYLE)
    _style.settle(figure)
    for axis, panel in zip(axes, panels, strict=True):
        if not panel.is_empty:
            _equal_products(axis, panel.score)
        columns = (panel.score.column, DIVERSITY.column)
        _marks.label_cells(axis, data, panel.cells, *columns, important=panel.front_cells)
    return figure


def _key(data: FigureData, panels: Sequence[_Panel]) -> _style.Legend:
    more: dict[str, Any] = {}
    if any(len(front) > 1 for panel in panels for front in panel.fronts):
        more[FRONT] = Line2D([], [], **_FRONT_STYLE)
    if _published_is_drawn(panels):
        hollow = MarkerStyle(_style.GREY, "o", "none").hollow()
        more[PUBLISHED] = Line2D([], [], linestyle="none", **hollow)
    scores = [score.column for score in _base.scores_of(data)]
    return _style.method_legend(data.table, scores, [DIVERSITY.column], more)


def _published_is_drawn(panels: Sequence[_Panel]) -> bool:
    have = [np.isfinite(panel.published).all(axis=1).sum() for panel in panels]
    return 0 < max(have, default=0) <= PUBLISHED_DRAWN


def _draw_panel(axis: Axes, data: FigureData, panel: _Panel, has_published: bool) -> None:
    drawn = _marks.draw_cells(axis, data, panel.cells, panel.score.column, DIVERSITY.column)
    if has_published:
        _draw_published(axis, panel, drawn)
    axis.margins(0.13)
    axis.xaxis.set_major_locator(_style.few_ticks())
    if panel.is_empty:
        text = "no cell with both diversity and score"
        axis.text(0.5, 0.5, text, ha="center", transform=axis.transAxes, color=_style.GREY)


def _draw_published(axis: Axes, panel: _Panel, drawn: dict[tuple[str, str], MarkerStyle]) -> None:
    size = _marks.mark_size(panel.cells)
    rows = panel.cells[["model", "method"]].itertuples(index=False)
    for (model, method), ours, theirs in zip(rows, panel.places, panel.published, strict=True):
        if np.isfinite(theirs).all():
            mark = drawn[model, method]
            axis.plot(*theirs, linestyle="none", label=PUBLISHED, zorder=3, **mark.hollow(size))
            if np.isfinite(ours).all():
                pair = np.stack([ours, theirs], axis=1)
                axis.plot(*pair, color=mark.colour, linewidth=0.5, linestyle=":", zorder=2)


def _equal_products(axis: Axes, score: Metric) -> None:
    """Draw faint curves of equal Diversity × score: a cell further out has the greater Div-X."""
    if not score.has_product or not axis.has_data():
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    left, bottom = max(left, right * 1e-3, 0.0), max(bottom, top * 1e-3, 0.0)
    if right <= left or top <= bottom:
        return
    levels = MaxNLocator(6).tick_values(left * bottom, right * top)
    for level in (v for v in levels if left * bottom < v < right * top):
        x = np.linspace(max(left, level / top), min(right, level / bottom), 40)
        axis.plot(x, level / x, color=_style.LIGHT, linewidth=0.6, zorder=1)
        _label_curve(axis, level, right, top)


def _label_curve(axis: Axes, level: float, right: float, top: float) -> None:
    """Write a curve's value just inside the axes, where it leaves them."""
    left = axis.get_xlim()[0]
    through_top = level / top > left
    # On the right half, a label right of the curve could be cut off at the edge.
    on_the_right = not through_top or level / top > (left + right) / 2
    axis.annotate(
        f"{level:g}",
        (level / top, top) if through_top else (right, level / right),
        (-1 if on_the_right else 2, -1 if through_top else 1.5),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        va="top" if through_top else "bottom",
        fontsize=6,
        color="#8a8a8a",
    )


def _diversity_alone(data: FigureData) -> Figure:
    table = data.table
    figure = Figure(figsize=(WIDTH, min(0.22 * len(table) + 0.8, MAX_HEIGHT)), layout="constrained")
    axis, drawn = figure.subplots(), _style.marker_styles(table)
    for (model, method), cells in table.groupby(["model", "method"], sort=False):
        axis.errorbar(
            values(cells, DIVERSITY.column),
            np.flatnonzero(table["cell"].isin(cells["cell"])),
            xerr=_style.bars(cells, DIVERSITY.column),
            linestyle="none",
            elinewidth=0.9,
            label=str(method),
            **drawn[str(model), str(method)].style(),
        )
    names = table["cell"].map(data.labels)
    if table["model"].nunique() > 1:
        names = table["model"] + " · " + names
    axis.set_yticks(range(len(table)), [_style.short(name, 48) for name in names])
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(_style.axis_title(DIVERSITY))
    return figure


def _fronts(data: FigureData) -> list[tuple[str, str]]:
    panels, _ = _panels(data) if len(data.table) > 1 else ([], 0)
    found = []
    for score in _base.scores_of(data):
        cells = [cell for panel in panels if panel.score == score for cell in panel.front_cells]
        found += [(score.label, _base.cell_names(data, cells))] if cells else []
    return found


def _caption(data: FigureData) -> str:
    scores = _base.scores_of(data)
    columns = [DIVERSITY.column, *(score.column for score in scores)]
    missing = _base.cells_not_drawn(data, columns)
    if not scores:
        return say.diversity_alone(missing)
    has_curves = any(score.has_product for score in scores)
    higher = all(score.higher_is_better for score in scores)
    published, swept = _published_is_drawn(_panels(data)[0]), _base.swept_names(data)
    return say.trade_off(swept, has_curves, higher, published, _fronts(data), missing)


def _text(data: FigureData) -> str:
    names = [score.display_name for score in _base.scores_of(data)]
    ends = _base.extremes(data, DIVERSITY.column)
    return say.trade_off_text(len(data.table), names, ends, _fronts(data))


FIGURE = FigureKind("diversity_vs_scores", place=10, drawings=_drawings)
