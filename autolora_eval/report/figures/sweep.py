"""Every metric against every swept parameter: one line per method, with its 95% band."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autolora_eval._files import slug
from autolora_eval._text import Sentences, format_fixed, join_names, parameter_label, point_label
from autolora_eval.analysis.metrics import Metric
from autolora_eval.report.figures import _base, _style
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
from autolora_eval.report.figures._style import WIDTH, Floats, MarkerStyle, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACETS = 4  # panels beside each other
MARK = 4.0
PUBLISHED = "published"
say = Sentences("captions")


# ---- Layout


@dataclass(frozen=True)
class Sweep:
    """A swept parameter as an axis.

    Values that are not numbers, such as intervals, are drawn at 0, 1, ….
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
    """Rows of the result table that differ only in one swept parameter and in the method."""

    title: str
    cells: pd.DataFrame


@dataclass(frozen=True)
class _Sheet:
    """One figure: panels of some metrics and facets."""

    name: str
    sweep: Sweep
    facets: Sequence[Facet]
    n_left_out: int
    metrics: Sequence[Metric]

    @property
    def cells(self) -> pd.DataFrame:
        """The cells of all its facets."""
        return pd.concat([facet.cells for facet in self.facets])

    @property
    def has_published(self) -> bool:
        """Whether a value of it was published."""
        cells = self.cells
        found = [values(cells, f"{metric.column}_published") for metric in self.metrics]
        return bool(np.isfinite(found).any())


def sweeps(data: FigureData) -> list[Sweep]:
    """Return the swept parameters that have several values."""
    found: dict[str, dict[str, None]] = {}
    for cell in data.table["cell"]:
        for name, value in data.points.get(cell, {}).items():
            found.setdefault(name, {})[value] = None
    return [Sweep.of(name, list(texts)) for name, texts in found.items() if len(texts) > 1]


def _facets(data: FigureData, model: str, sweep: Sweep, others: Sequence[Sweep]) -> list[Facet]:
    """Return a model's cells, grouped by the values of the other swept parameters.

    A method that does not take one of those stands beside each of its values.
    """
    rows = data.table[data.table["model"] == model]
    found = []
    for texts in itertools.product(*(other.texts for other in others)):
        point = {other.parameter: text for other, text in zip(others, texts, strict=True)}
        own = [data.points.get(cell, {}) for cell in rows["cell"]]
        fits = [all(p.get(name, text) == text for name, text in point.items()) for p in own]
        if any(sweep.parameter in p for p, fit in zip(own, fits, strict=True) if fit):
            found.append(Facet(point_label(point), rows[fits]))
    return found


def _sheets(data: FigureData) -> Iterator[_Sheet]:
    found = sweeps(data)
    models = [str(model) for model in data.table["model"].unique()]
    for sweep in found:
        others = [other for other in found if other is not sweep]
        by_model = {model: _facets(data, model, sweep, others) for model in models}
        by_model = {model: own for model, own in by_model.items() if own}
        name = f"{FIGURE.name}_{slug(sweep.parameter)[:60]}"
        groups: list[tuple[str, Sequence[Facet], int]] = []
        if all(len(own) == 1 for own in by_model.values()):
            shown = [
                Facet(model if len(models) > 1 else "", own[0].cells)
                for model, own in by_model.items()
            ]
            groups = [(name, part, 0) for part in _style.in_parts(shown, FACETS)]
        else:
            for model, own in by_model.items():
                of_model = f"_{slug(model)[:60]}" if len(models) > 1 else ""
                spread = np.linspace(0, len(own) - 1, min(len(own), FACETS)).round()
                kept = [own[int(n)] for n in spread]
                groups.append((name + of_model, kept, len(own) - len(kept)))
        for title, facets, n_left_out in groups:
            for metrics in _style.metrics_of_a_figure(data.metrics, len(facets)):
                yield _Sheet(title, sweep, facets, n_left_out, metrics)


def _drawings(data: FigureData) -> Iterator[Drawing]:
    for sheet in _sheets(data):
        yield Drawing(
            name=sheet.name,
            title=f"{join_names([m.label for m in sheet.metrics])} against "
            f"{parameter_label(sheet.sweep.parameter)}",
            caption=_caption(data, sheet),
            text=_text(data, sheet),
            draw=partial(_draw, data, sheet),
        )


# ---- Drawing


def _draw(data: FigureData, sheet: _Sheet) -> Figure:
    n_across, sweep = len(sheet.facets), sheet.sweep
    shape = n_rows, n_columns = _style.metric_shape(len(sheet.metrics), n_across)
    each = 1.35 if n_rows > 1 else 2.0
    if n_across == 1 and not sweep.is_number:
        each += 0.4  # its values are slanted, and also stand below the first row
    panels = list(itertools.product(sheet.metrics, sheet.facets))
    share_y = "row" if n_across > 1 else "none"
    figure, axes = _style.panel_grid(
        shape, len(panels), each * n_rows + 0.35, _key(data, sheet), sharex=True, sharey=share_y
    )
    for axis, (metric, facet) in zip(axes, panels, strict=True):
        _panel(axis, data, sweep, facet, metric)
        _style.clip_axis(axis, sheet.cells, metric.column)
    if n_across > 1:
        room = 72 * (WIDTH / n_columns - 0.2)
        for axis, facet in zip(axes, sheet.facets, strict=False):
            axis.set_title(_style.truncate_to_width(facet.title, room, 7.5), fontsize=7.5)
    x_name = _style.short(parameter_label(sweep.parameter))
    _style.name_panels(axes, sheet.metrics, n_columns, [x_name] * n_across)
    for axis in axes:
        _tick(axis, sweep, WIDTH / n_columns - 0.55)
    return figure


def _tick(axis: Axes, sweep: Sweep, width: float) -> None:
    """Write the swept values below an axis: as many numbers as fit, all other values."""
    sizes = [_style.text_size(text, 7.0)[0] + 5 for text in sweep.texts]
    fits = max(2, int(width * 72 // max(sizes)))
    if sweep.is_number:
        step = -(-len(sweep.texts) // fits)
        axis.set_xticks(sweep.places[::step], sweep.texts[::step])
        return
    axis.set_xticks(sweep.places, [_style.short(text, 24) for text in sweep.texts])
    if fits < len(sweep.texts):
        for label in axis.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.5, len(sweep.texts) - 0.5)


def _panel(axis: Axes, data: FigureData, sweep: Sweep, facet: Facet, metric: Metric) -> None:
    taking, drawn = _taking(data, sweep, [facet]), _style.method_styles(data.table)
    for method, cells in facet.cells.groupby("method", sort=False):
        mark = drawn[str(method)]
        if method not in taking:
            _constant(axis, sweep, cells, metric, mark)
            continue
        own = [data.points[cell][sweep.parameter] for cell in cells["cell"]]
        x = np.asarray([sweep.places[sweep.texts.index(text)] for text in own])
        order = np.argsort(x, kind="stable")
        x, cells = x[order], cells.iloc[order]
        if sweep.is_number:
            _line(axis, x, cells, metric, mark)
        else:
            # Side by side, because marks at the same value would overlap.
            place = taking.index(str(method)) - (len(taking) - 1) / 2
            _points(axis, x + place * min(0.16, 0.6 / len(taking)), cells, metric, mark)
        theirs = values(cells, f"{metric.column}_published")
        if np.isfinite(theirs).any():
            style = mark.hollow(MARK) | {"linestyle": ":", "linewidth": 0.6}
            axis.plot(x, theirs, label=PUBLISHED, zorder=4, **style)
    axis.grid(axis="y", color="#ececec", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.yaxis.set_major_locator(_style.few_ticks())
    axis.margins(x=0.05, y=0.08)


def _line(axis: Axes, x: Floats, cells: pd.DataFrame, metric: Metric, mark: MarkerStyle) -> None:
    low, high = _style.interval_ends(cells, metric.column)
    style = mark.style(MARK) | {"linestyle": mark.dash, "linewidth": 1.0}
    name = cells["method"].iloc[0]
    axis.plot(x, values(cells, metric.column), label=name, zorder=3, **style)
    axis.fill_between(x, low, high, color=mark.colour, alpha=0.16, linewidth=0, zorder=2)
    known = np.isfinite(low) & np.isfinite(high)
    beside = np.concatenate([[False], known, [False]])
    alone = known & ~beside[:-2] & ~beside[2:]  # there, a band would have no width
    axis.vlines(x[alone], low[alone], high[alone], color=mark.colour, linewidth=0.8)


def _points(axis: Axes, x: Floats, cells: pd.DataFrame, metric: Metric, mark: MarkerStyle) -> None:
    style = mark.style(MARK + 1) | {"linestyle": "none"}
    axis.plot(x, values(cells, metric.column), label=cells["method"].iloc[0], zorder=3, **style)
    ends = _style.interval_ends(cells, metric.column)
    axis.vlines(x, *ends, color=mark.colour, linewidth=0.9, zorder=2)


def _constant(
    axis: Axes, sweep: Sweep, cells: pd.DataFrame, metric: Metric, mark: MarkerStyle
) -> None:
    """Draw a method that does not take the parameter: a level through all its values."""
    aside = 0.0 if sweep.is_number else 0.5
    ends = [sweep.places[0] - aside, sweep.places[-1] + aside]
    y, (low, high) = values(cells, metric.column)[0], _style.interval_ends(cells, metric.column)
    name = cells["method"].iloc[0]
    axis.plot(ends, [y, y], color=mark.colour, linestyle=mark.dash, linewidth=1.0, label=name)
    axis.fill_between(ends, low[0], high[0], color=mark.colour, alpha=0.1, linewidth=0, zorder=1)


def _key(data: FigureData, sheet: _Sheet) -> _style.Legend:
    drawn, shown = _style.method_styles(data.table), set(sheet.cells["method"])
    methods = [method for method in drawn if method in shown]
    taking = set(_taking(data, sheet.sweep, sheet.facets))
    handles = []
    for method in methods:
        mark = drawn[method]
        style = mark.style(5) if method in taking else {"color": mark.colour}
        joined = sheet.sweep.is_number or method not in taking
        dash = mark.dash if joined else "none"
        handles.append(Line2D([], [], **style | {"linestyle": dash, "linewidth": 1.0}))
    if sheet.has_published:
        hollow = MarkerStyle(_style.GREY, "o", "none").hollow(5)
        handles.append(Line2D([], [], **hollow | {"linestyle": ":"}))
        methods.append(PUBLISHED)
    return _style.Legend(handles, methods)


def _taking(data: FigureData, sweep: Sweep, facets: Sequence[Facet]) -> list[str]:
    pairs = [pair for f in facets for pair in f.cells[["cell", "method"]].to_numpy().tolist()]
    found = (method for cell, method in pairs if sweep.parameter in data.points.get(cell, {}))
    return list(dict.fromkeys(found))


# ---- Words


def _caption(data: FigureData, sheet: _Sheet) -> str:
    cells, columns = sheet.cells, [metric.column for metric in sheet.metrics]
    return say.sweep(
        parameter=parameter_label(sheet.sweep.parameter),
        is_number=sheet.sweep.is_number,
        has_constant=bool(set(cells["method"]) - set(_taking(data, sheet.sweep, sheet.facets))),
        has_published=sheet.has_published,
        clipped_metrics=_style.clipped_labels(cells, sheet.metrics),
        n_shown=len(sheet.facets),
        n_total=len(sheet.facets) + sheet.n_left_out,
        missing=_base.cells_not_drawn(data, columns, cells["cell"].unique().tolist()),
    )


def _text(data: FigureData, sheet: _Sheet) -> str:
    """Return where each method's first metric begins and ends in the first panel."""
    facet, sweep, first = sheet.facets[0], sheet.sweep, sheet.metrics[0]
    methods = []
    for method, cells in facet.cells.groupby("method", sort=False):
        own = {data.points.get(c, {}).get(sweep.parameter): c for c in cells["cell"]}
        value = dict(zip(cells["cell"], values(cells, first.column), strict=True))
        ends = [text for text in (sweep.texts[0], sweep.texts[-1]) if text in own]
        at = [say.at(value[own[text]], text) for text in ends]
        constant = format_fixed(value[own.get(None, cells["cell"].iloc[0])])
        methods.append((method, at or [constant]))
    names = [metric.display_name for metric in sheet.metrics]
    parameter = parameter_label(sweep.parameter)
    return say.sweep_text(names, parameter, first.display_name, facet.title, methods)


FIGURE = FigureKind("sweep", place=20, drawings=_drawings)
