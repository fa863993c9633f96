"""Coverage: the fraction of reference images that have a generated image nearby."""

from __future__ import annotations

import numpy as np

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric

K = 5  # as in the paper
_TOLERANCE = 1e-12  # rounding of the cosine of two equal vectors


def coverage(features: Floats, reference: Floats, k: int = K) -> float:
    """Return 1/M Σ_i 1[min_j ‖u(x_j) − u(r_i)‖ ≤ ρ_k(r_i)], u(x) = f(x)/‖f(x)‖.

    A reference image r_i is covered if an image x_j is at most as far away as the k-th nearest
    other reference image, whose distance is ρ_k(r_i). If both sets have the same distribution, the
    expected coverage is 1 − (M−1)⋯(M−k)/((M+N−1)⋯(M+N−k)), whatever the distribution (shown in the
    paper). It depends on N and M, so only cells with equal numbers of images are comparable.

    There are two differences from the paper: distances are between normalised features, as
    everywhere in this package, and a neighbourhood includes its boundary, so that a set covers
    itself even if it contains an image several times.

    Takes O((N + M)·M·D) time.

    Args:
        features: float64 [N, D], N ≥ 1.
        reference: float64 [M, D], M > k.
        k: number of neighbours.

    Returns:
        A value in [0, 1]; 1 for a set compared with itself.
    """
    images, others = unit_vectors(features), unit_vectors(reference)
    among = others @ others.T
    np.fill_diagonal(among, np.inf)  # an image is not its own neighbour
    # ‖u − v‖² = 2 − 2 cos(u, v): the nearest image has the largest cosine.
    radius = -np.partition(-among, k, axis=1)[:, k]
    nearest = (others @ images.T).max(axis=1)
    return float(np.mean(nearest >= radius - _TOLERANCE))


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
