"""A diversity metric: the standard deviation of the feature vectors."""

from __future__ import annotations

import numpy as np

from autolora_eval import DiversityMetric

METRIC = DiversityMetric(
    name="spread",
    display_name="Spread",
    label="Spread",
    function=lambda features: float(np.sqrt(features.var(axis=0).sum())),
    low=0.0,
    equation="√ Σ_d Var(f_d)",
    source="an example",
)
