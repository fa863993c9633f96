"""What a kind of figure declares, what it is drawn from, and how it is rendered."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib.style
import numpy as np

from autolora_eval._errors import UsageError
from autolora_eval._files import atomic_write
from autolora_eval._text import join_names, parameter_label, pluralize, point_label
from autolora_eval.analysis.metrics import Metric
from autolora_eval.plugins.registry import Origin, Registry
from autolora_eval.plugins.third_party import error_message
from autolora_eval.report.figures._style import PNG_DPI, STYLE, settle, values

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


def _read_figure(found: object, origin: Origin) -> FigureKind:
    if not isinstance(found, FigureKind):
        kind = type(found).__name__
        raise UsageError(f"'{origin.name}' is a {kind}; expected an autolora_eval.FigureKind.")
    return dataclasses.replace(found, name=origin.name, origin=origin.distribution)


FIGURES = Registry(
    noun="figure",
    package="autolora_eval.report.figures",
    attribute="FIGURE",
    group="autolora_eval.figures",
    read=_read_figure,
)


def figure_kinds() -> list[FigureKind]:
    """Return every kind of figure in the order of the report, built in and of other packages.

    An unusable figure of another package is logged and left out.
    """
    kinds: list[FigureKind] = []
    for found in FIGURES.load_all():
        if isinstance(found, UsageError):
            _log.warning("%s", found)
        else:
            kinds.append(found)
    return sorted(kinds, key=lambda kind: (bool(kind.origin), kind.place, kind.name))


def draw_figures(data: FigureData, folder: Path) -> list[DrawnFigure]:
    """Draw every figure of a run, and write each as SVG and PNG.

    The same tables give the same bytes: neither file contains a date or a version. A figure of
    another package that fails is logged and left out. Figures of an earlier report are deleted.
    """
    drawn: dict[str, DrawnFigure] = {}
    kinds = figure_kinds()
    for kind in kinds:
        try:
            for drawing in kind.drawings(data):
                # Two models may have the same name in file names.
                numbered = (f"{drawing.name}_{n}" for n in itertools.count(2))
                names = itertools.chain([drawing.name], numbered)
                name = next(name for name in names if name not in drawn)
                drawn[name] = _write(kind.name, dataclasses.replace(drawing, name=name), folder)
        except (Exception, SystemExit) as error:
            if not kind.origin:
                raise
            reason = f"{type(error).__name__}: {error_message(error)}"
            _log.warning("The figure '%s' of %s failed: %s", kind.name, kind.origin, reason)
    for old in (*folder.glob("*.svg"), *folder.glob("*.png")):
        is_own = any(f"{old.stem}_".startswith(f"{kind.name}_") for kind in kinds)
        if is_own and old.stem not in drawn:
            old.unlink()
    return list(drawn.values())


def _write(kind: str, drawing: Drawing, folder: Path) -> DrawnFigure:
    svg, png = folder / f"{drawing.name}.svg", folder / f"{drawing.name}.png"
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.style.context([STYLE], after_reset=True), warnings.catch_warnings():
        # The SVG still contains the characters; its viewer chooses a font for them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = drawing.draw()
        settle(figure)  # once for both files
        with atomic_write(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata=no_metadata)
        with atomic_write(png) as temporary:
            figure.savefig(temporary, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return DrawnFigure(
        drawing.name, kind, drawing.title, drawing.caption, drawing.text, svg=svg, png=png
    )


NAMES_LISTED = 12
METHODS_NAMED = 6


# The swept parameters in which cells of one model and method differ, with their values, by cell.
Points = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class FigureData:
    """The tables of a run, from which figures are drawn, and the names of its cells.

    Attributes:
        table: the result table, one row per cell.
        metrics: the metrics of the run that have a value, in order; each is a column of `table`.
        points: by cell, the values of the swept parameters.
        labels: by cell, its name within its model.
        scores: one row per image.
        diversity: one row per cell and prompt.
        comparisons: one row per cell and metric, against the baseline.
    """

    table: pd.DataFrame
    metrics: Sequence[Metric]
    points: Points
    labels: Mapping[str, str]
    scores: pd.DataFrame
    diversity: pd.DataFrame
    comparisons: pd.DataFrame


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn.

    Attributes:
        name: the name of its files. A second figure of the same name gets a number.
        title: a few words for lists and headings.
        caption: how to read the figure, and what is missing from it.
        text: what the figure shows, for readers who cannot see it.
        draw: returns the figure. It is called with the report's matplotlib style.
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
        name: a unique name. The names of its files begin with it.
        place: its position in the report: lower numbers come first. Kinds of other packages come
            after the built-in ones.
        drawings: yields the figures of this kind for a run: none if the kind does not apply, or
            several if one figure would contain too much.
        origin: the package that provides it, as "name version"; empty for a built-in kind.
    """

    name: str
    place: int
    drawings: Callable[[FigureData], Iterable[Drawing]]
    origin: str = ""


@dataclass(frozen=True)
class DrawnFigure:
    """A figure that was drawn: its kind, the texts of its `Drawing`, and its files."""

    name: str
    kind: str
    title: str
    caption: str
    text: str
    svg: Path
    png: Path


# ---- Cells as captions name them


class Extreme(NamedTuple):
    """The least or the greatest value of a column, and the cell that has it."""

    value: float
    cells: str
    digits: int


def extremes(data: FigureData, column: str, digits: int = 3) -> list[Extreme]:
    """Return the least and the greatest value of a column; empty if none is known."""
    found = values(data.table, column)
    if not np.isfinite(found).any():
        return []
    rows = (int(np.nanargmin(found)), int(np.nanargmax(found)))
    cells = data.table["cell"]
    return [Extreme(found[n], cell_names(data, [cells.iloc[n]]), digits) for n in rows]


def scores_of(data: FigureData) -> list[Metric]:
    """Return the judged scores of a run."""
    return [metric for metric in data.metrics if metric.kind == "score"]


def swept_names(data: FigureData) -> list[str]:
    """Return the swept parameters of a run as words."""
    names = dict.fromkeys(name for point in data.points.values() for name in point)
    return [parameter_label(name) for name in names]


def cell_names(data: FigureData, cells: Sequence[str]) -> str:
    """Return the names of cells, with the sweep points of one method together.

    Many cells are counted: by method, if the methods are few.
    """
    rows = data.table[data.table["cell"].isin(cells)]
    several = data.table["model"].nunique() > 1
    groups: dict[str, list[str]] = {}
    for cell, model, method in rows[["cell", "model", "method"]].itertuples(index=False):
        name = f"{model} × {method}" if several else str(method)
        groups.setdefault(name, []).append(point_label(data.points.get(cell, {})))
    if len(groups) > METHODS_NAMED:
        return f"{len(rows)} of {len(data.table)} cells"
    if len(rows) > NAMES_LISTED // max(1, len(swept_names(data))):
        found = groups.items()
        return join_names([f"{pluralize(len(points), 'cell')} of {name}" for name, points in found])
    names = [f"{name} at {join_points(points)}" if any(points) else name
             for name, points in groups.items()]  # fmt: skip
    return "; ".join(names) if len(names) < len(rows) else join_names(names)


def join_points(points: Sequence[str]) -> str:
    """Return "LoRA scale 0.2, 0.3 and 0.4" for three points of one parameter."""
    heads = {point.rpartition(" ")[0] for point in points}
    if len(heads) > 1 or len(points) == 1:
        return "; ".join(points)
    return f"{heads.pop()} {join_names([point.rpartition(' ')[2] for point in points])}"


def cells_not_drawn(
    data: FigureData, columns: Sequence[str], cells: Sequence[str] | None = None
) -> tuple[list[str], int]:
    """Return the names of the cells that lack one of the columns, and how many more there are."""
    asked = data.table["cell"].isin(data.table["cell"] if cells is None else cells)
    known = np.isfinite([values(data.table, column) for column in columns]).all(axis=0)
    rows = data.table.loc[np.asarray(asked) & ~known]
    pairs = zip(rows["model"], rows["cell"], strict=True)
    names = [f"{model} × {data.labels[cell]}" for model, cell in pairs]
    return names[:NAMES_LISTED], max(0, len(names) - NAMES_LISTED)
