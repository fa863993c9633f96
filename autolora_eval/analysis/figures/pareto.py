"""The Pareto front: the cells of which no other is better in one respect and as good in all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pareto_front(
    points: npt.NDArray[np.float64], higher_is_better: Sequence[bool]
) -> npt.NDArray[np.bool_]:
    """Tell which points no other point dominates.

    A point dominates another if it is at least as good in every respect and better in one, so
    that of equal points all or none are on the front.

    Args:
        points: float64 [n, k]; one with a NaN is neither on the front nor dominates.
        higher_is_better: direction of each of the k respects.

    Returns:
        bool [n].
    """
    directed = np.where(np.asarray(higher_is_better), points, -points)
    known = np.flatnonzero(np.isfinite(directed).all(axis=1))
    front = np.zeros(len(points), dtype=np.bool_)
    found = directed[known]
    for place, point in zip(known, found, strict=True):
        as_good = (found >= point).all(axis=1)
        front[place] = not (as_good & (found > point).any(axis=1)).any()
    return front
