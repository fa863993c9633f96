"""A figure: the diversity of each cell as bars. A second one fails."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from autolora_eval import Drawing, FigureData, FigureKind


def _bars(data: FigureData) -> Iterator[Drawing]:
    def draw() -> Figure:
        figure, axes = plt.subplots()
        axes.barh(list(data.table["cell"]), list(data.table["diversity"]))
        return figure

    yield Drawing("bars", "Bars", "The diversity of each cell.", "Bars of diversity.", draw)


def _broken(data: FigureData) -> Iterator[Drawing]:
    raise RuntimeError("no such column")


BARS = FigureKind("bars", 10, _bars)
BROKEN = FigureKind("broken_bars", 20, _broken)
