"""Which part of an axis a panel shows, so that one wild interval does not flatten all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.report.figures._style import values

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Of the usual half of an interval; a panel has as much room, or that of its values, beyond them.
_USUAL = 3.0
_MARGIN = 0.05


def window(cells: pd.DataFrame, column: str) -> tuple[float, float] | None:
    """Return the ends of an axis that cuts intervals much longer than the others.

    Values, published ones too, all lie within it. Beyond them there is as much room as they take
    themselves, or three times half of the median interval if that is more.

    Args:
        cells: those of the panels that share the axis.
        column: what they show.

    Returns:
        Both ends, or None where nothing need be cut.
    """
    shown = np.concatenate([values(cells, column), values(cells, f"{column}_published")])
    low, high = (values(cells, f"{column}_{end}") for end in ("low", "high"))
    shown, is_known = shown[np.isfinite(shown)], np.isfinite(low) & np.isfinite(high)
    if not (len(shown) and is_known.any()):
        return None
    low, high = low[is_known], high[is_known]
    room = max(float(np.ptp(shown)), _USUAL * float(np.median(high - low)) / 2.0)
    bottom, top = shown.min() - room, shown.max() + room
    if low.min() >= bottom and high.max() <= top:
        return None
    bottom = max(bottom, min(low.min(), shown.min()))
    top = min(top, max(high.max(), shown.max()))
    margin = _MARGIN * (top - bottom)
    return float(bottom - margin), float(top + margin)


def cut_axis(axis: Axes, cells: pd.DataFrame, column: str) -> None:
    """Give a panel its window; without one its limits stay open to what is drawn later."""
    found = window(cells, column)
    if found:
        axis.set_ylim(*found)


def cut(cells: pd.DataFrame, metrics: Sequence[Measure]) -> Iterator[str]:
    """Yield a sentence on the intervals that are cut, if there are any."""
    labels = [metric.label for metric in metrics if window(cells, metric.column)]
    if labels:
        yield f"Cut at the edge, for they reach far beyond: intervals of {', '.join(labels)}."
