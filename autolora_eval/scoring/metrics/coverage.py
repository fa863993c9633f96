"""Coverage: how much of a reference set the images reach."""

from __future__ import annotations

import numpy as np

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric

K = 5  # the paper's
_ROUNDING = 1e-12  # of cosines of the same two vectors


def coverage(features: Floats, reference: Floats, k: int = K) -> float:
    """Return 1/M Σ_i 1[min_j ‖u(x_j) − u(r_i)‖ ≤ ρ_k(r_i)], u(x) = f(x)/‖f(x)‖.

    The share of the reference's images that have an image x_j at least as near as the k-th nearest
    of the other reference images, whose distance is ρ_k. Of N and M images of one distribution it
    is 1 − (M−1)⋯(M−k)/((M+N−1)⋯(M+N−k)) on average, whatever the distribution, as the paper shows:
    it is to be compared between cells of the same numbers. The paper takes the distance of the
    features themselves, and a neighbourhood without its edge; here it is that of their directions,
    as everywhere in this package, and the edge is in, so that a set covers itself also where it
    holds one image several times.
    O((N + M)·M·D) time.

    Args:
        features: float64 [N, D], N ≥ 1.
        reference: float64 [M, D], M > k.
        k: neighbours.

    Returns:
        In [0, 1]; 1 of a set against itself.
    """
    images, others = unit_vectors(features), unit_vectors(reference)
    among = others @ others.T
    np.fill_diagonal(among, np.inf)  # an image is none of its own neighbours
    # By ‖u − v‖² = 2 − 2 cos(u, v) the nearest have the greatest cosine.
    radius = -np.partition(-among, k, axis=1)[:, k]
    nearest = (others @ images.T).max(axis=1)
    return float(np.mean(nearest >= radius - _ROUNDING))


METRIC = DiversityMetric(
    name="coverage",
    display_name="Coverage",
    label="Coverage",
    function=coverage,
    low=0.0,
    high=1.0,
    equation=f"1/M Σ_i 1[min_j ‖u(x_j) − u(r_i)‖ ≤ ρ_{K}(r_i)], ρ_{K} the distance to the "
    f"{K}th nearest other image of the reference, u = f/‖f‖",
    source="Naeem et al. 2020, arXiv 2002.09797",
    least_images=1,
    against_reference=True,
    least_reference=K + 1,
)
