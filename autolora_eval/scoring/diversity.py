"""Diversity of one prompt's images: equation (8) of the AutoLoRA paper.

    Diversity(X) = 1 − 2/(N(N−1)) Σ_{i<j} cos(f(x_i), f(x_j))

f maps an image to a feature vector. With unit vectors u_i = f(x_i)/‖f(x_i)‖ and their sum
s = Σ_i u_i,

    ‖s‖² = Σ_i ‖u_i‖² + 2 Σ_{i<j} u_i·u_j = N + 2 Σ_{i<j} cos(f(x_i), f(x_j)),

so equation (8) is 1 − (‖s‖² − N)/(N(N−1)), which takes O(N·D) time instead of N(N−1)/2 cosines.
Leaving out image i replaces s by s − u_i, so the N leave-one-out values of the jackknife take
O(N·D) time as well. No unit vector is stored: s = Σ_i f(x_i)/‖f(x_i)‖ and s·u_i = s·f(x_i)/‖f(x_i)‖
are computed in float64 from one block of features after the other. In addition to the features,
this takes O(N + D) memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Diversity", "diversity"]

Floats = npt.NDArray[np.float64]
BLOCK = 65_536  # entries of a block in float64: 512 KB stay in the cache of a core


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

    Examples:
        >>> diversity([[1.0, 0.0], [0.0, 1.0]]).value
        1.0

    Args:
        features: one row per image, float of shape (N, D): an array, list or torch tensor. The
            length of a vector does not matter.

    Returns:
        The value and its standard error. `value` is None, with a reason, if there are fewer than
        two images or if a vector is zero or not finite.

    Raises:
        ValueError: if `features` is not a matrix.
    """
    matrix = as_matrix(features)
    n = len(matrix)
    if n < 2:
        return Diversity(None, None, n, f"needs at least 2 images, has {n}")
    total = sum_of_units(matrix)
    if not (len(total) and np.isfinite(total).all()):
        return Diversity(None, None, n, "a feature vector is zero or not finite")
    # Mathematically ‖s‖ ≤ N, so a negative value is a rounding error of equal vectors.
    value = max(0.0, one_minus_mean_cosine(total, n))
    if n < 3:
        return Diversity(value, None, n)
    return Diversity(value, jackknife_standard_error(leave_one_out(matrix, total)), n)


def sum_of_units(features: npt.NDArray[Any]) -> Floats:
    """Return s = Σ u_i, float64 [D], of features [N, D].

    It is NaN if a vector is zero or not finite.
    """
    total = np.zeros(features.shape[1])
    for block, scales in scaled_blocks(features):
        total += scales @ block
    return total


def scaled_blocks(features: npt.NDArray[Any]) -> Iterator[tuple[Floats, Floats]]:
    """Yield features in blocks of consecutive rows f_i, [B, D], with 1/‖f_i‖, [B]."""
    rows = max(1, BLOCK // max(1, features.shape[1]))
    for start in range(0, len(features), rows):
        block = np.asarray(features[start : start + rows], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("nd,nd->n", block, block)
        if not ((squares > 1e-200) & (squares < 1e200)).all():  # rare: too long, too short, or NaN
            block, squares = unit_vectors(block), np.ones(len(block))
        yield block, 1.0 / np.sqrt(squares)


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


def leave_one_out(features: npt.NDArray[Any], total: Floats | None = None) -> Floats:
    """Return equation (8) without image i, for each i, float64 [N].

    Args:
        features: float [N, D], N ≥ 3, no vector zero or not finite.
        total: s, where it is known.
    """
    n = len(features) - 1
    s = sum_of_units(features) if total is None else total  # [D]
    # ‖s − u_i‖² = ‖s‖² − 2 s·u_i + ‖u_i‖², where ‖u_i‖ = 1, and s·u_i is `along`, [N].
    along = np.concatenate([scales * (block @ s) for block, scales in scaled_blocks(features)])
    return np.asarray(1.0 - (s @ s - 2.0 * along + 1.0 - n) / (n * (n - 1)))


def jackknife_standard_error(leave_one_out_values: npt.ArrayLike) -> float:
    """Return √((n−1)/n · Σ_i (θ_(i) − θ̄)²) (Efron and Stein 1981, doi 10.1214/aos/1176345462).

    Args:
        leave_one_out_values: θ_(i), the statistic without unit i: float [n], n ≥ 2.
    """
    values = np.asarray(leave_one_out_values, dtype=np.float64)
    n = len(values)
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))


def as_matrix(features: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return features as an array [N, D]; a torch tensor may be on any device.

    Raises:
        ValueError: if they have another shape.
    """
    if hasattr(features, "detach"):
        # NumPy cannot read tensors that require a gradient, are on a GPU, or are bfloat16.
        tensor = features.detach().cpu()
        features = (tensor if tensor.element_size() > 2 else tensor.float()).numpy()
    matrix = np.asarray(features)
    if matrix.ndim != 2:
        raise ValueError(f"expected features of shape [N, D], got {list(matrix.shape)}")
    return matrix
