"""Measures the character LoRAs over LoRA scales and methods.

Presence is the number of the character's traits that its oracle sees, 0 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.character import NAME, TRAITS
from recipes.character_oracle import CharacterOracle
from recipes.domain import SIZE
from recipes.evaluate import CFG_SCALE, GAMMA, METHODS, STEPS, diversity
from recipes.files import write_figures
from recipes.lora_training import set_scale
from recipes.sampling import Guidance, Sampler, System

Images = npt.NDArray[np.uint8]

SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3)
WITH_LORA = {name: guidance for name, guidance in METHODS.items() if guidance.gamma != 0.0}
BASES = {"base": Guidance(0.0), "base+CFG": METHODS["base+CFG"]}
N_SEEDS = 32
FIRST_SEED = 2000
_SHEET_COLUMNS = 6


def lora_name(system: System) -> str:
    """The LoRA's folder, in the work directory and among the shipped weights."""
    return "character_lora" if system == "sdxl" else "sd3_character_lora"


class Zib:
    """An exported pipeline with its character LoRA at a scale that can be changed."""

    def __init__(self, system: System, lora: Path, steps: int = STEPS, fast: bool = False) -> None:
        sampler = Sampler(system, lora)
        self.pipeline = sampler.pipeline
        self._sample = partial(sampler, steps=steps, fast=fast)

    def __call__(
        self, scale: float, guidance: Guidance, prompts: Sequence[str], seeds: Sequence[int]
    ) -> Images:
        """Pictures uint8 [N, 64, 64, 3] at a LoRA scale; a γ of 0 leaves the LoRA out."""
        if guidance.gamma:
            set_scale(self.pipeline, scale)
        return self._sample(prompts, seeds, guidance)


def measure(oracle: CharacterOracle, images: Images) -> dict[str, float]:
    """Mean presence, the share of each trait and of all five, and diversity; uint8 [N, ...]."""
    traits = oracle.read(images)
    return {
        "presence": float(traits.sum(1).mean()),
        **{name: float(traits[:, k].mean()) for k, name in enumerate(TRAITS)},
        "all_five": float(traits.all(1).mean()),
        "diversity": diversity(images[None]),
    }


def _sheet(cells: dict[str, dict[str, Images]], path: Path) -> None:
    """Rows: LoRA scales; columns: the first pictures of each method."""
    rows = []
    for methods in cells.values():
        parts = []
        for images in methods.values():
            parts += [
                np.hstack(list(images[:_SHEET_COLUMNS])),
                np.full((SIZE, 4, 3), 128, np.uint8),
            ]
        rows.append(np.hstack(parts))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.vstack(padded)).save(path)


def evaluate(work_dir: Path, system: System, lora: Path) -> None:
    """Sample every scale and method for the bare name; write <LoRA>_evaluation.json and .png."""
    zib, oracle = Zib(system, lora), CharacterOracle(work_dir)
    prompts, seeds = [NAME] * N_SEEDS, [FIRST_SEED + k for k in range(N_SEEDS)]
    cells = {"none": {name: zib(0.0, g, prompts, seeds) for name, g in BASES.items()}}
    for scale in SCALES:
        cells[f"{scale:g}"] = {
            name: zib(scale, guidance, prompts, seeds) for name, guidance in WITH_LORA.items()
        }
        print(system, "character at", scale, flush=True)
    figures = {
        scale: {name: measure(oracle, images) for name, images in methods.items()}
        for scale, methods in cells.items()
    }
    name = lora_name(system)
    _sheet(cells, work_dir / f"{name}_evaluation.png")
    result = {
        "prompt": NAME,
        "seeds": [FIRST_SEED, FIRST_SEED + N_SEEDS - 1],
        "steps": STEPS,
        "cfg_scale": CFG_SCALE,
        "gamma": GAMMA,
        "lora_scales": figures,
    }
    write_figures(work_dir, f"{name}_evaluation", result)
