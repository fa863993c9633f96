"""The differences of two cells unit by unit: of prompts, or of one prompt's seeds. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autolora_eval._text import format_fixed, join_names, pluralize
from autolora_eval.analysis.estimates import (
    Estimate,
    mean_estimate,
    product_estimate,
    ratio_estimate,
)
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
from autolora_eval.report.figures._captions import beside, beside_method
from autolora_eval.report.figures._style import (
    COLOURS,
    DARK,
    GREY,
    SMALL,
    WIDTH,
    Floats,
    Key,
    fitted,
    label_title,
    literal,
    literal_ticks,
    short,
    values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def unit_values(
    scores: pd.DataFrame,
    diversity: pd.DataFrame,
    columns: Sequence[str],
    extra: Sequence[str] = (),
) -> dict[str, pd.DataFrame]:
    """Return what each sampling unit contributes to a cell's measures, as comparisons count it.

    Of prompts these are diversity, mean scores and, for products, the jackknife's pseudo-values;
    of one prompt's seeds the scores alone, since one image has no diversity.

    Args:
        scores: one row an image.
        diversity: one row a cell and prompt.
        columns: the judge's scores.
        extra: the other measures of diversity.

    Returns:
        For each measure a table of units by cells; NaN where a unit has no value.
    """
    if diversity["prompt_index"].nunique() < 2:
        frame = scores.set_index(["seed", "cell"])
        return {column: frame[column].unstack("cell") for column in columns}
    spread = diversity.pivot(index="prompt_index", columns="cell", values="diversity")
    units: list[Hashable] = list(spread.index)
    groups = scores.groupby(["prompt_index", "cell"])
    # Of each score by cell: what its images sum up to, and how many have it.
    sums, counts = (
        {
            column: getattr(groups[column], how)()
            .unstack("cell")
            .reindex(index=units, columns=spread.columns)
            .fillna(0)
            for column in columns
        }
        for how in ("sum", "count")
    )
    found: dict[str, dict[str, dict[Hashable, float]]] = {}
    for cell in spread.columns:
        of_cell = mean_estimate(spread[cell].to_numpy(), units)
        _note(found, "diversity", cell, of_cell)
        for column in columns:
            score = ratio_estimate(sums[column][cell], counts[column][cell], units)
            _note(found, column, cell, score)
            _note(found, f"div_{column}", cell, product_estimate(of_cell, score))
    others = {
        metric: diversity.pivot(index="prompt_index", columns="cell", values=metric)
        for metric in extra
        if metric in diversity
    }
    return others | {
        metric: pd.DataFrame(cells).reindex(units).astype("float64")
        for metric, cells in found.items()
    }


def _note(
    found: dict[str, dict[str, dict[Hashable, float]]], metric: str, cell: str, estimate: Estimate
) -> None:
    found.setdefault(metric, {})[cell] = estimate.pseudo_values()


def sorted_differences(values: pd.DataFrame, cell: str, baseline: str) -> Floats:
    """Return the differences of the units that both cells have, lowest first, float64 [n].

    Args:
        values: of one measure, units by cells.
        cell: what is compared.
        baseline: what it is compared with.
    """
    if cell not in values or baseline not in values:
        return np.zeros(0)
    differences = (values[cell] - values[baseline]).to_numpy(dtype=np.float64)
    return np.sort(differences[np.isfinite(differences)])


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


# --------------------
# Every comparison with the baseline, unit by unit, with the mean difference and its interval.


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


def _compared(data: FigureData) -> pd.DataFrame:
    """Return the comparisons, each with its two cells, which older runs do not name."""
    groups = data.table.groupby(["model", "method"])["cell"]
    alone = groups.first()[groups.size() == 1]
    found = data.comparisons.copy()
    for column, method in (("cell", "method"), ("baseline_cell", "baseline")):
        pairs = pd.MultiIndex.from_frame(found[["model", method]])
        by_name = pd.Series(alone.reindex(pairs).to_numpy(), index=found.index)
        found[column] = found[column].fillna(by_name) if column in found else by_name
    return found


def _rows(data: FigureData) -> list[_Row]:
    """Return the comparisons that name a cell of the table, in its order."""
    compared = _compared(data)
    pairs = dict(zip(compared["cell"], compared["baseline_cell"], strict=True))
    several = data.table["model"].nunique() > 1
    found = []
    for cell, model in zip(data.table["cell"], data.table["model"], strict=True):
        if cell in pairs:
            label = beside_method(data, cell)
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
    metrics: Sequence[Measure],
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
    axes[0].set_yticks(range(len(rows)), [fitted(row.label, NAMES) for row in rows], fontsize=SMALL)
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


def _most_dots(rows: Sequence[_Row]) -> int:
    return DOTS if len(rows) <= FEW_ROWS else DOTS_IN_LOW_ROWS


def _means(axis: Axes, data: FigureData, rows: Sequence[_Row], metric: Measure) -> None:
    """Draw the differences of the comparisons with their intervals, as they are given."""
    compared = _compared(data)
    compared = compared[compared["measure"] == metric.column]
    compared = compared.drop_duplicates("cell").set_index("cell")
    compared = compared.reindex([row.cell for row in rows])
    places = np.arange(len(rows), dtype=np.float64)
    low, high = values(compared, "low"), values(compared, "high")
    axis.hlines(places, low, high, color=DARK, linewidth=1.1, zorder=3)
    certain = values(compared, "p_holm") < LEVEL
    for chosen, filled in ((certain, True), (~certain, False)):
        x = np.where(chosen, values(compared, "difference"), np.nan)
        axis.plot(x, places, label=DIFFERENCE_LABEL, zorder=4, **_diamond(filled))


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


def _key(data: FigureData, rows: Sequence[_Row], units: Mapping[str, pd.DataFrame]) -> Key:
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
    return Key(handles, names)


def _caption(
    data: FigureData,
    rows: Sequence[_Row],
    metrics: Sequence[Measure],
    units: Mapping[str, pd.DataFrame],
) -> str:
    unit, baseline = _unit(data), _baseline(data)
    at = " at the same place on the sweep" if any(data.points.values()) else ""
    parts = [
        f"Difference from {baseline}{at}, {unit} by {unit}: in each row all {unit}s, the "
        "lowest below, the highest above.",
        "Diamonds with bars: the difference of the cells with its 95 % interval; full where the "
        f"p-value, corrected by Holm's method, is below {LEVEL:g}.",
    ]
    without = [metric.label for metric in metrics if metric.column not in units]
    if without:
        parts.append(f"{join_names(without)} cannot be told {unit} by {unit}.")
    elif any(metric.kind == "product" for metric in metrics):
        parts.append(f"Of products, what each {unit} adds is its jackknife pseudo-value.")
    return " ".join([*parts, *beside(data, "a method"), *_lacking(data, rows, metrics)])


def _lacking(data: FigureData, rows: Sequence[_Row], metrics: Sequence[Measure]) -> Iterator[str]:
    compared = _compared(data)
    known = np.isfinite(values(compared, "difference"))
    have = set(compared.loc[known, ["cell", "measure"]].itertuples(index=False, name=None))
    names = [row.label for row in rows if any((row.cell, m.column) not in have for m in metrics)]
    if names:
        more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
        yield f"Without a difference in some measure: {'; '.join(names[:NAMES_LISTED])}{more}."


def _text(data: FigureData, rows: Sequence[_Row], metrics: Sequence[Measure]) -> str:
    """Count how many cells are certainly above and below the baseline in each measure."""
    cells = [row.cell for row in rows]
    told = []
    for metric in metrics:
        compared = _compared(data)
        compared = compared[compared["measure"] == metric.column]
        compared = compared[compared["cell"].isin(cells)]
        above = int((values(compared, "low") > 0).sum())
        below = int((values(compared, "high") < 0).sum())
        told.append(f"{metric.display_name}: {above} above, {below} below")
        if len(compared) == 1:
            told[-1] = (
                f"{metric.display_name}: "
                f"{format_fixed(compared['difference'].iloc[0], signed=True)}"
            )
    return (
        f"Differences of {pluralize(len(rows), 'cell')} from {_baseline(data)}, {_unit(data)} by "
        f"{_unit(data)}; counted are intervals that leave out zero. {'; '.join(told)}. "
        "The numbers are in the table of differences."
    )


FIGURE = FigureKind("paired_differences", place=40, drawings=_drawings)
