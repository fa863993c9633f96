"""The Vendi score: how many different images there are, in effect."""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric


def vendi_score(features: Floats) -> float:
    """Return exp(−Σ λ_i log λ_i) of the eigenvalues λ of K/N, K_ij = cos(f(x_i), f(x_j)).

    The eigenvalues that are not zero are those of UᵀU/N too, U the unit vectors: the smaller of
    the two matrices is taken, O(N·D·min(N, D)).

    Args:
        features: float64 [N, D]; their scale does not matter.

    Returns:
        In [1, N]: 1 where all are alike, N where all are orthogonal.
    """
    units = unit_vectors(features)
    n, dim = units.shape
    gram = units @ units.T if n <= dim else units.T @ units
    # What lies below zero is rounding.
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
