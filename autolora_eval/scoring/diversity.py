"""Diversity of one prompt's images: equation (8), by its closed form.

With unit vectors u_i and s = Σ u_i, the sum of all pairwise cosines is Σ_{i<j} cos = (‖s‖² − N)/2,
so that the N(N−1)/2 cosines need not be made: O(N·D) time, O(D) extra memory. The N leave-one-out
values follow from s − u_i in the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Diversity:
    """The diversity of a set of images, or why it is undefined.

    Attributes:
        value: equation (8), in [0, 1 + 1/(N−1)]; None if undefined.
        standard_error: by the jackknife over images; None below N = 3.
        n: number of images.
        reason: why `value` is None; None otherwise.
    """

    value: float | None
    standard_error: float | None
    n: int
    reason: str | None = None


def diversity(features: npt.ArrayLike) -> Diversity:
    """Return equation (8) of a set of feature vectors, with its jackknife standard error.

    Diversity(X) = 1 − 2/(N(N−1)) Σ_{i<j} cos(f(x_i), f(x_j)).

    Args:
        features: float [N, D], one row an image. Its scale does not matter.

    Returns:
        The value and its standard error; a `Diversity` with a reason where it is undefined:
        fewer than two images, a zero vector, or a value that is not finite.

    Raises:
        ValueError: `features` is not a matrix.
    """
    matrix = np.asarray(as_array(features))
    if matrix.ndim != 2:
        raise ValueError(f"expected features of shape [N, D], got {list(matrix.shape)}")
    n = len(matrix)
    if n < 2:
        return Diversity(None, None, n, f"needs at least two images, has {n}")
    units = unit_vectors(matrix)
    if not (units.shape[1] and np.isfinite(units).all()):
        return Diversity(None, None, n, "a feature vector is zero or not finite")
    # ‖s‖ ≤ N, so what lies below zero is rounding.
    value = max(0.0, one_minus_mean_cosine(units.sum(axis=0), n))
    if n < 3:
        return Diversity(value, None, n)
    return Diversity(value, jackknife_standard_error(leave_one_out(units)), n)


def as_array(features: npt.ArrayLike) -> npt.ArrayLike:
    """Return a tensor of torch as one that NumPy takes; anything else as it is.

    NumPy takes none with a gradient, of another device, or in bfloat16.
    """
    if hasattr(features, "detach"):
        return np.asarray(features.detach().cpu().double().numpy())
    return features


def unit_vectors(features: npt.ArrayLike) -> Floats:
    """Return u_i = f_i / ‖f_i‖ in float64, [N, D]; a vector that is zero or not finite gives NaN.

    Each row is first divided by its largest entry, so that no length is too great or too small to
    be squared.
    """
    matrix = np.asarray(features, dtype=np.float64)
    largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scaled = matrix / largest
        return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))


def one_minus_mean_cosine(total: Floats, n: int) -> float:
    """Equation (8) from s = Σ u_i, [D]: 1 − (‖s‖² − N)/(N(N−1))."""
    return float(1.0 - (total @ total - n) / (n * (n - 1)))


def leave_one_out(units: Floats) -> Floats:
    """Return equation (8) without image i, for each i.

    ‖s − u_i‖² = ‖s‖² − 2 s·u_i + ‖u_i‖².

    Args:
        units: unit vectors, float64 [N, D], N ≥ 3.

    Returns:
        float64 [N].
    """
    n = len(units) - 1
    total = units.sum(axis=0)
    squares = total @ total - 2.0 * (units @ total) + np.einsum("nd,nd->n", units, units)
    return np.asarray(1.0 - (squares - n) / (n * (n - 1)))


def jackknife_standard_error(leave_one_out_values: npt.ArrayLike) -> float:
    """Return the jackknife standard error √((n−1)/n · Σ (θ_(i) − θ̄)²) (Efron and Stein 1981).

    Args:
        leave_one_out_values: θ_(i), the statistic without unit i: float [n], n ≥ 2.
    """
    values = np.asarray(leave_one_out_values, dtype=np.float64)
    n = len(values)
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))
