"""One look for all figures: colours, shapes, and other people's text made safe to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.lines import Line2D
from matplotlib.text import Text

from autolora_eval.analysis.measures import Measure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import FigureBase
    from matplotlib.legend import Legend

Fill = Literal["full", "none", "left", "bottom", "right", "top"]

PNG_DPI = 200
# Okabe and Ito's colours without the yellow, which vanishes on white; the shapes carry the same
# information, so that the figure also reads in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
FILLS: tuple[Fill, ...] = ("full", "none", "left", "bottom", "right", "top")
GREY = "#666666"
LABEL_LENGTH = 32
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
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
class Mark:
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


def marks(table: pd.DataFrame) -> dict[tuple[str, str], Mark]:
    """Return how each (model, method) is drawn, by their order in the table."""
    models, methods = list(table["model"].unique()), list(table["method"].unique())
    return {
        (model, method): Mark(
            COLOURS[m % len(COLOURS)], SHAPES[m % len(SHAPES)], FILLS[n % len(FILLS)]
        )
        for n, model in enumerate(models)
        for m, method in enumerate(methods)
    }


def legend(figure: FigureBase, table: pd.DataFrame) -> None:
    """Put a legend of methods, and of models where there are several, below a figure."""
    drawn = marks(table)
    models, methods = list(table["model"].unique()), list(table["method"].unique())
    handles = [drawn[models[0], method].line() for method in methods]
    names = list(methods)
    if len(models) > 1:
        fills = [drawn[model, methods[0]].fill for model in models]
        handles += [Mark(GREY, "o", fill).line() for fill in fills]
        names += models
    widest = max(len(short(name)) for name in names)
    per_row = max(1, min(len(names), 110 // (widest + 8)))
    made = figure.legend(
        handles,
        [str(n) for n in range(len(names))],
        loc="outside lower center",
        ncols=per_row,
        frameon=False,
        handletextpad=0.3,
    )
    _name(made, names)


def _name(legend: Legend, names: Sequence[str]) -> None:
    """Write the names as they are: matplotlib hides a label that begins with an underscore."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(short(name))
        literal(text)


def literal(text: Text) -> None:
    """Let dollar signs in a user's name be dollar signs, not mathematics."""
    text.set_parse_math(False)


def axis_title(measure: Measure) -> str:
    """Return the name of a measure with its direction."""
    return f"{_printable(measure.display_name)} {measure.arrow}"


def _printable(name: str) -> str:
    """Return `name` without characters that XML forbids."""
    return "".join(c if c.isprintable() else " " for c in name)


def short(name: str, length: int = LABEL_LENGTH) -> str:
    """Return a name that fits beside a mark: printable, and cut where it is too long."""
    printable = _printable(name)
    return printable if len(printable) <= length else f"{printable[: length - 1]}…"


def number(value: object) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def errors(row: Mapping[Any, Any], column: str, value: float) -> list[list[float]] | None:
    """Return the two lengths of an error bar; None where there is no interval."""
    low, high = number(row.get(f"{column}_low")), number(row.get(f"{column}_high"))
    if low is None or high is None:
        return None
    # An interval need not hold the value; a negative length is refused by matplotlib.
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: "A", "A and B", "A, B and C"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def in_words(name: str) -> str:
    """Return the name of a parameter as words."""
    return name.replace("_", " ")
