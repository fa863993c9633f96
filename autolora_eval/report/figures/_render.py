"""Finds the kinds of figures, draws what a run has of each, and writes the files."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
import warnings
from functools import cache
from pathlib import Path

import matplotlib.style

from autolora_eval._files import atomic_write
from autolora_eval.report.figures._base import (
    Drawing,
    DrawnFigure,
    FigureData,
    FigureKind,
)
from autolora_eval.report.figures._style import PNG_DPI, STYLE, settle


@cache
def kinds() -> tuple[FigureKind, ...]:
    """Return every kind of figure, by its stated place.

    Raises:
        ValueError: two files declare one name.
    """
    package = importlib.import_module("autolora_eval.report.figures")
    found: dict[str, FigureKind] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        declared: FigureKind = importlib.import_module(f"{package.__name__}.{module.name}").FIGURE
        if declared.name in found:
            raise ValueError(f"two kinds of figures are named '{declared.name}'")
        found[declared.name] = declared
    return tuple(sorted(found.values(), key=lambda kind: (kind.place, kind.name)))


def draw_figures(data: FigureData, folder: Path) -> list[DrawnFigure]:
    """Draw every figure that a run has, and write each as SVG and PNG.

    The same tables give the same bytes: neither file holds a date or a version.

    Args:
        data: what to draw.
        folder: where to write.

    Returns:
        The figures in order.
    """
    drawn: dict[str, DrawnFigure] = {}
    for kind in kinds():
        for drawing in kind.drawings(data):
            # Such as of two models whose names are the same in a file's name.
            alike = (f"_{n}" for n in itertools.count(2))
            name = drawing.name
            while name in drawn:
                name = drawing.name + next(alike)
            drawn[name] = _write(kind.name, dataclasses.replace(drawing, name=name), folder)
    return list(drawn.values())


def _write(kind: str, drawing: Drawing, folder: Path) -> DrawnFigure:
    svg, png = folder / f"{drawing.name}.svg", folder / f"{drawing.name}.png"
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.style.context([STYLE], after_reset=True), warnings.catch_warnings():
        # The SVG has the characters all the same, in a font of its reader's.
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
