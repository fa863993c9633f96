"""Finds the kinds of figures, draws those of a run, and writes the files."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from pathlib import Path

import matplotlib.style

from autolora_eval._errors import UsageError
from autolora_eval._files import atomic_write
from autolora_eval.plugins.registry import Origin, Registry
from autolora_eval.plugins.third_party import error_message
from autolora_eval.report.figures._base import (
    Drawing,
    DrawnFigure,
    FigureData,
    FigureKind,
)
from autolora_eval.report.figures._style import PNG_DPI, STYLE, settle

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
    another package that fails is logged and left out.

    Args:
        data: the tables to draw from.
        folder: the folder of the files.

    Returns:
        The figures in order.
    """
    drawn: dict[str, DrawnFigure] = {}
    for kind in figure_kinds():
        try:
            for drawing in kind.drawings(data):
                # Two models may have the same name in file names.
                numbered = (f"{drawing.name}_{n}" for n in itertools.count(2))
                name = drawing.name
                while name in drawn:
                    name = next(numbered)
                drawn[name] = _write(kind.name, dataclasses.replace(drawing, name=name), folder)
        except (Exception, SystemExit) as error:
            if not kind.origin:
                raise
            reason = f"{type(error).__name__}: {error_message(error)}"
            _log.warning("The figure '%s' of %s failed: %s", kind.name, kind.origin, reason)
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
