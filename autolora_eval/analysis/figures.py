"""The figure of a run: diversity against every judged score, one mark a cell.

Below it, where a sweep changes what an image costs, each measure against that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from autolora_eval.analysis.measures import DIVERSITY, Measure
from autolora_eval.analysis.sweep_lines import Label, Points, cost_varies, stacked, sweep_lines
from autolora_eval.files import written_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Fill = Literal["full", "none", "left", "bottom", "right", "top"]

FIGURE_NAME = "diversity_vs_scores"
PNG_DPI = 200
# Okabe and Ito's colours without the yellow, which vanishes on white; the shapes carry the same
# information, so that the figure also reads in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
FILLS: tuple[Fill, ...] = ("full", "none", "left", "bottom", "right", "top")
LABEL_LENGTH = 32
# Of more marks than these only the ends of a line are labelled with their swept parameters.
POINTS_LABELLED = 24
COST_COLUMNS = 4
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "svg.fonttype": "none",
    # Without a salt, matplotlib names the parts of an SVG at random.
    "svg.hashsalt": "autolora-eval",
}


@dataclass(frozen=True)
class _Mark:
    """How a cell is drawn: colour and shape say the method, the fill says the model."""

    colour: str
    shape: str
    fill: Fill

    def line(self, **more: Any) -> Line2D:  # noqa: ANN401
        """Return a legend handle."""
        return Line2D([], [], linestyle="none", **self.style(), **more)

    def style(self) -> dict[str, Any]:
        """Return matplotlib's names for it."""
        return {
            "marker": self.shape,
            "fillstyle": self.fill,
            "color": self.colour,
            "markerfacecoloralt": "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.2,
            "markersize": 7.0,
        }


@dataclass(frozen=True)
class _Drawn:
    """What is drawn in every panel."""

    table: pd.DataFrame
    points: Points
    marks: dict[tuple[str, str], _Mark]

    @property
    def is_sweep(self) -> bool:
        return any(self.points.values())

    def places(
        self, rows: Sequence[dict[Any, Any]], x_column: str, y_column: str
    ) -> Iterator[tuple[float, float, dict[Any, Any]]]:
        """Yield the rows that have both values, with the values."""
        for row in rows:
            x, y = _number(row.get(x_column)), _number(row.get(y_column))
            if x is not None and y is not None:
                yield x, y, row


def write_figure(
    table: pd.DataFrame, measured: Sequence[Measure], folder: Path, points: Points | None = None
) -> tuple[Path, ...]:
    """Draw diversity against every score and write it as SVG and PNG.

    The same table gives the same bytes: neither file holds a date or a version.

    Args:
        table: the result table, one row a cell.
        measured: the measures of the run; without scores the figure is a dot plot of diversity.
        folder: where to write.
        points: of a sweep, what is written beside the marks.

    Returns:
        The files written: SVG, then PNG.
    """
    svg, png = folder / f"{FIGURE_NAME}.svg", folder / f"{FIGURE_NAME}.png"
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.style.context([_STYLE], after_reset=True):
        figure = diversity_vs_scores(table, measured, points or {})
        with written_whole(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata=no_metadata)
        with written_whole(png) as temporary:
            figure.savefig(temporary, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return svg, png


def diversity_vs_scores(table: pd.DataFrame, measured: Sequence[Measure], points: Points) -> Figure:
    """Return the figure: one panel a score, which all share the axis of diversity."""
    scores = [measure for measure in measured if measure.kind == "score"]
    if not scores:
        return _dot_plot(table, points)
    columns = min(len(scores), 3)
    rows = math.ceil(len(scores) / columns)
    width, height = max(3.4 * columns, 4.6), 3.0 * rows + 0.6
    drawn = _Drawn(table, points, _marks(table))
    if not cost_varies(table, points):
        figure = Figure(figsize=(width, height), layout="constrained")
        _against_scores(figure, drawn, scores, rows, columns)
        _legend(figure, table, drawn.marks)
        return figure
    costs = [DIVERSITY, *scores]
    more = math.ceil(len(costs) / COST_COLUMNS)
    # Flatter, so that both parts fit beside a table on a page.
    upper_height, lower_height = 2.6 * rows, 2.0 * more + 0.6
    figure = Figure(figsize=(width, upper_height + lower_height), layout="constrained")
    ratios = (upper_height, lower_height)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
    _against_scores(upper, drawn, scores, rows, columns)
    _against_cost(lower, drawn, costs, more)
    _legend(lower, table, drawn.marks)
    return figure


def _against_scores(
    figure: FigureBase, drawn: _Drawn, scores: Sequence[Measure], rows: int, columns: int
) -> None:
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, score in zip(axes, scores, strict=False):
        _panel(axis, drawn, score.column, DIVERSITY.column)
        _literal(axis.set_xlabel(_axis_title(score)))
    for row in range(rows):
        axes[row * columns].set_ylabel(_axis_title(DIVERSITY))
    for axis in axes[len(scores) :]:
        axis.set_axis_off()
    for axis, score in zip(axes, scores, strict=False):
        # The diversity axis is shared: its limits are known only once all panels are drawn.
        _equal_products(axis, score)


def _against_cost(
    figure: FigureBase, drawn: _Drawn, measured: Sequence[Measure], rows: int
) -> None:
    columns = min(len(measured), COST_COLUMNS)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, measure in zip(axes, measured, strict=False):
        _panel(axis, drawn, "nfe", measure.column)
        axis.set_xlabel("NFE for one image")
        _literal(axis.set_ylabel(_axis_title(measure)))
    for axis in axes[len(measured) :]:
        axis.set_axis_off()


def _panel(axis: Axes, drawn: _Drawn, x_column: str, y_column: str) -> None:
    places = list(drawn.places(drawn.table.to_dict("records"), x_column, y_column))
    size = {"markersize": 4.5} if drawn.is_sweep else {}  # there are many
    for x, y, row in places:
        mark = drawn.marks[row["model"], row["method"]]
        axis.errorbar(
            x,
            y,
            xerr=_errors(row, x_column, x),
            yerr=_errors(row, y_column, y),
            elinewidth=0.4 if drawn.is_sweep else 0.9,
            capsize=0,
            ecolor=mark.colour,
            zorder=3,
            **mark.style() | size,
        )
    _sweep(axis, drawn, x_column, y_column)
    axis.margins(0.12)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if not places:
        axis.text(
            0.5,
            0.5,
            "no cell with both diversity and score",
            ha="center",
            transform=axis.transAxes,
            color="#666666",
        )


def _sweep(axis: Axes, drawn: _Drawn, x_column: str, y_column: str) -> None:
    """Join the cells along a sweep, and write beside their marks where on it they are."""
    n_points = sum(bool(point) for point in drawn.points.values())
    labels: list[Label] = []
    for line in sweep_lines(drawn.table, drawn.points):
        places = list(drawn.places(line, x_column, y_column))
        colour = drawn.marks[line[0]["model"], line[0]["method"]].colour
        axis.plot([x for x, _, _ in places], [y for _, y, _ in places], color=colour, linewidth=0.7)
        labelled = places if n_points <= POINTS_LABELLED else places[:1] + places[1:][-1:]
        labels += [
            Label(x, y, colour, _short(", ".join(drawn.points[row["cell"]].values())))
            for x, y, row in labelled
        ]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for label in stacked(labels, right - left, top - bottom):
        text = axis.annotate(
            label.text, (label.x, label.y), (4, 4), textcoords="offset points", fontsize=6
        )
        text.set_color(label.colour)
        _literal(text)


def _equal_products(axis: Axes, score: Measure) -> None:
    """Draw faint curves of equal Diversity × score: a cell further out has the greater Div-X."""
    if not score.higher_is_better or not axis.has_data():
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    x, y = np.meshgrid(
        np.linspace(max(left, 0.0), right, 120), np.linspace(max(bottom, 0.0), top, 120)
    )
    levels = [
        v for v in MaxNLocator(6).tick_values(float((x * y).min()), float((x * y).max())) if v
    ]
    curves = axis.contour(x, y, x * y, levels=levels, colors="#c4c4c4", linewidths=0.6, zorder=1)
    axis.clabel(curves, fmt="%g", fontsize=6, colors="#8a8a8a")
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def _dot_plot(table: pd.DataFrame, points: Points) -> Figure:
    """Return diversity by cell with its interval, for a run without a judge."""
    rows = table.to_dict("records")
    figure = Figure(figsize=(6.4, 0.3 * len(rows) + 1.2), layout="constrained")
    axis, marks = figure.subplots(), _marks(table)
    for place, row in enumerate(rows):
        value = _number(row.get(DIVERSITY.column))
        if value is not None:
            mark = marks[row["model"], row["method"]]
            errors = _errors(row, DIVERSITY.column, value)
            axis.errorbar(value, place, xerr=errors, elinewidth=0.9, **mark.style())
    several_models = table["model"].nunique() > 1
    names = [f"{r['model']} · {r['method']}" if several_models else r["method"] for r in rows]
    at = [", ".join(points.get(r["cell"], {}).values()) for r in rows]
    names = [f"{name} ({point})" if point else name for name, point in zip(names, at, strict=True)]
    axis.set_yticks(range(len(rows)), [_short(name) for name in names])
    for label in axis.get_yticklabels():
        _literal(label)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(_axis_title(DIVERSITY))
    return figure


def _marks(table: pd.DataFrame) -> dict[tuple[str, str], _Mark]:
    """Return how each (model, method) is drawn, by their order in the table."""
    models, methods = list(table["model"].unique()), list(table["method"].unique())
    return {
        (model, method): _Mark(
            COLOURS[m % len(COLOURS)], SHAPES[m % len(SHAPES)], FILLS[n % len(FILLS)]
        )
        for n, model in enumerate(models)
        for m, method in enumerate(methods)
    }


def _legend(figure: FigureBase, table: pd.DataFrame, marks: dict[tuple[str, str], _Mark]) -> None:
    models, methods = list(table["model"].unique()), list(table["method"].unique())
    handles = [marks[models[0], method].line() for method in methods]
    names = list(methods)
    if len(models) > 1:
        fills = [marks[model, methods[0]].fill for model in models]
        handles += [_Mark("#666666", "o", fill).line() for fill in fills]
        names += models
    widest = max(len(_short(name)) for name in names)
    per_row = max(1, min(len(names), 110 // (widest + 8)))
    legend = figure.legend(
        handles,
        [str(n) for n in range(len(names))],
        loc="outside lower center",
        ncols=per_row,
        frameon=False,
        handletextpad=0.3,
    )
    _name(legend, names)


def _name(legend: Legend, names: Sequence[str]) -> None:
    """Write the names as they are: matplotlib hides a label that begins with an underscore."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_short(name))
        _literal(text)


def _literal(text: Text) -> None:
    """Let dollar signs in a user's name be dollar signs, not mathematics."""
    text.set_parse_math(False)


def _axis_title(measure: Measure) -> str:
    return f"{_printable(measure.display_name)} {measure.arrow}"


def _printable(name: str) -> str:
    """Return `name` without characters that XML forbids."""
    return "".join(c if c.isprintable() else " " for c in name)


def _short(name: str) -> str:
    printable = _printable(name)
    return printable if len(printable) <= LABEL_LENGTH else f"{printable[: LABEL_LENGTH - 1]}…"


def _number(value: object) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _errors(row: dict[Any, Any], column: str, value: float) -> list[list[float]] | None:
    """Return the two lengths of an error bar; None where there is no interval."""
    low, high = _number(row.get(f"{column}_low")), _number(row.get(f"{column}_high"))
    if low is None or high is None:
        return None
    # An interval need not hold the value; a negative length is refused by matplotlib.
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]
