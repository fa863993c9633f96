"""One look for all figures: sizes, colours, shapes, and other people's text made safe to draw.

A figure is as wide as a page's text, so that a size stated here is the size in print. Colour never
says anything alone: methods differ in shape and dashes too, and shares in how dark they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autolora_eval.analysis.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Fill = Literal["full", "none", "left", "bottom", "right", "top"]
Dash = str | tuple[int, tuple[float, ...]]

PNG_DPI = 200
WIDTH = 6.7  # inches: the text of an A4 page with margins of 20 mm
MAX_HEIGHT = 8.8  # leaves room for a caption on that page
SMALL = 6.5  # points: the smallest text
METRICS_ACROSS, METRICS_DOWN = 3, 6  # panels of different metrics
# Okabe and Ito's colours without the yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Dash, ...] = (
    *("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1))),
    (0, (8, 2)),
    (0, (2, 2)),
)
# A hollow mark is a published value.
FILLS: tuple[Fill, ...] = ("full", "left", "bottom", "right", "top")
# Widths of characters and height of a line, in font sizes.
_EAST_ASIAN, _BROAD, _CAPITAL, _NARROW, _TALL = 1.1, 0.98, 0.73, 0.62, 1.25
GREY, LIGHT, DARK = "#666666", "#c4c4c4", "#222222"
LABEL_LENGTH = 40
LINE_HEIGHT = 0.17  # inches, of a line of a legend
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.5,
    # Dollar signs in names are not mathematics.
    "text.parse_math": False,
    "svg.fonttype": "none",
    # Without a salt, matplotlib names the parts of an SVG at random.
    "svg.hashsalt": "autolora-eval",
}


@dataclass(frozen=True)
class MarkerStyle:
    """How a cell is drawn: colour, shape and dashes say the method, the fill says the model."""

    colour: str
    shape: str
    fill: Fill
    dash: Dash = "solid"

    def handle(self) -> Line2D:
        """Return a legend handle."""
        return Line2D([], [], linestyle="none", **self.style())

    def style(self, size: float = 6.0) -> dict[str, Any]:
        """Return matplotlib's names for it."""
        return {
            "marker": self.shape,
            "fillstyle": self.fill,
            "color": self.colour,
            "markerfacecoloralt": "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 0.17 * size,
            "markersize": size,
        }

    def hollow(self, size: float = 6.0) -> dict[str, Any]:
        """Return matplotlib's names for a published value of the same method."""
        return self.style(size) | {"fillstyle": "none", "markeredgewidth": 0.13 * size}


def marker_styles(table: pd.DataFrame) -> dict[tuple[str, str], MarkerStyle]:
    """Return how each (model, method) is drawn, by their order in the table."""
    models, methods = list(table["model"].unique()), list(table["method"].unique())
    return {
        (model, method): MarkerStyle(
            COLOURS[m % len(COLOURS)],
            SHAPES[m % len(SHAPES)],
            FILLS[n % len(FILLS)],
            DASHES[m % len(DASHES)],
        )
        for n, model in enumerate(models)
        for m, method in enumerate(methods)
    }


def method_styles(table: pd.DataFrame) -> dict[str, MarkerStyle]:
    """Return the style of each method, by order in the table, for figures with separate models."""
    first = table["model"].iloc[0]
    return {method: mark for (m, method), mark in marker_styles(table).items() if m == first}


@dataclass(frozen=True)
class Legend:
    """What a legend explains: handles and their names, in order."""

    handles: Sequence[Any]
    names: Sequence[str]

    @property
    def columns(self) -> int:
        """Number of columns."""
        widths = [text_size(short(name), 7.5)[0] + 36 for name in self.names]
        fits = sum(widths) <= 72 * WIDTH
        return len(widths) if fits else max(1, int(72 * WIDTH // max(widths)))

    @property
    def height(self) -> float:
        """Inches that it takes."""
        return LINE_HEIGHT * -(-len(self.names) // self.columns) + 0.12

    def put(self, figure: Figure) -> None:
        """Put it below a figure."""
        made = figure.legend(
            self.handles,
            # matplotlib hides labels that begin with an underscore, so they are set below.
            [str(n) for n in range(len(self.names))],
            loc="outside lower center",
            ncols=self.columns,
            frameon=False,
            handletextpad=0.5,
            handlelength=2.2,
            fontsize=7.5,
        )
        for text, name in zip(made.get_texts(), self.names, strict=True):
            text.set_text(short(name))


def method_legend(
    table: pd.DataFrame,
    x_columns: Sequence[str],
    y_columns: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> Legend:
    """Return the legend of a table's methods, of its models if there are several, and of more.

    Methods without a value in x or in y are left out.
    """
    drawn = marker_styles(table)
    x, y = (np.stack([values(table, c) for c in columns]) for columns in (x_columns, y_columns))
    known = np.asarray(np.isfinite(x).any(axis=0) & np.isfinite(y).any(axis=0))
    models, methods = list(table["model"].unique()), list(table["method"][known].unique())
    handles: list[Any] = [drawn[models[0], method].handle() for method in methods]
    if len(models) > 1:
        fills = {model: mark.fill for (model, _), mark in drawn.items()}
        handles += [MarkerStyle(GREY, "o", fills[model]).handle() for model in models]
        methods += models
    return Legend([*handles, *(more or {}).values()], [*methods, *(more or {})])


def panel_grid(
    shape: tuple[int, int],
    n_panels: int,
    height: float,
    key: Legend,
    **shared: Any,  # noqa: ANN401
) -> tuple[Figure, list[Axes]]:
    """Return a figure as wide as a page, with panels row by row and its legend below them.

    Args:
        shape: Rows and columns.
        n_panels: How many panels are used; the others are hidden.
        height: In inches, without the legend.
        key: The legend.
        **shared: Options of `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height + key.height), layout="constrained")
    axes = list(figure.subplots(*shape, squeeze=False, **shared).flat)
    for axis in axes[n_panels:]:
        axis.set_axis_off()
    key.put(figure)
    return figure, axes[:n_panels]


def metric_shape(n_metrics: int, n_across: int) -> tuple[int, int]:
    """Return the rows and columns of panels: a row per metric if several stand across."""
    n_columns = n_across if n_across > 1 else min(n_metrics, METRICS_ACROSS)
    return -(-n_metrics * n_across // n_columns), n_columns


def metrics_of_a_figure(metrics: Sequence[Metric], n_across: int) -> list[Sequence[Metric]]:
    """Return the metrics in parts that fit a page."""
    return in_parts(metrics, METRICS_DOWN * (1 if n_across > 1 else METRICS_ACROSS))


def name_panels(
    axes: Sequence[Axes], metrics: Sequence[Metric], n_columns: int, x_names: Sequence[str]
) -> None:
    """Name the metrics beside rows, or above panels if a row has several, and x where it ends."""
    room = 72 * (WIDTH / n_columns - 0.2)
    titles = [axis_title(metric) for metric in metrics]
    if any(text_size(title, 7.5)[0] >= room for title in titles):
        titles = [label_title(metric) for metric in metrics]
    for place, axis in enumerate(axes):
        if len(x_names) == 1:
            axis.set_title(titles[place], fontsize=7.5)
        elif place % n_columns == 0:
            axis.set_ylabel(label_title(metrics[place // n_columns]))
        if place + n_columns >= len(axes):  # the last panel of its column
            axis.set_xlabel(x_names[place % len(x_names)])
            axis.xaxis.set_tick_params(labelbottom=True)


T = TypeVar("T")


def in_parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return items in parts of at most `size`."""
    return [items[n : n + size] for n in range(0, len(items), size)]


def few_ticks(n: int = 5) -> MaxNLocator:
    """Return a locator of at most about n round numbers."""
    return MaxNLocator(n, steps=[1, 2, 5, 10])


def settle(figure: Figure) -> None:
    """Fix the layout of a figure, so that axes do not move when labels are placed."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        # Not "none": that is an engine, for which `savefig` draws the figure once more.
        figure.set_layout_engine(None)


def ink(colour: str) -> str:
    """Return a colour dark enough for small text on white."""
    red, green, blue = (int(colour[n : n + 2], 16) * 7 // 10 for n in (1, 3, 5))
    return f"#{red:02x}{green:02x}{blue:02x}"


def axis_title(metric: Metric) -> str:
    """Return the name of a metric with its direction."""
    return f"{short(metric.display_name, 60)} {metric.arrow}"


def label_title(metric: Metric) -> str:
    """Return the short name of a metric with its direction."""
    return f"{short(metric.label)} {metric.arrow}"


def text_size(text: str, points: float = SMALL) -> tuple[float, float]:
    """Return about how wide and high a text is, in points."""
    return points * sum(map(_width, text)), points * _TALL


def _width(character: str) -> float:
    if ord(character) >= 0x1100:
        return _EAST_ASIAN
    if character in "MWmw@%":
        return _BROAD
    return _CAPITAL if character.isupper() else _NARROW


def truncate_to_width(name: str, room: float, points: float = SMALL) -> str:
    """Return a name cut so that it is at most about `room` points wide."""
    text = short(name, 200)
    length = len(text)
    while length > 1 and text_size(text, points)[0] > room:
        length -= 1
        text = short(name, length)
    return text


def short(name: str, length: int = LABEL_LENGTH) -> str:
    """Return a name that fits beside a mark: of characters that XML has, cut in the middle.

    Long names of similar methods often differ only at their ends.
    """
    printable = "".join(c if c.isprintable() else " " for c in name)
    if len(printable) <= length:
        return printable
    n_last = (length - 1) // 2
    return f"{printable[: length - 1 - n_last]}…{printable[len(printable) - n_last :]}"


def values(table: pd.DataFrame, column: str) -> Floats:
    """Return a column as numbers, NaN where there is none, or no such column."""
    if column not in table:
        return np.full(len(table), np.nan)
    found = pd.to_numeric(table[column], errors="coerce").to_numpy(
        dtype=np.float64, na_value=np.nan
    )
    return np.where(np.isfinite(found), found, np.nan)


def bars(table: pd.DataFrame, column: str) -> Floats:
    """Return the lengths of error bars, float64 [2, n]; NaN where there is no interval."""
    value, (low, high) = values(table, column), interval_ends(table, column)
    # An interval may not contain its value, and matplotlib refuses negative lengths.
    return np.maximum(np.stack([value - low, high - value]), 0.0)


def interval_ends(table: pd.DataFrame, column: str) -> tuple[Floats, Floats]:
    """Return the lower and upper ends of a column's intervals."""
    return values(table, f"{column}_low"), values(table, f"{column}_high")


# ---- Limits of an axis: one very long interval must not flatten all others

_ROOM = 3.0  # beyond the values, in halves of the median interval
_MARGIN = 0.05


def clipped_limits(cells: pd.DataFrame, column: str) -> tuple[float, float] | None:
    """Return the limits of an axis that clips very long intervals; None if there are none.

    All values, including published ones, lie within the limits. Beyond them there is as much room
    as their range, or three times half of the median interval if that is more.
    """
    shown = np.concatenate([values(cells, column), values(cells, f"{column}_published")])
    low, high = interval_ends(cells, column)
    shown, is_known = shown[np.isfinite(shown)], np.isfinite(low) & np.isfinite(high)
    if not (len(shown) and is_known.any()):
        return None
    low, high = low[is_known], high[is_known]
    room = max(float(np.ptp(shown)), _ROOM * float(np.median(high - low)) / 2.0)
    bottom, top = shown.min() - room, shown.max() + room
    if low.min() >= bottom and high.max() <= top:
        return None
    bottom = max(bottom, min(low.min(), shown.min()))
    top = min(top, max(high.max(), shown.max()))
    margin = _MARGIN * (top - bottom)
    return float(bottom - margin), float(top + margin)


def clip_axis(axis: Axes, cells: pd.DataFrame, column: str) -> None:
    """Set the limits of a panel if intervals are clipped, else leave them to what is drawn."""
    found = clipped_limits(cells, column)
    if found:
        axis.set_ylim(*found)


def clipped_labels(cells: pd.DataFrame, metrics: Sequence[Metric]) -> list[str]:
    """Return the labels of the metrics with clipped intervals."""
    return [metric.label for metric in metrics if clipped_limits(cells, metric.column)]
