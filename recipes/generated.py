"""Generated pictures, good and bad, with what the oracle reads in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from recipes import sampling, sd3_export, sd3_sampling
from recipes.data import Split, scenes_of
from recipes.domain import SIZE, TEMPLATES, caption
from recipes.export import LORA, SDXL
from recipes.oracle import USUAL, Effort, Oracle
from recipes.sampling import Guidance

STEPS = 12
# From what works well to what fails: judges must see both.
METHODS: dict[str, Guidance] = {
    "base": Guidance(0.0),
    "base+CFG 2": Guidance(0.0, 2.0),
    "base+CFG 4": Guidance(0.0, 4.0),
    "LoRA": Guidance(1.0),
    "LoRA+CFG 2": Guidance(1.0, 1.0, 2.0),
    "LoRA+CFG 4": Guidance(1.0, 1.0, 4.0),
    "AutoLoRA": Guidance(1.5),
    "AutoLoRA 0.5+CFG 3": Guidance(0.5, 3.0, 3.0),
    "AutoLoRA 2+CFG 4": Guidance(2.0, 4.0, 4.0),
}


System = Literal["sdxl", "sd3"]
Sampler = Callable[..., npt.NDArray[np.uint8]]


def _sampler(system: System) -> Sampler:
    """The exported pipeline with its pixel-art LoRA, ready to be given prompts and seeds."""
    if system == "sd3":
        return partial(
            sd3_sampling.sample, sd3_sampling.load(sd3_export.SD3, sd3_export.LORA), fast=True
        )
    return partial(sampling.sample, sampling.load(SDXL, LORA), fast=True)


def generate_graded(
    work_dir: Path,
    n: int,
    seed: int,
    held_out: bool,
    methods: Mapping[str, Guidance] = METHODS,
    tag: str = "",
    system: System = "sdxl",
    effort: Effort = USUAL,
) -> Path:
    """Generate n pictures with an exported pipeline and grade them by the oracle.

    Returns an npz file with images uint8 [n, 64, 64, 3]; scenes uint8 [n, 3], the labels that the
    prompt asked for; object int64 [n] (8: none), colour, background, grade int64 [n] and
    confidence float32 [n] as the oracle reads them; method, text [n]. The file is reused if it
    exists; `tag` sets apart files made with different weights or graded by another oracle.
    """
    split: Split = "held_out" if held_out else "training"
    of = "" if system == "sdxl" else f"{system}_"
    path = work_dir / "data" / f"generated_{of}{split}_{n}_{seed}{tag}.npz"
    if path.exists():
        return path
    sample, rng, scenes = _sampler(system), np.random.default_rng(seed), scenes_of(split)
    chosen = [scenes[int(i)] for i in rng.integers(0, len(scenes), n)]
    prompts = [caption(s, int(rng.integers(len(TEMPLATES))), style=True) for s in chosen]
    images = np.zeros((n, SIZE, SIZE, 3), dtype=np.uint8)
    method = np.array(list(methods))[np.arange(n) % len(methods)]
    for name, guidance in methods.items():
        rows = np.flatnonzero(method == name)
        if not rows.size:
            continue
        seeds = [int(seed * 1_000_003 + row) for row in rows]
        images[rows] = sample([prompts[row] for row in rows], seeds, guidance, STEPS)
        print(f"generated {name}: {len(rows)}", flush=True)
    asked = np.array([scene.labels for scene in chosen], dtype=np.uint8)
    return _save(path, images, asked, method, Oracle(work_dir, effort))


def _save(
    path: Path,
    images: npt.NDArray[np.uint8],
    asked: npt.NDArray[np.uint8],
    method: npt.NDArray[np.str_],
    oracle: Oracle,
) -> Path:
    found = oracle.read(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.npz")
    np.savez(
        partial,
        images=images,
        scenes=asked,
        method=method,
        object=found.object,
        colour=found.colour,
        background=found.background,
        grade=found.grade,
        confidence=found.confidence,
    )
    partial.replace(path)
    return path
