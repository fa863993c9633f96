"""What a kind of figure declares, what it draws from, and what a drawn figure is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.report.figures._sweep_lines import Points

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureData:
    """What figures are drawn from: the tables of a run, and what their cells are called.

    Attributes:
        table: the result table, one row a cell.
        measured: the measures of the run, in order.
        points: what tells cells of one model and method apart: by cell, each swept parameter with
            its value.
        labels: the name of each cell within its model.
        scores: one row an image.
        diversity: one row a cell and prompt.
        comparisons: one row a cell and measure, against the baseline.
    """

    table: pd.DataFrame
    metrics: Sequence[Measure]
    points: Points
    labels: Mapping[str, str]
    scores: pd.DataFrame
    diversity: pd.DataFrame
    comparisons: pd.DataFrame


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn.

    Attributes:
        name: of its files.
        title: a few words for lists and headings.
        caption: how to read it, and what is missing from it.
        text: what it shows, for those who cannot see it.
        draw: returns the figure; called with the style in force.
    """

    name: str
    title: str
    caption: str
    text: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure.

    Attributes:
        name: unique; the names of its files begin with it.
        place: where it stands among the others, lowest first.
        drawings: the figures of this kind that a run has: none where it does not apply, several
            where one would hold too much.
    """

    name: str
    place: int
    drawings: Callable[[FigureData], Iterable[Drawing]]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure that was drawn, with its files.

    Attributes:
        name: of its files.
        kind: name of its kind.
        title: a few words for lists and headings.
        caption: how to read it, and what is missing from it.
        text: what it shows, for those who cannot see it.
        svg: its file.
        png: its file.
    """

    name: str
    kind: str
    title: str
    caption: str
    text: str
    svg: Path
    png: Path
