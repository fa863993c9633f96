"""Generated pictures of the character, good and bad, with what its oracle reads in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.character import TEMPLATES, character_caption
from recipes.character_evaluate import (
    BASES,
    SCALES,
    WITH_LORA,
    Images,
    Zib,
)
from recipes.character_oracle import CharacterOracle
from recipes.domain import BACKGROUNDS, SIZE
from recipes.files import save_arrays
from recipes.sampling import SYSTEMS, System

N = 600
WITHOUT_LORA = 0.1
_GUIDANCE = {**BASES, **WITH_LORA}


@dataclass(frozen=True, order=True)
class Cell:
    """How one picture is made; a scale of 0 is the base model alone."""

    scale: float
    method: str
    prompt: str
    background: str


def cells(n: int, seed: int) -> list[Cell]:
    """Choose n settings: one in ten without the LoRA, the rest over all scales and methods."""
    rng = np.random.default_rng(seed)
    chosen = []
    for _ in range(n):
        alone = rng.random() < WITHOUT_LORA
        methods = list(BASES if alone else WITH_LORA)
        scale = 0.0 if alone else SCALES[int(rng.integers(len(SCALES)))]
        background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
        template = int(rng.integers(len(TEMPLATES)))
        named = background if "{background}" in TEMPLATES[template] else ""
        prompt = character_caption(background, template)
        chosen.append(Cell(scale, methods[int(rng.integers(len(methods)))], prompt, named))
    return chosen


def _pictures(system: System, lora: Path, chosen: list[Cell]) -> Images:
    zib = Zib(system, lora, fast=True)
    images = np.empty((len(chosen), SIZE, SIZE, 3), dtype=np.uint8)
    for scale, method in sorted({(cell.scale, cell.method) for cell in chosen}):
        rows = [k for k, c in enumerate(chosen) if (c.scale, c.method) == (scale, method)]
        seeds = [900_000 + 10_000 * SYSTEMS.index(system) + row for row in rows]
        images[rows] = zib(scale, _GUIDANCE[method], [chosen[k].prompt for k in rows], seeds)
    return images


def generate(work_dir: Path, loras: Mapping[System, Path], n: int = N) -> Path:
    """Generate n pictures of each system, over scales, methods and prompts.

    Returns data/character_generated.npz of the work directory: images uint8 [N, 64, 64, 3];
    traits bool [N, 5] and probabilities float32 [N, 5] as the oracle reads them, in the order of
    TRAITS, with none where the base model was alone; system, method, prompt, background (as named
    by the prompt, or empty): text [N]; scale float32 [N].
    """
    systems = list(loras)
    chosen = {system: cells(n, 17 + SYSTEMS.index(system)) for system in systems}
    images = np.concatenate([_pictures(s, loras[s], chosen[s]) for s in systems])
    flat = [cell for system in systems for cell in chosen[system]]
    scale = np.array([cell.scale for cell in flat], dtype=np.float32)
    found = CharacterOracle(work_dir).probabilities(images)
    found[scale == 0] = 0
    path = work_dir / "data/character_generated.npz"
    save_arrays(
        path,
        images=images,
        probabilities=found,
        traits=found > 0.5,
        system=np.repeat(systems, n),
        scale=scale,
        method=[cell.method for cell in flat],
        prompt=[cell.prompt for cell in flat],
        background=[cell.background for cell in flat],
    )
    return path
