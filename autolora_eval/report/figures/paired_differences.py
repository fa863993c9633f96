"""Every comparison with the baseline, unit by unit, with the mean difference and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autolora_eval._sentences import Sentences
from autolora_eval._text import join_names
from autolora_eval.analysis.estimates import sorted_differences, unit_values
from autolora_eval.analysis.sentences import Metric
from autolora_eval.report.figures._base import (
    Drawing,
    FigureData,
    FigureKind,
    method_with_point,
    swept_names,
)
from autolora_eval.report.figures._style import (
    COLOURS,
    DARK,
    GREY,
    SMALL,
    WIDTH,
    Floats,
    Legend,
    label_title,
    literal,
    literal_ticks,
    short,
    truncate_to_width,
    values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


say = Sentences("captions")
COLUMNS, ROWS = 5, 40
# Of more units than these the sorted differences are drawn as a curve; also of fewer in low rows.
DOTS, DOTS_IN_LOW_ROWS = 64, 16
FEW_ROWS = 14
CURVE_POINTS = 100
# Holm-corrected p-values below this are drawn full.
LEVEL = 0.05
NAMES_LISTED = 8
NAMES = 150.0  # points: the widest name of a row
DOT_LABEL, DIFFERENCE_LABEL = "units", "difference"


@dataclass(frozen=True)
class _Row:
    """One comparison: a cell with the baseline's."""

    cell: str
    baseline_cell: str
    label: str


def _rows(data: FigureData) -> list[_Row]:
    """Return the comparisons in the order of the result table."""
    compared = data.comparisons
    pairs = dict(zip(compared["cell"], compared["baseline_cell"], strict=True))
    several = data.table["model"].nunique() > 1
    found = []
    for cell, model in zip(data.table["cell"], data.table["model"], strict=True):
        if cell in pairs:
            label = method_with_point(data, cell)
            named = f"{model} · {label}" if several else label
            found.append(_Row(cell, str(pairs[cell]), named))
    return found


def _drawings(data: FigureData) -> Iterator[Drawing]:
    rows = [] if data.comparisons.empty else _rows(data)
    if not rows:
        return
    judged = [metric.column for metric in data.metrics if metric.kind == "score"]
    extra = [metric.column for metric in data.metrics if metric.kind == "extra"]
    units = unit_values(data.scores, data.diversity, judged, extra)
    for first in range(0, len(data.metrics), COLUMNS):
        metrics = data.metrics[first : first + COLUMNS]
        for start in range(0, len(rows), ROWS):
            shown = rows[start : start + ROWS]
            yield Drawing(
                name=FIGURE.name,
                title=f"Differences from {_baseline(data)} in "
                f"{join_names([metric.label for metric in metrics])}",
                caption=_caption(data, shown, metrics, units),
                text=_text(data, shown, metrics),
                draw=lambda shown=shown, metrics=metrics: _draw(  # type: ignore[misc]
                    data, shown, metrics, units
                ),
            )


def _baseline(data: FigureData) -> str:
    return str(data.comparisons["baseline"].iloc[0])


def _unit(data: FigureData) -> str:
    return str(data.comparisons["unit"].iloc[0])


def _draw(
    data: FigureData,
    rows: Sequence[_Row],
    metrics: Sequence[Metric],
    units: Mapping[str, pd.DataFrame],
) -> Figure:
    key = _key(data, rows, units)
    each = 0.62 if len(rows) <= 5 else 0.36 if len(rows) <= FEW_ROWS else 0.178
    height = each * len(rows) + 0.75 + key.height
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        if metric.column in units:
            _units(axis, rows, units[metric.column])
        _means(axis, data, rows, metric)
        axis.axvline(0.0, color=GREY, linewidth=0.8, zorder=1)
        literal(axis.set_title(label_title(metric), fontsize=7.5))
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.margins(x=0.06)
        for place in range(1, len(rows)):
            axis.axhline(place - 0.5, color="#ececec", linewidth=0.5, zorder=0)
    axes[0].set_yticks(
        range(len(rows)), [truncate_to_width(row.label, NAMES) for row in rows], fontsize=SMALL
    )
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    literal_ticks(axes[0])
    title = f"difference from {short(_baseline(data), 60)}"
    literal(figure.suptitle(title, fontsize=8.0))
    key.put(figure)
    return figure


def _units(axis: Axes, rows: Sequence[_Row], values_of_units: pd.DataFrame) -> None:
    """Draw each comparison's differences from the lowest, below, to the highest, above."""
    dots: list[Floats] = []
    most = _most_dots(rows)
    for place, row in enumerate(rows):
        differences = sorted_differences(values_of_units, row.cell, row.baseline_cell)
        if len(differences) > most:
            x, ranks = thinned(differences, CURVE_POINTS)
            y = place + 0.4 - 0.8 * ranks
            axis.fill_betweenx(y, 0.0, x, color=COLOURS[5], alpha=0.45, linewidth=0, zorder=1.5)
            axis.plot(x, y, color=COLOURS[0], linewidth=0.8, zorder=2, label=row.cell)
        elif len(differences):
            n = len(differences)
            ranks = np.linspace(0.0, 1.0, n) if n > 1 else np.full(1, 0.5)
            dots.append(np.stack([differences, place + 0.36 - 0.72 * ranks]))
    if dots:
        x, y = np.concatenate(dots, axis=1)
        size = 2.6 if len(rows) <= FEW_ROWS else 1.7
        axis.plot(x, y, zorder=2, label=DOT_LABEL, **_dot(size))


def thinned(differences: Floats, at_most: int) -> tuple[Floats, Floats]:
    """Return a curve through sorted differences of few enough points, and their ranks.

    Of equal differences the first and the last are kept; of what is left, evenly spread ones.

    Args:
        differences: sorted, float64 [n].
        at_most: points to keep.

    Returns:
        The differences kept, and their places in 0 … 1.
    """
    n = len(differences)
    ranks = np.arange(n) / max(n - 1, 1)
    changes = np.flatnonzero(np.diff(differences))
    kept = np.unique(np.concatenate([[0], changes, changes + 1, [n - 1]])) if n else np.arange(0)
    if len(kept) > at_most:
        kept = kept[np.linspace(0, len(kept) - 1, at_most).round().astype(int)]
    return differences[kept], ranks[kept]


def _most_dots(rows: Sequence[_Row]) -> int:
    return DOTS if len(rows) <= FEW_ROWS else DOTS_IN_LOW_ROWS


def _means(axis: Axes, data: FigureData, rows: Sequence[_Row], metric: Metric) -> None:
    """Draw the differences of the comparisons with their intervals, as they are given."""
    compared = _of_metric(data, [row.cell for row in rows], metric)
    places = np.arange(len(rows), dtype=np.float64)
    low, high = values(compared, "low"), values(compared, "high")
    axis.hlines(places, low, high, color=DARK, linewidth=1.1, zorder=3)
    certain = values(compared, "p_holm") < LEVEL
    for chosen, filled in ((certain, True), (~certain, False)):
        x = np.where(chosen, values(compared, "difference"), np.nan)
        axis.plot(x, places, label=DIFFERENCE_LABEL, zorder=4, **_diamond(filled))


def _of_metric(data: FigureData, cells: Sequence[str], metric: Metric) -> pd.DataFrame:
    """Return the comparisons of cells by one metric, a row of NaN where there is none."""
    compared = data.comparisons[data.comparisons["metric"] == metric.column]
    return compared.drop_duplicates("cell").set_index("cell").reindex(list(cells))


def _dot(size: float) -> dict[str, Any]:
    return {
        "color": COLOURS[5],
        "marker": "o",
        "markersize": size,
        "markeredgewidth": 0.0,
        "linestyle": "none",
    }


def _diamond(filled: bool) -> dict[str, Any]:
    return {
        "marker": "D",
        "markersize": 4.0,
        "linestyle": "none",
        "markeredgecolor": DARK,
        "markeredgewidth": 0.8,
        "markerfacecolor": DARK if filled else "white",
    }


def _key(data: FigureData, rows: Sequence[_Row], units: Mapping[str, pd.DataFrame]) -> Legend:
    unit = _unit(data)
    n = max((len(found) for found in units.values()), default=0)
    handles = [Line2D([], [], **_diamond(filled)) for filled in (True, False)]
    names = [f"difference, p < {LEVEL:g}", f"difference, p ≥ {LEVEL:g}"]
    if n > _most_dots(rows):
        handles.insert(0, Line2D([], [], color=COLOURS[0], linewidth=0.8))
        names.insert(0, f"all {unit}s, sorted")
    elif n:
        handles.insert(0, Line2D([], [], **_dot(3.0)))
        names.insert(0, f"one {unit}")
    return Legend(handles, names)


def _caption(
    data: FigureData,
    rows: Sequence[_Row],
    metrics: Sequence[Metric],
    units: Mapping[str, pd.DataFrame],
) -> str:
    return say.paired(
        _baseline(data),
        _unit(data),
        any(data.points.values()),
        [metric.label for metric in metrics if metric.column not in units],
        any(metric.kind == "product" for metric in metrics),
        swept_names(data),
        _missing(data, rows, metrics),
    )


def _missing(
    data: FigureData, rows: Sequence[_Row], metrics: Sequence[Metric]
) -> tuple[list[str], int]:
    """Return the names of rows that lack a difference, and how many more there are."""
    known = data.comparisons[np.isfinite(values(data.comparisons, "difference"))]
    have = set(known[["cell", "metric"]].itertuples(index=False, name=None))
    names = [row.label for row in rows if any((row.cell, m.column) not in have for m in metrics)]
    return names[:NAMES_LISTED], max(0, len(names) - NAMES_LISTED)


def _text(data: FigureData, rows: Sequence[_Row], metrics: Sequence[Metric]) -> str:
    """Count how many cells are certainly above and below the baseline in each metric."""
    cells = [row.cell for row in rows]
    counts = []
    for metric in metrics:
        compared = _of_metric(data, cells, metric).dropna(subset=["difference"], how="all")
        above = int((values(compared, "low") > 0).sum())
        below = int((values(compared, "high") < 0).sum())
        only = compared["difference"].iloc[0] if len(cells) == 1 and len(compared) else None
        counts.append((metric.display_name, above, below, only))
    return say.paired_text(len(rows), _baseline(data), _unit(data), counts)


FIGURE = FigureKind("paired_differences", place=40, drawings=_drawings)
