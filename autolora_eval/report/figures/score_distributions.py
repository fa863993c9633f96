"""How the images of each cell are distributed over the values of each score."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from autolora_eval._text import MINUS, Sentences, format_fixed, join_names
from autolora_eval.analysis.metrics import Metric
from autolora_eval.report.figures import _base, _style
from autolora_eval.report.figures._base import Drawing, FigureData, FigureKind
from autolora_eval.report.figures._style import (
    GREY,
    SMALL,
    WIDTH,
    Floats,
    Indices,
    in_parts,
    label_title,
    truncate_to_width,
    values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A scale with more levels, or with scores between whole numbers, is divided into equal parts.
MOST_LEVELS = 10
PARTS = 5
COLUMNS = 3
BAR, BROAD_BAR = 0.145, 0.21  # inches per bar, with many and with few bars
FEW = 8  # bars in a group
HEAD = 0.28  # inches above a group
ROOM = 7.4  # inches of bars and heads in one figure
BARS = 40  # bars in one group
NAMES = 150.0  # points: the widest name of a bar
UNSCORED = "unscored"
_UNSCORED_STYLE: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": GREY,
    "hatch": "//////",
    "linewidth": 0.3,
}
say = Sentences("captions")


# ---- Shares of images on the levels of a score


class Levels(NamedTuple):
    """The values of a score, in the levels that the figure shows.

    A value on an edge, float64 [k + 1], belongs above it, the last below.
    """

    edges: Floats
    names: Sequence[str]


def levels(scores: Floats, low: float, high: float) -> Levels:
    """Return the levels of a score: its whole numbers where all scores are, else equal parts.

    Args:
        scores: float64 [n]; NaN where there is none.
        low: Least possible score.
        high: Greatest possible score.
    """
    known = scores[np.isfinite(scores)]
    whole = low.is_integer() and high.is_integer() and bool((known == known.round()).all())
    if whole and high - low <= MOST_LEVELS:
        names = [format_fixed(value, 0) for value in range(int(low), int(high) + 1)]
        return Levels(np.arange(low - 0.5, high + 1.0), names)
    edges = np.linspace(low, high, PARTS + 1)
    return Levels(
        edges, [f"{a:g} to {b:g}".replace("-", MINUS) for a, b in itertools.pairwise(edges)]
    )


def shares(scores: Floats, cells: Indices, n_cells: int, of: Levels) -> Floats:
    """Return the share of each cell's images on each level, and of those without a score.

    Args:
        scores: float64 [n]; NaN where there is none.
        cells: Place of each image's cell, [n].
        n_cells: Number of cells.
        of: The k levels.

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


def _of_cells(data: FigureData, score: Metric) -> tuple[Levels, Floats]:
    found = values(data.scores, score.column)
    on = levels(found, float(score.low), float(score.high))
    cells = pd.Index(data.table["cell"]).get_indexer(pd.Index(data.scores["cell"]))
    known = cells >= 0
    return on, shares(found[known], cells[known], len(data.table), on)


# ---- Layout


@dataclass(frozen=True)
class _Group:
    """Cells that are drawn together: their rows of the table and their labels."""

    title: str
    places: Sequence[int]
    names: Sequence[str]

    @property
    def height(self) -> float:
        """Inches that it takes."""
        bar = BROAD_BAR if len(self.places) <= FEW else BAR
        return bar * len(self.places) + HEAD


def _groups(data: FigureData) -> list[_Group]:
    """Return the cells of a model as a group; in a sweep, those of a model and method."""
    swept = any(data.points.values())
    several = data.table["model"].nunique() > 1
    keys = ["model", "method"] if swept else ["model"]
    found = []
    for _, rows in data.table.reset_index(drop=True).groupby(keys, sort=False):
        first = rows.iloc[0]
        title = " · ".join([first["model"]] * several + [first["method"]] * swept)
        for part in in_parts(list(rows["cell"].items()), BARS):
            names = [
                ", ".join(data.points.get(cell, {}).values()) if swept else data.labels[cell]
                for _, cell in part
            ]
            found.append(_Group(title, [int(str(place)) for place, _ in part], names))
    return found


def _sheets(groups: Sequence[_Group], columns: int) -> Iterator[list[Sequence[_Group]]]:
    """Yield rows of groups that fit on one figure, with `columns` groups per row."""
    sheet: list[Sequence[_Group]] = []
    for row in in_parts(groups, columns):
        if sheet and sum(map(_height, [*sheet, row])) > ROOM:
            yield sheet
            sheet = []
        sheet.append(row)
    yield sheet


def _height(row: Sequence[_Group]) -> float:
    return max(group.height for group in row)


def _drawings(data: FigureData) -> Iterator[Drawing]:
    groups = _groups(data)
    by_levels: dict[tuple[str, ...], list[Metric]] = {}  # a figure has one legend
    for score in _base.scores_of(data):
        by_levels.setdefault(tuple(_of_cells(data, score)[0].names), []).append(score)
    for shown in (part for alike in by_levels.values() for part in in_parts(alike, COLUMNS)):
        # With one score, groups are side by side. With several, the scores of one group are.
        columns = min(2, len(groups)) if len(shown) == 1 else 1
        for sheet in _sheets(groups, columns):
            yield Drawing(
                name=FIGURE.name,
                title=f"Distribution of {join_names([score.label for score in shown])}",
                caption=_caption(data, shown),
                text=_text(data, shown),
                draw=partial(_draw, data, sheet, shown),
            )


# ---- Drawing


def _draw(data: FigureData, sheet: Sequence[Sequence[_Group]], scores: Sequence[Metric]) -> Figure:
    found = {score: _of_cells(data, score) for score in scores}
    one = len(scores) == 1
    panels = [(group, score) for row in sheet for group in row for score in scores]
    n_columns = max(map(len, sheet)) if one else len(scores)
    names = [*found[scores[0]][0].names]
    patches = [Patch(facecolor=c, edgecolor="white") for c in colours(len(names))]
    if any((cells[:, -1] > 0).any() for _, cells in found.values()):
        patches, names = [*patches, Patch(**_UNSCORED_STYLE)], [*names, UNSCORED]
    key = _style.Legend(patches, names)
    figure, axes = _style.panel_grid(
        (len(sheet), n_columns),
        len(panels),
        sum(map(_height, sheet)) + 0.5,
        key,
        sharex=True,
        sharey="none" if one else "row",
        height_ratios=[max(len(group.places) for group in row) for row in sheet],
    )
    for axis, (group, score) in zip(axes, panels, strict=True):
        on, cells = found[score]
        # Of several scores the first has the names.
        names_room = NAMES / n_columns if one else NAMES
        _bars(axis, group, cells[list(group.places)], len(on.names), names_room)
        title = [group.title] if one else filter(None, [group.title, label_title(score)])
        cut = truncate_to_width(" · ".join(title), 72 * (WIDTH / n_columns - 0.9), 7.5)
        axis.set_title(cut, fontsize=7.5, loc="left")
    of_score = f" by {_style.short(label_title(scores[0]))}" if one else ""
    for axis in axes[n_columns * (len(sheet) - 1) :]:
        axis.set_xlabel(f"share of images{of_score}")
    return figure


def _bars(axis: Axes, group: _Group, cells: Floats, n_levels: int, room: float) -> None:
    """Draw one bar per cell: scores from the lowest to the highest, then the unscored."""
    places = np.arange(len(cells))
    left = np.zeros(len(cells))
    plain = [{"facecolor": c, "edgecolor": "white", "linewidth": 0.3} for c in colours(n_levels)]
    for n, style in enumerate([*plain, _UNSCORED_STYLE]):
        axis.barh(places, cells[:, n], left=left, height=0.82, **style)
        left = left + cells[:, n]
    for place in np.flatnonzero(~np.isfinite(left)):
        axis.text(0.01, float(place), "no image", va="center", fontsize=SMALL, color=GREY)
    axis.set_yticks(places, [truncate_to_width(name, room) for name in group.names], fontsize=SMALL)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(0.0, 1.0)
    axis.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "25%", "50%", "75%", "100%"])
    axis.tick_params(axis="y", length=0)


def colours(n: int) -> list[str]:
    """Return n colours from light to dark, which also stay in order in grey."""
    found = matplotlib.colormaps["Blues"](np.linspace(0.12, 1.0, n))
    return [to_hex(colour) for colour in found]


# ---- Words


def _caption(data: FigureData, scores: Sequence[Metric]) -> str:
    images = data.scores[data.scores["cell"].isin(data.table["cell"])]
    counts = [(s.label, int(np.isnan(values(images, s.column)).sum())) for s in scores]
    names = [score.display_name for score in scores]
    unscored = [(label, n) for label, n in counts if n]
    return say.distribution(names, unscored, len(images), _base.swept_names(data))


def _text(data: FigureData, scores: Sequence[Metric]) -> str:
    found = []
    for score in scores:
        on, cells = _of_cells(data, score)
        mean = np.nanmean(cells, axis=0) if np.isfinite(cells).any() else np.zeros(cells.shape[1])
        found.append((score.display_name, list(zip([*on.names, UNSCORED], mean, strict=True))))
    return say.distribution_text(len(data.table), found)


FIGURE = FigureKind("score_distributions", place=50, drawings=_drawings)
