"""The diversity as a `torchmetrics.Metric`, for other harnesses."""

from __future__ import annotations

import torch
from torchmetrics import Metric


class PairwiseCosineDiversity(Metric):
    """Equation (8) of the AutoLoRA paper over all features seen: 1 − mean pairwise cosine.

    Its state is s = Σ u_i and N, whatever the number of images: O(D) memory, exact under any
    batching and under distributed reduction.

    Args:
        dim: D, the length of a feature vector.
    """

    higher_is_better = True
    is_differentiable = True
    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, features: torch.Tensor) -> None:
        """Take in feature vectors, float [B, D]; one that is zero or not finite makes it NaN.

        Raises:
            TypeError: they are no tensor.
            ValueError: they are of another shape.
        """
        if not isinstance(features, torch.Tensor):
            raise TypeError(
                f"expected a torch.Tensor [B, {len(self.total)}], got {type(features).__name__}: "
                "give torch.as_tensor(features)"
            )
        if features.ndim != 2 or features.shape[1] != len(self.total):
            raise ValueError(
                f"expected features of shape [B, {len(self.total)}], got {list(features.shape)}"
            )
        vectors = features.double()
        # By the largest entry first: no length is then too great or too small to be squared.
        scaled = vectors / vectors.detach().abs().amax(dim=1, keepdim=True)
        units = scaled / scaled.norm(dim=1, keepdim=True)
        self.total = self.total + units.sum(dim=0)
        self.count += len(features)

    def compute(self) -> torch.Tensor:
        """Return equation (8), float64 scalar; NaN where it is undefined, as below two images."""
        n = self.count
        if n < 2:
            return torch.tensor(float("nan"), dtype=torch.float64)
        # ‖s‖ ≤ N, so what lies below zero is rounding.
        return (1.0 - (self.total @ self.total - n) / (n * (n - 1))).clamp(min=0.0)
