"""The Vendi score: the effective number of different images."""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric


def vendi_score(features: Floats) -> float:
    """Return exp(−Σ λ_i log λ_i) of the eigenvalues λ of K/N, K_ij = cos(f(x_i), f(x_j)).

    K = UUᵀ has the same non-zero eigenvalues as UᵀU, where U are the unit vectors. The smaller of
    the two matrices is used, so this takes O(N·D·min(N, D)) time.

    Args:
        features: float64 [N, D]; the length of a vector does not matter.

    Returns:
        A value in [1, N]: 1 if all images are equal, N if all are orthogonal.
    """
    units = unit_vectors(features)  # [N, D]
    n, dim = units.shape
    gram = units @ units.T if n <= dim else units.T @ units
    # Rounding can make eigenvalues slightly negative.
    eigenvalues = np.clip(np.linalg.eigvalsh(gram) / n, 0.0, None)
    return float(np.exp(entr(eigenvalues).sum()))


METRIC = DiversityMetric(
    name="vendi",
    display_name="Vendi score",
    label="Vendi",
    function=vendi_score,
    low=1.0,
    equation="exp(−Σ λ_i log λ_i), λ the eigenvalues of K/N, K_ij = cos(f(x_i), f(x_j))",
    source="Friedman and Dieng 2022, arXiv 2210.02410",
)
