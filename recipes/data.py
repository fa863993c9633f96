"""Rendered data sets, cached as files in the work directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

Kind = Literal["free", "pixel"]
Split = Literal["training", "held_out"]

_DRAW: dict[Kind, Callable[[Scene, np.random.Generator], Picture]] = {
    "free": render,
    "pixel": pixel_art,
}


@dataclass(frozen=True)
class Renders:
    """Pictures uint8 [N, 64, 64, 3] and labels uint8 [N, 3]: object, colour, background."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)


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
    """The same pictures as `draw`, read from the work directory if they lie there."""
    path = work_dir / "data" / f"{kind}_{split}_{n}_{seed}.npz"
    if path.exists():
        with np.load(path) as stored:
            return Renders(stored["images"], stored["labels"])
    drawn = draw(kind, split, n, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.npz")
    np.savez(partial, images=drawn.images, labels=drawn.labels)
    partial.replace(path)
    return drawn


def to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pictures: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Float [N, 3, H, W] about [-1, 1] to uint8 [N, H, W, 3]."""
    scaled = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).numpy())
