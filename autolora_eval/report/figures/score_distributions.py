"""How the images of each cell are distributed over the values of each score."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from autolora_eval._sentences import Sentences
from autolora_eval._text import join_names
from autolora_eval.analysis.sentences import Metric
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind, swept_names
from autolora_eval.report.figures._style import (
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


# A scale of more whole numbers than these, or of values between them, is cut into equal parts.
MOST_LEVELS = 10
PARTS = 5


@dataclass(frozen=True)
class Levels:
    """The values of a score, in the levels that the figure shows.

    Attributes:
        edges: float64 [k + 1], ascending; a value on an edge belongs above it, the last below.
        names: of the k levels.
    """

    edges: Floats
    names: Sequence[str]


def levels(scores: Floats, low: float, high: float) -> Levels:
    """Return the levels of a score: its whole numbers where all scores are, else equal parts.

    Args:
        scores: float64 [n]; NaN where there is none.
        low: least possible score.
        high: greatest possible score.
    """
    known = scores[np.isfinite(scores)]
    whole = low.is_integer() and high.is_integer() and bool((known == known.round()).all())
    if whole and high - low <= MOST_LEVELS:
        values = np.arange(int(low), int(high) + 1)
        edges = np.arange(low - 0.5, high + 1.0)
        return Levels(edges, [str(value) for value in values])
    edges = np.linspace(low, high, PARTS + 1)
    names = [f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)]
    return Levels(edges, names)


def shares(scores: Floats, cells: npt.NDArray[np.intp], n_cells: int, of: Levels) -> Floats:
    """Return the share of each cell's images on each level, and of those without a score.

    Args:
        scores: float64 [n]; NaN where there is none.
        cells: place of each image's cell, [n].
        n_cells: number of cells.
        of: the k levels.

    Returns:
        float64 [n_cells, k + 1], the last column the unscored; rows sum to 1, or are NaN for a
        cell without images.
    """
    k = len(of.names)
    places = np.clip(np.searchsorted(of.edges, scores, side="right") - 1, 0, k - 1)
    places = np.where(np.isfinite(scores), places, k)
    counts = np.bincount(cells * (k + 1) + places, minlength=n_cells * (k + 1))
    counts = counts.reshape(n_cells, k + 1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


COLUMNS = 3
BAR, BROAD_BAR = 0.145, 0.21  # inches a bar, where there are many and where there are few
FEW = 8  # bars in a group
HEAD = 0.28  # inches above a group
ROOM = 7.4  # inches of bars and heads in one figure
BARS = 40  # bars in one group
NAMES = 150.0  # points: the widest name of a bar
UNSCORED = "unscored"
say = Sentences("captions")


@dataclass(frozen=True)
class _Group:
    """Cells that stand together: their places in the table and what each is called there."""

    title: str
    places: Sequence[int]
    names: Sequence[str]

    @property
    def height(self) -> float:
        """Inches that it takes."""
        bar = BROAD_BAR if len(self.places) <= FEW else BAR
        return bar * len(self.places) + HEAD


def _groups(data: FigureData) -> list[_Group]:
    """Return a model's cells together, or where there is a sweep those of a model and method."""
    swept = any(data.points.values())
    several = data.table["model"].nunique() > 1
    keys = ["model", "method"] if swept else ["model"]
    found = []
    for _, rows in data.table.reset_index(drop=True).groupby(keys, sort=False):
        first, cells = rows.iloc[0], rows["cell"].tolist()
        names = [
            ", ".join(data.points.get(c, {}).values()) if swept else data.labels[c] for c in cells
        ]
        parts = [first["model"]] * several + [first["method"]] * swept
        for start in range(0, len(cells), BARS):
            part = slice(start, start + BARS)
            found.append(_Group(" · ".join(parts), rows.index[part].tolist(), names[part]))
    return found


def _sheets(groups: Sequence[_Group], columns: int) -> Iterator[list[list[_Group]]]:
    """Yield rows of groups that fit on one figure, `columns` groups a row."""
    sheet: list[list[_Group]] = []
    for start in range(0, len(groups), columns):
        row = list(groups[start : start + columns])
        heights = [max(group.height for group in other) for other in [*sheet, row]]
        if sheet and sum(heights) > ROOM:
            yield sheet
            sheet = []
        sheet.append(row)
    yield sheet


def _drawings(data: FigureData) -> Iterator[Drawing]:
    scores = [metric for metric in data.metrics if metric.kind == "score"]
    groups = _groups(data)
    for first in range(0, len(scores), COLUMNS):
        shown = scores[first : first + COLUMNS]
        # Of one score, groups stand beside each other; of several, the scores of one group.
        columns = min(2, len(groups)) if len(shown) == 1 else 1
        for sheet in _sheets(groups, columns):
            yield Drawing(
                name=FIGURE.name,
                title=f"Distribution of {join_names([score.label for score in shown])}",
                caption=_caption(data, shown),
                text=_text(data, shown),
                draw=lambda sheet=sheet, shown=shown: _draw(data, sheet, shown),  # type: ignore[misc]
            )


def _of_cells(data: FigureData, score: Metric) -> tuple[Levels, Floats]:
    """Return the levels of a score, and the shares of every cell of the table on them."""
    found = values(data.scores, score.column)
    on = levels(found, float(score.low), float(score.high))
    cells = pd.Index(data.table["cell"]).get_indexer(pd.Index(data.scores["cell"]))
    known = cells >= 0
    return on, shares(found[known], cells[known], len(data.table), on)


def _draw(data: FigureData, sheet: Sequence[Sequence[_Group]], scores: Sequence[Metric]) -> Figure:
    found = {score: _of_cells(data, score) for score in scores}
    one = len(scores) == 1
    n_columns = max(map(len, sheet)) if one else len(scores)
    keys = {tuple(on.names): on for on, _ in found.values()}
    key = _key(max(keys.values(), key=lambda on: len(on.names)))
    heights = [max(group.height for group in row) for row in sheet]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5 + key.height), layout="constrained")
    share: Literal["none", "row"] = "none" if one else "row"
    grid = figure.subplots(
        len(sheet),
        n_columns,
        squeeze=False,
        sharex=True,
        sharey=share,
        height_ratios=[max(len(group.places) for group in row) for row in sheet],
    )
    for axes, row in zip(grid, sheet, strict=True):
        panels = [(group, scores[0]) for group in row] if one else [(row[0], s) for s in scores]
        for axis, (group, score) in zip(axes, panels, strict=False):
            on, cells = found[score]
            # Of several scores the first has the names.
            _bars(
                axis,
                group,
                cells[list(group.places)],
                len(on.names),
                NAMES / n_columns if one else NAMES,
            )
            title = (
                group.title if one else " · ".join(filter(None, [group.title, label_title(score)]))
            )
            cut = truncate_to_width(title, 72 * (WIDTH / n_columns - 0.9), 7.5)
            literal(axis.set_title(cut, fontsize=7.5, loc="left"))
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    for axis in grid[-1]:
        axis.set_xlabel(
            f"share of images by {short(label_title(scores[0]))}" if one else "share of images"
        )
    key.put(figure)
    return figure


def _bars(axis: Axes, group: _Group, cells: Floats, n_levels: int, room: float) -> None:
    """Draw one bar a cell, from the lowest score to the highest, then the unscored."""
    places = np.arange(len(cells))
    left = np.zeros(len(cells))
    plain = [{"facecolor": c, "edgecolor": "white", "linewidth": 0.3} for c in colours(n_levels)]
    for n, style in enumerate([*plain, _UNSCORED]):
        axis.barh(places, cells[:, n], left=left, height=0.82, **style)
        left = left + cells[:, n]
    for place in np.flatnonzero(~np.isfinite(left)):
        axis.text(0.01, float(place), "no image", va="center", fontsize=SMALL, color=GREY)
    axis.set_yticks(places, [truncate_to_width(name, room) for name in group.names], fontsize=SMALL)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(0.0, 1.0)
    axis.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "25%", "50%", "75%", "100%"])
    axis.tick_params(axis="y", length=0)
    literal_ticks(axis)


def colours(n: int) -> list[str]:
    """Return n colours from light to dark: in that order in grey and to the colour-blind too."""
    found = matplotlib.colormaps["Blues"](np.linspace(0.12, 1.0, n))
    return [to_hex(colour) for colour in found]


_UNSCORED: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": GREY,
    "hatch": "//////",
    "linewidth": 0.3,
}


def _key(on: Levels) -> Legend:
    handles = [Patch(facecolor=colour, edgecolor="white") for colour in colours(len(on.names))]
    return Legend([*handles, Patch(**_UNSCORED)], [*on.names, UNSCORED])


def _caption(data: FigureData, scores: Sequence[Metric]) -> str:
    known = data.scores["cell"].isin(data.table["cell"]).to_numpy()
    lacking = {s.label: np.isnan(values(data.scores, s.column)) & known for s in scores}
    unscored = [(label, int(images.sum())) for label, images in lacking.items()]
    names = [score.display_name for score in scores]
    lost = [(label, n) for label, n in unscored if n]
    return say.distribution(names, lost, int(known.sum()), swept_names(data))


def _text(data: FigureData, scores: Sequence[Metric]) -> str:
    found = []
    for score in scores:
        levels_of, cells = _of_cells(data, score)
        mean = np.nanmean(cells, axis=0) if np.isfinite(cells).any() else np.zeros(cells.shape[1])
        shares_of = zip([*levels_of.names, UNSCORED], mean, strict=True)
        found.append((score.display_name, list(shares_of)))
    return say.distribution_text(len(data.table), found)


FIGURE = FigureKind("score_distributions", place=50, drawings=_drawings)
