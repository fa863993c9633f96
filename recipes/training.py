"""What the recipes share: schedules, averages of weights, checkpoints, the progress log."""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn


def cosine(step: int, total: int, warmup: int = 50, flat: float = 0.0, end: float = 0.02) -> float:
    """A factor for the learning rate: linear warm-up, level, then a cosine down to `end`.

    `flat` is the share of the steps before the cosine begins.
    """
    rise = min(1.0, (step + 1) / warmup)
    progress = max(0.0, (step / total - flat) / (1 - flat))
    return rise * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; elsewhere emulation would be slower than float32."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in cpuinfo or "amx_bf16" in cpuinfo


def mixed_precision() -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the CPU has it, else plain float32."""
    if has_fast_bfloat16():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


class Ema:
    """An exponential moving average of a model's weights, in `model`."""

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Move towards the source, faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(  # type: ignore[no-untyped-call, unused-ignore]
            list(self.model.parameters()), list(source.parameters()), 1 - decay
        )
        for mine, theirs in zip(self.model.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)


class Checkpoint:
    """The state of a training, written every so often and read back after an interruption.

    The random state is seeded from the step at which a training resumes, not restored: an
    interrupted training sees other batches than an uninterrupted one, of the same distribution.
    """

    def __init__(self, path: Path, **parts: nn.Module | torch.optim.Optimizer) -> None:
        self.path = path
        self.parts = parts

    def save(self, step: int) -> None:
        """Write all parts beside the file and rename into place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        partial = self.path.with_suffix(".partial")
        torch.save({"step": step, **state}, partial)
        partial.replace(self.path)

    def load(self) -> int:
        """Restore all parts and return the step reached; 0 if there is no checkpoint."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])


class Progress:
    """Prints a running mean of the losses and the speed every `every` steps."""

    def __init__(self, name: str, first: int, total: int, every: int = 100) -> None:
        self.name, self.total, self.every = name, total, every
        self._first, self._begun = first, time.monotonic()
        self._means: dict[str, float] = {}

    def __call__(self, step: int, **values: float) -> None:
        """Note the values of a step, and print if it is time."""
        for key, value in values.items():
            self._means[key] = 0.97 * self._means.get(key, value) + 0.03 * value
        if (step + 1) % self.every == 0 or step + 1 == self.total:
            seconds = time.monotonic() - self._begun
            losses = " ".join(f"{key} {value:.4f}" for key, value in self._means.items())
            speed = (step + 1 - self._first) / seconds
            print(f"{self.name} {step + 1}/{self.total} {losses} {speed:.2f} steps/s", flush=True)
