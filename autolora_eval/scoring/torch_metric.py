"""Equation (8) as a `torchmetrics.Metric`, for other evaluation frameworks."""

from __future__ import annotations

import torch
from torchmetrics import Metric


class PairwiseCosineDiversity(Metric):
    """Equation (8) of the AutoLoRA paper: 1 − mean pairwise cosine similarity of all features.

    The state is s = Σ u_i and N. It needs O(D) memory, and the result depends neither on the
    batches nor on distributed reduction.

    Examples:
        >>> metric = PairwiseCosineDiversity(dim=2)
        >>> metric.update(torch.eye(2))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)

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
        """Add feature vectors.

        Args:
            features: float of shape (B, D). A vector that is zero or not finite makes the result
                NaN.

        Raises:
            TypeError: if `features` is not a tensor.
            ValueError: if it has another shape.
        """
        if not isinstance(features, torch.Tensor):
            raise TypeError(
                f"expected a torch.Tensor [B, {len(self.total)}], got {type(features).__name__}: "
                "use torch.as_tensor(features)"
            )
        if features.ndim != 2 or features.shape[1] != len(self.total):
            raise ValueError(
                f"expected features of shape [B, {len(self.total)}], got {list(features.shape)}"
            )
        vectors = features.to(self.total.device).double()  # Apple's GPU has no float64
        # Divide by the largest entry first: squares of very large or small entries overflow.
        scaled = vectors / vectors.detach().abs().amax(dim=1, keepdim=True)
        units = scaled / scaled.norm(dim=1, keepdim=True)
        self.total = self.total + units.sum(dim=0)
        self.count += len(features)

    def compute(self) -> torch.Tensor:
        """Return equation (8), a float64 scalar; NaN if it is undefined, as for one image."""
        n = self.count
        if n < 2:
            return torch.tensor(float("nan"), dtype=torch.float64)
        # Mathematically ‖s‖ ≤ N, so a negative value is a rounding error.
        return (1.0 - (self.total @ self.total - n) / (n * (n - 1))).clamp(min=0.0)
