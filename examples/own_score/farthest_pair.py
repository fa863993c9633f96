"""A diversity metric: the distance between the two most different images of a prompt."""

import numpy as np

from autolora_eval import DiversityMetric


def farthest_pair(features: np.ndarray) -> float:
    """Return the greatest distance between two rows of `features`, float64 [N, D]."""
    squared = (features**2).sum(axis=1)
    distances = squared[:, None] + squared[None, :] - 2 * features @ features.T
    return float(np.sqrt(max(distances.max(), 0.0)))


METRIC = DiversityMetric(
    name="farthest_pair",
    display_name="Farthest pair",
    label="Farthest",
    function=farthest_pair,
    low=0.0,
    equation="max ‖f(x_i) − f(x_j)‖",
    source="examples/own_score",
)
