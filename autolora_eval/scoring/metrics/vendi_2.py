"""The Vendi score of order 2, which weights rare images less and needs no eigenvalues."""

from __future__ import annotations

import numpy as np

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric


def vendi_score_of_order_2(features: Floats) -> float:
    """Return 1/Σ λ_i² = N²/Σ_ij K_ij², λ the eigenvalues of K/N, K_ij = cos(f(x_i), f(x_j)).

    This is the exponential of the Rényi entropy of order 2. The Vendi score uses Shannon's entropy
    and is never smaller. UUᵀ and UᵀU have the same Frobenius norm, and the smaller of the two is
    used, so this takes O(N·D·min(N, D)) time.

    Args:
        features: float64 [N, D]; the length of a vector does not matter.

    Returns:
        A value in [1, N]: 1 if all images are equal, N if all are orthogonal.
    """
    units = unit_vectors(features)  # [N, D]
    n, dim = units.shape
    gram = units @ units.T if n <= dim else units.T @ units
    return float(n**2 / np.square(gram).sum())


METRIC = DiversityMetric(
    name="vendi_2",
    display_name="Vendi score of order 2",
    label="Vendi-2",
    function=vendi_score_of_order_2,
    low=1.0,
    equation="N²/Σ_ij K_ij², K_ij = cos(f(x_i), f(x_j))",
    source="Pasarkar and Dieng 2023, arXiv 2310.12952",
)
