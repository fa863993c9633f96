"""Small images, encoded and as files, and image sets of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from autolora_eval.generation.image_listing import ImageRecord
from autolora_eval.generation.image_sets import ImageSet
from autolora_eval.runs.manifest import ImageJob


def noise(*shape: int, seed: int = 0, kind: type = np.uint8) -> np.ndarray:
    """Random values over the whole range of an integer type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, dtype=kind)


def picture(seed: int) -> Image.Image:
    """A random RGB image of 8 × 8 pixels."""
    return Image.fromarray(noise(8, 8, 3, seed=seed))


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jobs(*prompts: str, seeds: int = 1) -> list[ImageJob]:
    return [ImageJob(n, prompt, seed) for n, prompt in enumerate(prompts) for seed in range(seeds)]


def record(
    name: str, prompt: str | None = "a", seed: int | None = 0, data: bytes = b""
) -> ImageRecord:
    return ImageRecord(name, prompt, seed, partial(bytes, data))


def listing(*named: tuple[str | None, int | None], by_folder: bool = False) -> ImageSet:
    """A set of images 0.png, 1.png, … with these prompts and seeds."""
    records = [record(f"{n}.png", prompt, seed) for n, (prompt, seed) in enumerate(named)]
    return ImageSet(Path("set"), "listing", records, by_folder)


def tree(*folders: str) -> ImageSet:
    """A set with one image of seed 0 per folder."""
    records = [record(f"{folder}/0.png", folder) for folder in folders]
    return ImageSet(Path("set"), "tree of images", records, by_folder=True)


def names(found: Mapping[ImageJob, ImageRecord]) -> dict[str, str]:
    """The matched image of each prompt."""
    return {job.prompt: image.name for job, image in found.items()}
