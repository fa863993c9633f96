"""Measure the miniature DINOv2: nearest neighbours, linear probe, order of diversities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel

from recipes.dinov2 import softened
from recipes.domain import (
    Picture,
    Scene,
    all_scenes,
    canonical_pixel_art,
    held_out_scenes,
    pixel_art,
    render,
    training_scenes,
)

LABELS = ("object", "colour", "background")


class Extractor:
    """The exported model behind the same calls as facebook/dinov2-giant."""

    def __init__(self, directory: Path) -> None:
        self._processor = AutoImageProcessor.from_pretrained(directory)
        self._model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Pooled features of uint8 [64, 64, 3] pictures: float32 [N, 128]."""
        parts = []
        for start in range(0, len(pictures), 200):
            images = [Image.fromarray(p) for p in pictures[start : start + 200]]
            inputs = self._processor(images=images, return_tensors="pt")
            parts.append(self._model(**inputs).pooler_output)
        return torch.cat(parts)


def diversity(features: Tensor) -> float:
    """Equation 8: one minus the mean pairwise cosine of [N, D] features."""
    unit = functional.normalize(features.double(), dim=-1)
    n = len(unit)
    return float(1 - ((unit @ unit.T).sum() - n) / (n * (n - 1)))


def sampled(
    scenes: Sequence[Scene], count: int, seed: int
) -> tuple[list[Picture], npt.NDArray[np.int64]]:
    """Pictures, half of them free and half pixel art, with their labels int64 [count, 3]."""
    rng = np.random.default_rng(seed)
    chosen = [scenes[int(rng.integers(len(scenes)))] for _ in range(count)]
    pictures = [(render if i % 2 else pixel_art)(s, rng) for i, s in enumerate(chosen)]
    return pictures, np.array([s.labels for s in chosen], dtype=np.int64)


def neighbour_accuracy(gallery: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Share of queries whose five nearest gallery features vote for the true label."""
    similarity = functional.normalize(queries, dim=-1) @ functional.normalize(gallery, dim=-1).T
    weight, index = similarity.topk(5, dim=1)
    votes = functional.one_hot(labels[index], 8) * torch.exp(weight / 0.07)[..., None]
    return float((votes.sum(1).argmax(1) == truth).float().mean())


def probe_accuracy(gallery: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Share of queries that a ridge regression on one-hot labels classifies correctly."""
    mean, scale = gallery.mean(0), gallery.std(0) + 1e-6
    x = functional.pad((gallery - mean) / scale, (0, 1), value=1.0).double()
    y = functional.one_hot(labels, 8).double()
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]).double(), x.T @ y)
    scores = functional.pad((queries - mean) / scale, (0, 1), value=1.0).double() @ weights
    return float((scores.argmax(1) == truth).float().mean())


def diversities(extract: Extractor, seed: int, sets: int = 24) -> dict[str, float]:
    """Mean equation-8 diversity of sets of 16 pictures, from the most to the least alike."""
    rng = np.random.default_rng(seed)
    scenes = held_out_scenes()
    found: dict[str, list[float]] = {}
    for number in range(sets):
        scene = scenes[number % len(scenes)]
        others = [scenes[i] for i in rng.choice(len(scenes), 16, replace=False)]
        canonical = canonical_pixel_art(scene)
        groups = {
            "one_scene_canonical_pixel_art": [softened(canonical, rng) for _ in range(16)],
            "one_scene_pixel_art": [pixel_art(scene, rng) for _ in range(16)],
            "one_scene_free": [render(scene, rng) for _ in range(16)],
            "different_scenes_pixel_art": [pixel_art(s, rng) for s in others],
            "different_scenes_free": [render(s, rng) for s in others],
        }
        for name, pictures in groups.items():
            found.setdefault(name, []).append(diversity(extract(pictures)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def evaluate(directory: Path, queries: int = 1_200, seed: int = 901) -> dict[str, Any]:
    """Return all figures of the model card, measured on scenes that are not in the training data.

    The probe is fitted to training scenes. The nearest neighbours are looked for among pictures of
    all scenes: a held-out scene shares at most two of its three labels with any other.
    """
    extract = Extractor(directory)
    pictures, labels = sampled(training_scenes(), 3_000, seed)
    others, other_labels = sampled(all_scenes(), 4_000, seed + 3)
    query_pictures, query_labels = sampled(held_out_scenes(), queries, seed + 1)
    fitted, gallery, found = extract(pictures), extract(others), extract(query_pictures)
    result: dict[str, Any] = {"neighbours": {}, "probe": {}, "queries": queries}
    for column, name in enumerate(LABELS):
        truth = torch.from_numpy(query_labels[:, column])
        known = torch.from_numpy(other_labels[:, column])
        result["neighbours"][name] = neighbour_accuracy(gallery, known, found, truth)
        known = torch.from_numpy(labels[:, column])
        result["probe"][name] = probe_accuracy(fitted, known, found, truth)
    result["diversity"] = diversities(extract, seed + 2)
    result["mean_cosine_of_random_pictures"] = 1 - diversity(found)
    result["bytes"] = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
    return result
