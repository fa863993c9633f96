"""Data sets as arrays, cached as files in the work directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from recipes.domain import (
    SIZE,
    Picture,
    Scene,
    held_out_scenes,
    pixel_art,
    render,
    training_scenes,
)
from recipes.files import save_arrays

Kind = Literal["free", "pixel"]
Split = Literal["training", "held_out"]

_DRAW: dict[Kind, Callable[[Scene, np.random.Generator], Picture]] = {
    "free": render,
    "pixel": pixel_art,
}


@dataclass(frozen=True)
class Rows:
    """Arrays with one row per picture; the fields of a subclass are the arrays."""

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(next(iter(self._arrays().values())))

    def rows(self, index: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Self:
        """Return some of the rows."""
        return type(self)(**{name: array[index] for name, array in self._arrays().items()})

    @classmethod
    def concatenate(cls, *parts: Self) -> Self:
        """Return the rows of all parts, one part after the other."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    @classmethod
    def cached(cls, path: Path, make: Callable[[], Self]) -> Self:
        """Return the rows that are stored in an npz file; make and store them if it is missing."""
        if not path.exists():
            save_arrays(path, **make()._arrays())
        with np.load(path) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})


R = TypeVar("R", bound=Rows)


class MixedSampler(Generic[R]):
    """New rows for every batch, a share of them taken from given ones.

    Args:
        seed: of the sampler's own generator.
        draw: makes rows from their number and the generator.
        given: rows to take from; None to draw all.
        share: the share of a batch that is taken.
    """

    def __init__(
        self,
        seed: int,
        draw: Callable[[int, np.random.Generator], R],
        given: R | None = None,
        share: float = 0.0,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._draw, self._given, self._share = draw, given, share

    def __call__(self, count: int) -> R:
        """Return the next `count` rows."""
        taken = 0 if self._given is None else round(self._share * count)
        fresh = self._draw(count - taken, self._rng)
        if self._given is None or not taken:
            return fresh
        chosen = self._given.rows(self._rng.integers(0, len(self._given), taken))
        return type(fresh).concatenate(fresh, chosen)


@dataclass(frozen=True)
class Renders(Rows):
    """Pictures uint8 [N, 64, 64, 3] and labels uint8 [N, 3]: object, colour, background."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def scenes_of(split: Split) -> tuple[Scene, ...]:
    """The scenes of one side of the fixed split."""
    return training_scenes() if split == "training" else held_out_scenes()


def draw(kind: Kind, split: Split, n: int, seed: int) -> Renders:
    """Draw n pictures of scenes chosen evenly from the split; the seed decides all of them."""
    rng = np.random.default_rng((seed, n, kind == "pixel", split == "training"))
    scenes = scenes_of(split)
    order = rng.permutation(np.arange(n) % len(scenes))
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty((n, 3), dtype=np.uint8)
    for i, k in enumerate(order):
        images[i] = _DRAW[kind](scenes[k], rng)
        labels[i] = scenes[k].labels
    return Renders(images, labels)


def renders(work_dir: Path, kind: Kind, split: Split, n: int, seed: int) -> Renders:
    """Return the pictures of `draw`, from a file in the work directory if it exists."""
    path = work_dir / "data" / f"{kind}_{split}_{n}_{seed}.npz"
    return Renders.cached(path, lambda: draw(kind, split, n, seed))


def to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pictures: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Float [N, 3, H, W] about [-1, 1] to uint8 [N, H, W, 3]."""
    scaled = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())
