"""Muon, for the matrices of a transformer's blocks: each step is the orthogonalized momentum.

After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About U·Vᵀ of each matrix U·S·Vᵀ in [N, m, n], by five Newton-Schulz iterations."""
    x: torch.Tensor = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-2, -1)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.transpose(-2, -1)
        x = _A * x + (_B * square + _C * square @ square) @ x
    found: torch.Tensor = x.transpose(-2, -1) if tall else x
    return found.float()


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; matrices of one shape are made orthogonal together.

    Args:
        parameters: matrices [m, n]; a layer that makes several vectors of width n at once, as
            m = k·n with k > 4, counts as k matrices.
        lr: the learning rate.
        momentum: of the gradient's moving sum.
        weight_decay: as AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 0.01,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step; a closure is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._step_together(same, group)

    def _step_together(self, same: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        steps = []
        for p in same:
            assert p.grad is not None
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            steps.append(p.grad.lerp(state["momentum"], group["momentum"]))
        m, n = same[0].shape
        parts = m // n if m % n == 0 and m // n > 4 else 1
        found = orthogonal(torch.stack(steps).reshape(len(same) * parts, m // parts, n))
        scale = max(1.0, (m // parts) / n) ** 0.5
        for p, direction in zip(same, found.reshape(len(same), m, n), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(direction, alpha=-group["lr"] * scale)
