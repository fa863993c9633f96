"""Every comparison with the baseline, unit by unit, with the mean difference and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autolora_eval._text import Sentences, join_names
from autolora_eval.analysis.cell_estimates import Estimates, unit_estimates
from autolora_eval.analysis.comparisons import SIGNIFICANCE, unit_differences
from autolora_eval.analysis.metrics import Metric
from autolora_eval.report.figures import _base, _style
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
from autolora_eval.report.figures._style import COLOURS, DARK, Floats, in_parts, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes


say = Sentences("captions")
COLUMNS, ROWS = 5, 40
# With more units, the sorted differences are drawn as a curve. Low rows have room for fewer dots.
DOTS, DOTS_IN_LOW_ROWS = 64, 16
FEW_ROWS = 14
CURVE_POINTS = 100
NAMES_LISTED = 8
NAMES = 150.0  # points: the widest name of a row
_DOT: dict[str, Any] = {
    "color": COLOURS[5],
    "marker": "o",
    "markeredgewidth": 0.0,
    "linestyle": "none",
}
DOT_LABEL, DIFFERENCE_LABEL = "units", "difference"


class _Row(NamedTuple):
    """One comparison: a cell with the baseline's."""

    cell: str
    baseline_cell: str
    label: str


class _Sheet(NamedTuple):
    """What one figure shows: comparisons down, metrics across, and the cells' estimates."""

    data: FigureData
    rows: Sequence[_Row]
    metrics: Sequence[Metric]
    estimates: Mapping[str, Estimates]

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return str(self.data.comparisons["baseline"].iloc[0])

    @property
    def unit(self) -> str:
        """What the cells are paired over."""
        return str(self.data.comparisons["unit"].iloc[0])

    @property
    def most_dots(self) -> int:
        """The most units that are drawn as dots."""
        return DOTS if len(self.rows) <= FEW_ROWS else DOTS_IN_LOW_ROWS

    def of_metric(self, metric: Metric) -> pd.DataFrame:
        """Return the comparisons by one metric, a row of NaN where there is none."""
        compared = self.data.comparisons
        compared = compared[compared["metric"] == metric.column].drop_duplicates("cell")
        return compared.set_index("cell").reindex([row.cell for row in self.rows])


def _rows(data: FigureData) -> list[_Row]:
    compared = data.comparisons
    pairs = dict(zip(compared["cell"], compared["baseline_cell"], strict=True))
    several = data.table["model"].nunique() > 1
    found = []
    cells = data.table[["cell", "model", "method"]]
    for cell, model, method in cells.itertuples(index=False, name=None):
        if cell in pairs:
            point = ", ".join(data.points.get(cell, {}).values())
            label = f"{_style.short(method, 36)} {point}".strip()
            found.append(_Row(cell, str(pairs[cell]), f"{model} · {label}" if several else label))
    return found


def _drawings(data: FigureData) -> Iterator[Drawing]:
    rows = [] if data.comparisons.empty else _rows(data)
    if not rows:
        return
    judged = [metric.column for metric in _base.scores_of(data)]
    extra = [metric.column for metric in data.metrics if metric.kind == "extra"]
    estimates = unit_estimates(data.scores, data.diversity, judged, extra)
    for metrics in in_parts(data.metrics, COLUMNS):
        labels = join_names([metric.label for metric in metrics])
        for shown in in_parts(rows, ROWS):
            sheet = _Sheet(data, shown, metrics, estimates)
            yield Drawing(
                name=FIGURE.name,
                title=f"Differences from {sheet.baseline} in {labels}",
                caption=_caption(sheet),
                text=_text(sheet),
                draw=partial(_draw, sheet),
            )


def _draw(sheet: _Sheet) -> Figure:
    n, shape = len(sheet.rows), (1, len(sheet.metrics))
    height = (0.62 if n <= 5 else 0.36 if n <= FEW_ROWS else 0.178) * n + 0.75
    figure, axes = _style.panel_grid(shape, shape[1], height, _key(sheet), sharey=True)
    for axis, metric in zip(axes, sheet.metrics, strict=True):
        _units(axis, sheet, metric.column)
        _means(axis, sheet, metric)
        axis.axvline(0.0, color=_style.GREY, linewidth=0.8, zorder=1)
        axis.set_title(_style.label_title(metric), fontsize=7.5)
        axis.xaxis.set_major_locator(_style.few_ticks(3))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.margins(x=0.06)
        for place in range(1, n):
            axis.axhline(place - 0.5, color="#ececec", linewidth=0.5, zorder=0)
    names = [_style.truncate_to_width(row.label, NAMES) for row in sheet.rows]
    axes[0].set_yticks(range(n), names, fontsize=_style.SMALL)
    axes[0].set_ylim(n - 0.5, -0.5)
    figure.suptitle(f"difference from {_style.short(sheet.baseline, 60)}", fontsize=8.0)
    return figure


def _units(axis: Axes, sheet: _Sheet, metric: str) -> None:
    """Draw each comparison's differences from the lowest, below, to the highest, above."""
    dots: list[Floats] = []
    for place, row in enumerate(sheet.rows):
        differences = _sorted_differences(row, metric, sheet.estimates)
        if len(differences) > sheet.most_dots:
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
        size = 2.6 if len(sheet.rows) <= FEW_ROWS else 1.7
        axis.plot(x, y, zorder=2, label=DOT_LABEL, markersize=size, **_DOT)


def _sorted_differences(row: _Row, metric: str, estimates: Mapping[str, Estimates]) -> Floats:
    if metric not in estimates[row.cell]:
        return np.zeros(0)
    cells = (estimates[cell][metric] for cell in (row.cell, row.baseline_cell))
    differences = unit_differences(*cells)
    return np.sort(differences[np.isfinite(differences)])


def thinned(differences: Floats, at_most: int) -> tuple[Floats, Floats]:
    """Return a curve of few enough points through sorted differences, and their ranks in 0 … 1.

    The first and the last of equal differences are kept, then evenly spread ones.
    """
    n = len(differences)
    ranks = np.arange(n) / max(n - 1, 1)
    changes = np.flatnonzero(np.diff(differences))
    kept = np.unique(np.concatenate([[0], changes, changes + 1, [n - 1]])) if n else np.arange(0)
    if len(kept) > at_most:
        kept = kept[np.linspace(0, len(kept) - 1, at_most).round().astype(int)]
    return differences[kept], ranks[kept]


def _means(axis: Axes, sheet: _Sheet, metric: Metric) -> None:
    compared = sheet.of_metric(metric)
    places = np.arange(len(compared), dtype=np.float64)
    low, high = values(compared, "low"), values(compared, "high")
    axis.hlines(places, low, high, color=DARK, linewidth=1.1, zorder=3)
    certain = values(compared, "p_holm") < SIGNIFICANCE
    for chosen, filled in ((certain, True), (~certain, False)):
        x = np.where(chosen, values(compared, "difference"), np.nan)
        axis.plot(x, places, label=DIFFERENCE_LABEL, zorder=4, **_diamond(filled))


def _diamond(filled: bool) -> dict[str, Any]:
    return {
        "marker": "D",
        "markersize": 4.0,
        "linestyle": "none",
        "markeredgecolor": DARK,
        "markeredgewidth": 0.8,
        "markerfacecolor": DARK if filled else "white",
    }


def _key(sheet: _Sheet) -> _style.Legend:
    columns, cells = [metric.column for metric in sheet.metrics], sheet.estimates.values()
    shown = [cell[column] for cell in cells for column in columns if column in cell]
    n = max((len(estimate.units) for estimate in shown), default=0)
    handles: dict[str, Line2D] = {}
    if n > sheet.most_dots:
        handles[f"all {sheet.unit}s, sorted"] = Line2D([], [], color=COLOURS[0], linewidth=0.8)
    elif n:
        handles[f"one {sheet.unit}"] = Line2D([], [], markersize=3.0, **_DOT)
    handles[f"difference, p < {SIGNIFICANCE:g}"] = Line2D([], [], **_diamond(True))
    handles[f"difference, p ≥ {SIGNIFICANCE:g}"] = Line2D([], [], **_diamond(False))
    return _style.Legend(list(handles.values()), list(handles))


def _caption(sheet: _Sheet) -> str:
    known = sheet.estimates[sheet.rows[0].cell]
    return say.paired(
        baseline=sheet.baseline,
        unit=sheet.unit,
        swept=any(sheet.data.points.values()),
        without_units=[metric.label for metric in sheet.metrics if metric.column not in known],
        has_products=any(metric.kind == "product" for metric in sheet.metrics),
        parameters=_base.swept_names(sheet.data),
        missing=_missing(sheet),
    )


def _missing(sheet: _Sheet) -> tuple[list[str], int]:
    known = sheet.data.comparisons[np.isfinite(values(sheet.data.comparisons, "difference"))]
    have = set(known[["cell", "metric"]].itertuples(index=False, name=None))
    columns = [metric.column for metric in sheet.metrics]
    names = [row.label for row in sheet.rows if any((row.cell, c) not in have for c in columns)]
    return names[:NAMES_LISTED], max(0, len(names) - NAMES_LISTED)


def _text(sheet: _Sheet) -> str:
    """Count how many cells are certainly above and below the baseline in each metric."""
    counts = []
    for metric in sheet.metrics:
        compared = sheet.of_metric(metric).dropna(subset=["difference"], how="all")
        above = int((values(compared, "low") > 0).sum())
        below = int((values(compared, "high") < 0).sum())
        only = compared["difference"].iloc[0] if len(sheet.rows) == 1 and len(compared) else None
        counts.append((metric.display_name, len(compared), above, below, only))
    return say.paired_text(len(sheet.rows), sheet.baseline, sheet.unit, counts)


FIGURE = FigureKind("paired_differences", place=40, drawings=_drawings)
