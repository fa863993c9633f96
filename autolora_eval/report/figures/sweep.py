"""Every metric against every swept parameter: one line a method, with its 95% band."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autolora_eval._files import slug
from autolora_eval._sentences import Sentences
from autolora_eval._text import format_fixed, join_names, parameter_label
from autolora_eval.analysis.sentences import Metric
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind, cells_not_drawn
from autolora_eval.report.figures._style import (
    GREY,
    WIDTH,
    Floats,
    Legend,
    MarkerStyle,
    clip_axis,
    clipped_labels,
    label_title,
    literal,
    literal_ticks,
    marker_styles,
    panel_titles,
    short,
    text_size,
    truncate_to_width,
    values,
)
from autolora_eval.report.figures._sweeps import Facet, Sweep, facets, spread_out, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACETS = 4  # panels beside each other
COLUMNS = 3  # panels beside each other where they are of different metrics
ROWS = 6
MARK = 4.0
PUBLISHED = "published"
say = Sentences("captions")


@dataclass(frozen=True)
class _Sheet:
    """One figure: panels of some metrics and facets."""

    name: str
    sweep: Sweep
    facets: Sequence[Facet]
    left_out: int
    metrics: Sequence[Metric]


def _sheets(data: FigureData) -> Iterator[_Sheet]:
    found = sweeps(data)
    models = [str(model) for model in data.table["model"].unique()]
    for sweep in found:
        others = [other for other in found if other is not sweep]
        by_model = {model: facets(data, model, sweep, others) for model in models}
        by_model = {model: own for model, own in by_model.items() if own}
        name = f"{FIGURE.name}_{slug(sweep.parameter)[:60]}"
        if all(len(own) == 1 for own in by_model.values()):
            shown = [
                Facet(model if len(models) > 1 else "", own[0].cells)
                for model, own in by_model.items()
            ]
            for start in range(0, len(shown), FACETS):
                yield from _in_parts(data, name, sweep, shown[start : start + FACETS], 0)
        else:
            for model, own in by_model.items():
                of_model = f"_{slug(model)[:60]}" if len(models) > 1 else ""
                kept = [own[n] for n in spread_out(len(own), FACETS)]
                yield from _in_parts(data, name + of_model, sweep, kept, len(own) - len(kept))


def _in_parts(
    data: FigureData, name: str, sweep: Sweep, shown: Sequence[Facet], left_out: int
) -> Iterator[_Sheet]:
    room = ROWS if len(shown) > 1 else ROWS * COLUMNS
    for start in range(0, len(data.metrics), room):
        yield _Sheet(name, sweep, shown, left_out, data.metrics[start : start + room])


def _drawings(data: FigureData) -> Iterator[Drawing]:
    for sheet in _sheets(data):
        yield Drawing(
            name=sheet.name,
            title=f"{join_names([m.label for m in sheet.metrics])} against "
            f"{parameter_label(sheet.sweep.parameter)}",
            caption=_caption(data, sheet),
            text=_text(data, sheet),
            draw=lambda sheet=sheet: _draw(data, sheet),  # type: ignore[misc]
        )


def _draw(data: FigureData, sheet: _Sheet) -> Figure:
    key = _key(data, sheet)
    side_by_side = len(sheet.facets) > 1
    n_columns = len(sheet.facets) if side_by_side else min(len(sheet.metrics), COLUMNS)
    n_rows = len(sheet.metrics) if side_by_side else -(-len(sheet.metrics) // n_columns)
    each = 1.35 if n_rows > 1 else 2.0
    if not (side_by_side or sheet.sweep.is_number):
        each += 0.4  # its values are written slanted, and below the first row too
    height = each * n_rows + 0.35 + key.height
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    share: Literal["row", "none"] = "row" if side_by_side else "none"
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=share)
    panels = (
        list(itertools.product(sheet.metrics, sheet.facets))
        if side_by_side
        else [(metric, sheet.facets[0]) for metric in sheet.metrics]
    )
    drawn = {method: mark for (_, method), mark in reversed(marker_styles(data.table).items())}
    for axis, (metric, facet) in zip(grid.flat, panels, strict=False):
        _panel(axis, data, sheet.sweep, facet, metric, drawn)
        clip_axis(axis, _shown(sheet), metric.column)
    for axis in list(grid.flat)[len(panels) :]:
        axis.set_axis_off()
    _name_axes(grid, sheet, panels)
    key.put(figure)
    return figure


def _name_axes(grid: Any, sheet: _Sheet, panels: Sequence[tuple[Metric, Facet]]) -> None:  # noqa: ANN401
    n_columns = grid.shape[1]
    side_by_side = len(sheet.facets) > 1
    titles = panel_titles(sheet.metrics, n_columns)
    room = 72 * (WIDTH / n_columns - 0.2)
    for place, (metric, facet) in enumerate(panels):
        axis = grid.flat[place]
        if not side_by_side:
            literal(axis.set_title(titles[place], fontsize=7.5))
        elif place < n_columns:
            literal(axis.set_title(truncate_to_width(facet.title, room, 7.5), fontsize=7.5))
        if side_by_side and place % n_columns == 0:
            literal(axis.set_ylabel(label_title(metric)))
        if place + n_columns >= len(panels):  # nothing stands below
            literal(axis.set_xlabel(short(parameter_label(sheet.sweep.parameter))))
            axis.xaxis.set_tick_params(labelbottom=True)
        _tick(axis, sheet.sweep, WIDTH / n_columns - 0.55)


def _tick(axis: Axes, sweep: Sweep, width: float) -> None:
    """Write the swept values below an axis: as many numbers as fit, all other values."""
    sizes = [text_size(text, 7.0)[0] + 5 for text in sweep.texts]
    fits = max(2, int(width * 72 // max(sizes)))
    if sweep.is_number:
        step = -(-len(sweep.texts) // fits)
        axis.set_xticks(sweep.places[::step], sweep.texts[::step])
    else:
        axis.set_xticks(sweep.places, [short(text, 24) for text in sweep.texts])
        if fits < len(sweep.texts):
            for label in axis.get_xticklabels():
                label.set(rotation=30, ha="right", rotation_mode="anchor")
        axis.set_xlim(-0.5, len(sweep.texts) - 0.5)
    literal_ticks(axis)


def _panel(
    axis: Axes,
    data: FigureData,
    sweep: Sweep,
    facet: Facet,
    metric: Metric,
    drawn: Mapping[str, MarkerStyle],
) -> None:
    taking = _taking(data, sweep, [facet])
    for method in facet.cells["method"].unique():
        cells = facet.cells[facet.cells["method"] == method]
        own = [data.points.get(cell, {}).get(sweep.parameter) for cell in cells["cell"]]
        if method not in taking:
            _constant(axis, sweep, cells, metric, drawn[method])
            continue
        x = np.asarray([sweep.places[sweep.texts.index(str(text))] for text in own])
        order = np.argsort(x, kind="stable")
        x, cells = x[order], cells.iloc[order]
        if sweep.is_number:
            _line(axis, x, cells, metric, drawn[method])
        else:
            # Beside each other: the marks of one value would cover each other.
            place = taking.index(method) - (len(taking) - 1) / 2
            aside = place * min(0.16, 0.6 / len(taking))
            _points(axis, x + aside, cells, metric, drawn[method])
        theirs = values(cells, f"{metric.column}_published")
        if np.isfinite(theirs).any():
            style = drawn[method].hollow(MARK) | {"linestyle": ":", "linewidth": 0.6}
            axis.plot(x, theirs, label=PUBLISHED, zorder=4, **style)
    axis.grid(axis="y", color="#ececec", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.margins(x=0.05, y=0.08)


def _line(axis: Axes, x: Floats, cells: pd.DataFrame, metric: Metric, mark: MarkerStyle) -> None:
    """Draw a line with its band; a cell without a value leaves a gap."""
    y = values(cells, metric.column)
    low, high = (values(cells, f"{metric.column}_{end}") for end in ("low", "high"))
    style = mark.style(MARK) | {"linestyle": mark.dash, "linewidth": 1.0}
    axis.plot(x, y, label=cells["method"].iloc[0], zorder=3, **style)
    axis.fill_between(x, low, high, color=mark.colour, alpha=0.16, linewidth=0, zorder=2)
    known = np.isfinite(low) & np.isfinite(high)
    beside = np.concatenate([[False], known, [False]])
    alone = known & ~beside[:-2] & ~beside[2:]  # a band has no width there
    axis.vlines(x[alone], low[alone], high[alone], color=mark.colour, linewidth=0.8)


def _points(axis: Axes, x: Floats, cells: pd.DataFrame, metric: Metric, mark: MarkerStyle) -> None:
    """Draw marks with bars: between values that are no numbers there is nothing to join."""
    low, high = (values(cells, f"{metric.column}_{end}") for end in ("low", "high"))
    style = mark.style(MARK + 1) | {"linestyle": "none"}
    axis.plot(x, values(cells, metric.column), label=cells["method"].iloc[0], zorder=3, **style)
    axis.vlines(x, low, high, color=mark.colour, linewidth=0.9, zorder=2)


def _constant(
    axis: Axes, sweep: Sweep, cells: pd.DataFrame, metric: Metric, mark: MarkerStyle
) -> None:
    """Draw a method that does not take the parameter: a level through all its values."""
    aside = 0.0 if sweep.is_number else 0.5
    ends = [sweep.places[0] - aside, sweep.places[-1] + aside]
    columns = (metric.column, f"{metric.column}_low", f"{metric.column}_high")
    y, low, high = (values(cells, column)[0] for column in columns)
    name = cells["method"].iloc[0]
    axis.plot(ends, [y, y], color=mark.colour, linestyle=mark.dash, linewidth=1.0, label=name)
    axis.fill_between(ends, low, high, color=mark.colour, alpha=0.1, linewidth=0, zorder=1)


def _key(data: FigureData, sheet: _Sheet) -> Legend:
    drawn = {method: mark for (_, method), mark in reversed(marker_styles(data.table).items())}
    shown = {str(m) for facet in sheet.facets for m in facet.cells["method"]}
    methods = [m for m in map(str, data.table["method"].unique()) if m in shown]
    taking = set(_taking(data, sheet.sweep, sheet.facets))
    handles = []
    for method in methods:
        mark = drawn[method]
        style = mark.style(5) if method in taking else {"color": mark.colour}
        joined = sheet.sweep.is_number or method not in taking
        dash = mark.dash if joined else "none"
        handles.append(Line2D([], [], **style | {"linestyle": dash, "linewidth": 1.0}))
    if _has_published(sheet):
        handles.append(
            Line2D([], [], **MarkerStyle(GREY, "o", "none").hollow(5) | {"linestyle": ":"})
        )
        methods.append(PUBLISHED)
    return Legend(handles, methods)


def _taking(data: FigureData, sweep: Sweep, shown: Sequence[Facet]) -> list[str]:
    """Return the methods that take the parameter."""
    pairs = [pair for f in shown for pair in f.cells[["cell", "method"]].to_numpy().tolist()]
    found = (method for cell, method in pairs if sweep.parameter in data.points.get(cell, {}))
    return list(dict.fromkeys(found))


def _has_published(sheet: _Sheet) -> bool:
    columns = [f"{metric.column}_published" for metric in sheet.metrics]
    return any(np.isfinite(values(f.cells, c)).any() for f in sheet.facets for c in columns)


def _caption(data: FigureData, sheet: _Sheet) -> str:
    shown = {str(method) for facet in sheet.facets for method in facet.cells["method"]}
    columns = [metric.column for metric in sheet.metrics]
    cells = _shown(sheet)["cell"].unique().tolist()
    return say.sweep(
        parameter_label(sheet.sweep.parameter),
        sheet.sweep.is_number,
        bool(shown - set(_taking(data, sheet.sweep, sheet.facets))),
        _has_published(sheet),
        clipped_labels(_shown(sheet), sheet.metrics),
        len(sheet.facets),
        len(sheet.facets) + sheet.left_out,
        cells_not_drawn(data, columns, cells),
    )


def _shown(sheet: _Sheet) -> pd.DataFrame:
    return pd.concat([facet.cells for facet in sheet.facets])


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
