"""The mean distance between the normalised features of two images."""

from __future__ import annotations

import numpy as np

from autolora_eval.scoring.diversity import Floats, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric


def mean_distance(features: Floats) -> float:
    """Return 2/(N(N−1)) Σ_{i<j} ‖u_i − u_j‖, u_i = f(x_i)/‖f(x_i)‖.

    Equation (8) is half the mean of the squared distances, so it is at least half the square of
    this metric. Distances are computed from ‖u − v‖² = 2 − 2 cos(u, v) in O(N²·D) time; for equal
    vectors the rounding error is below 1e-7.

    Args:
        features: float64 [N, D]; the length of a vector does not matter.

    Returns:
        A value in [0, 2].
    """
    units = unit_vectors(features)  # [N, D]
    above = np.triu_indices(len(units), k=1)
    squares = np.clip(2.0 - 2.0 * (units @ units.T)[above], 0.0, 4.0)
    return float(np.sqrt(squares).mean())


METRIC = DiversityMetric(
    name="mean_distance",
    display_name="Mean distance",
    label="Dist",
    function=mean_distance,
    low=0.0,
    high=2.0,
    equation="2/(N(N−1)) Σ_{i<j} ‖u_i − u_j‖, u_i = f(x_i)/‖f(x_i)‖",
    source="mean pairwise Euclidean distance, as LPIPS is used for diversity by Zhu et al. 2017, "
    "arXiv 1711.11586",
)
