"""The Vendi score of order 2, which counts rare images less, and needs no eigenvalues."""

from __future__ import annotations

import numpy as np

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric


def vendi_score_of_order_2(features: Floats) -> float:
    """Return 1/Σ λ_i² = N²/Σ_ij K_ij², λ the eigenvalues of K/N, K_ij = cos(f(x_i), f(x_j)).

    The exponential of the Rényi entropy of order 2, where the Vendi score has Shannon's: never
    more than that. ‖UUᵀ‖ = ‖UᵀU‖: the smaller of the two is made, O(N·D·min(N, D)).

    Args:
        features: float64 [N, D]; their scale does not matter.

    Returns:
        In [1, N]: 1 where all are alike, N where all are orthogonal.
    """
    units = unit_vectors(features)
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
