"""The training loop of the recipes, with schedules, averaged weights, checkpoints and a log."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
Opt = TypeVar("Opt", bound=torch.optim.Optimizer)


def cosine(step: int, total: int, warmup: int = 50, flat: float = 0.0, end: float = 0.02) -> float:
    """A factor for the learning rate: linear warm-up, level, then a cosine down to `end`.

    `flat` is the share of the steps before the cosine begins.
    """
    rise = min(1.0, (step + 1) / warmup)
    progress = max(0.0, (step / total - flat) / (1 - flat))
    return rise * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def descend(
    optimizers: Mapping[Opt, float],
    steps: int,
    factor: Callable[[int], float],
    *,
    first: int = 0,
    clip: float = math.inf,
    after: Callable[[int], None] = lambda step: None,
) -> Iterator[int]:
    """Yield the number of each step, and then apply the gradients that the caller has computed.

    Args:
        optimizers: each with its learning rate, which "relative" of a parameter group multiplies.
        steps: the last step plus one.
        factor: step → the factor of all learning rates.
        first: the first step.
        clip: the largest norm of the gradient over all parameters.
        after: called after each step.
    """
    weights = [p for one in optimizers for group in one.param_groups for p in group["params"]]
    for step in range(first, steps):
        for optimizer, rate in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("relative", 1.0) * factor(step)
            optimizer.zero_grad()
        yield step
        if clip < math.inf:
            nn.utils.clip_grad_norm_(weights, clip)
        for optimizer in optimizers:
            optimizer.step()
        after(step)


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


def train_averaged(
    name: str,
    model: nn.Module,
    path: Path,
    optimizers: Mapping[str, tuple[torch.optim.Optimizer, float]],
    loss: Callable[[], torch.Tensor],
    *,
    seed: int,
    steps: int,
    factor: Callable[[int], float],
    save_every: int,
) -> None:
    """Train a model and average its weights, resuming from a checkpoint.

    Args:
        name: printed with the loss.
        model: is trained in place; `averaged` gives the average.
        path: the file of the checkpoint.
        optimizers: each with its learning rate, by its name in the checkpoint.
        loss: returns the loss of a random batch.
        seed: seed of the first step.
        steps: the last step plus one.
        factor: step → the factor of the learning rates.
        save_every: steps from one checkpoint to the next.
    """
    ema = Ema(model, 0.998)
    parts = {key: optimizer for key, (optimizer, _) in optimizers.items()}
    checkpoint = Checkpoint(path, model=model, ema=ema.model, **parts)
    first = checkpoint.load()
    torch.manual_seed(seed + first)

    def keep(step: int) -> None:
        ema.update(model, step)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            checkpoint.save(step + 1)

    log, rates = Progress(name, first, steps), dict(optimizers.values())
    for step in descend(rates, steps, factor, first=first, clip=1.0, after=keep):
        value = loss()
        value.backward()  # type: ignore[no-untyped-call, unused-ignore]
        log(step, loss=value.item())


def averaged(model: M, path: Path) -> M:
    """Give a model the averaged weights of a checkpoint, and return it."""
    model.load_state_dict(torch.load(path, weights_only=True, mmap=True)["ema"])
    return model.eval()
