"""Diversity of one prompt's images: equation (8) of the AutoLoRA paper.

    Diversity(X) = 1 − 2/(N(N−1)) Σ_{i<j} cos(f(x_i), f(x_j))

f maps an image to a feature vector. With unit vectors u_i = f(x_i)/‖f(x_i)‖ and their sum
s = Σ_i u_i,

    ‖s‖² = Σ_i ‖u_i‖² + 2 Σ_{i<j} u_i·u_j = N + 2 Σ_{i<j} cos(f(x_i), f(x_j)),

so the N(N−1)/2 cosines are not needed one by one: equation (8) is 1 − (‖s‖² − N)/(N(N−1)). This
takes O(N·D) time. Leaving out image i replaces s by s − u_i, so the N leave-one-out values of the
jackknife take O(N·D) time as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Diversity", "diversity"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Diversity:
    """The diversity of a set of images, or the reason why it is undefined.

    Attributes:
        value: equation (8), in [0, 1 + 1/(N−1)]; None if undefined.
        standard_error: jackknife standard error over images; None if N < 3.
        n: number of images, N.
        reason: why `value` is None; None if it is defined.
    """

    value: float | None
    standard_error: float | None
    n: int
    reason: str | None = None


def diversity(features: npt.ArrayLike) -> Diversity:
    """Return equation (8) for a set of feature vectors, with its jackknife standard error.

    Example:
        >>> diversity([[1.0, 0.0], [0.0, 1.0]]).value
        1.0

    Args:
        features: float [N, D], one row for each image; an array, list or torch tensor. The length
            of a vector does not matter.

    Returns:
        The value and its standard error. `value` is None, with a reason, if there are fewer than
        two images or if a vector is zero or not finite.

    Raises:
        ValueError: if `features` is not a matrix.
    """
    matrix = np.asarray(as_array(features))
    if matrix.ndim != 2:
        raise ValueError(f"expected features of shape [N, D], got {list(matrix.shape)}")
    n = len(matrix)
    if n < 2:
        return Diversity(None, None, n, f"needs at least two images, has {n}")
    units = unit_vectors(matrix)  # [N, D]
    if not (units.shape[1] and np.isfinite(units).all()):
        return Diversity(None, None, n, "a feature vector is zero or not finite")
    # Mathematically ‖s‖ ≤ N, so a negative value is a rounding error of equal vectors.
    value = max(0.0, one_minus_mean_cosine(units.sum(axis=0), n))
    if n < 3:
        return Diversity(value, None, n)
    return Diversity(value, jackknife_standard_error(leave_one_out(units)), n)


def unit_vectors(features: npt.ArrayLike) -> Floats:
    """Return u_i = f_i/‖f_i‖, float64 [N, D]. Zero or non-finite vectors become NaN."""
    matrix = np.asarray(features, dtype=np.float64)  # [N, D]
    # Divide by the largest entry first: squares of very large or small entries would overflow.
    largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0.0)  # [N, 1]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scaled = matrix / largest
        return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))


def one_minus_mean_cosine(total: Floats, n: int) -> float:
    """Return equation (8) from s = Σ u_i, float64 [D]: 1 − (‖s‖² − N)/(N(N−1))."""
    return float(1.0 - (total @ total - n) / (n * (n - 1)))


def leave_one_out(units: Floats) -> Floats:
    """Return equation (8) without image i, for each i, float64 [N].

    Args:
        units: unit vectors, float64 [N, D], N ≥ 3.
    """
    n = len(units) - 1
    total = units.sum(axis=0)  # s, [D]
    # ‖s − u_i‖² = ‖s‖² − 2 s·u_i + ‖u_i‖², [N]
    squares = total @ total - 2.0 * (units @ total) + np.einsum("nd,nd->n", units, units)
    return np.asarray(1.0 - (squares - n) / (n * (n - 1)))


def jackknife_standard_error(leave_one_out_values: npt.ArrayLike) -> float:
    """Return √((n−1)/n · Σ_i (θ_(i) − θ̄)²) (Efron and Stein 1981, doi 10.1214/aos/1176345462).

    Args:
        leave_one_out_values: θ_(i), the statistic without unit i: float [n], n ≥ 2.
    """
    values = np.asarray(leave_one_out_values, dtype=np.float64)
    n = len(values)
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))


def as_array(features: npt.ArrayLike) -> npt.ArrayLike:
    """Convert a torch tensor to an array; return anything else unchanged.

    NumPy cannot read tensors that require a gradient, lie on a GPU, or are bfloat16.
    """
    if hasattr(features, "detach"):
        return np.asarray(features.detach().cpu().double().numpy())
    return features
