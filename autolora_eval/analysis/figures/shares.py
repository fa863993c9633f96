"""How a cell's images share out over the values of a score, those without one included. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autolora_eval.scoring.diversity import Floats

# A scale of more whole numbers than these, or of values between them, is cut into equal parts.
MOST_LEVELS = 10
PARTS = 5


@dataclass(frozen=True)
class Levels:
    """The values of a score, told apart as a figure tells them.

    Attributes:
        edges: float64 [k + 1], ascending; a value on an edge belongs above it, the last below.
        names: of the k levels.
    """

    edges: Floats
    names: Sequence[str]


def levels(scores: Floats, low: float, high: float) -> Levels:
    """Return the levels of a score: its whole numbers where all scores are, else equal parts.

    Args:
        scores: float64 [n]; NaN where there is none.
        low: least possible score.
        high: greatest possible score.
    """
    known = scores[np.isfinite(scores)]
    whole = low.is_integer() and high.is_integer() and bool((known == known.round()).all())
    if whole and high - low <= MOST_LEVELS:
        values = np.arange(int(low), int(high) + 1)
        edges = np.arange(low - 0.5, high + 1.0)
        return Levels(edges, [str(value) for value in values])
    edges = np.linspace(low, high, PARTS + 1)
    names = [f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)]
    return Levels(edges, names)


def shares(scores: Floats, cells: npt.NDArray[np.intp], n_cells: int, of: Levels) -> Floats:
    """Return the share of each cell's images on each level, and of those without a score.

    Args:
        scores: float64 [n]; NaN where there is none.
        cells: place of each image's cell, [n].
        n_cells: number of cells.
        of: the k levels.

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
