"""Generated pictures, good and bad, with what the oracle reads in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recipes.data import Split, scenes_of
from recipes.domain import SIZE, TEMPLATES, caption
from recipes.files import SD3_LORA, SDXL_LORA, save_arrays
from recipes.oracle import USUAL, Effort, Oracle
from recipes.sampling import Guidance, Sampler, System

STEPS = 12
LORAS: dict[System, Path] = {"sdxl": SDXL_LORA, "sd3": SD3_LORA}
# From good to bad settings, because judges must see both.
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
    sample, rng, scenes = (
        Sampler(system, LORAS[system]),
        np.random.default_rng(seed),
        scenes_of(split),
    )
    chosen = [scenes[int(i)] for i in rng.integers(0, len(scenes), n)]
    prompts = [caption(s, int(rng.integers(len(TEMPLATES))), style=True) for s in chosen]
    images = np.zeros((n, SIZE, SIZE, 3), dtype=np.uint8)
    method = np.array(list(methods))[np.arange(n) % len(methods)]
    for name, guidance in methods.items():
        rows = np.flatnonzero(method == name)
        if not rows.size:
            continue
        seeds = [int(seed * 1_000_003 + row) for row in rows]
        images[rows] = sample([prompts[row] for row in rows], seeds, guidance, STEPS, fast=True)
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
    save_arrays(
        path,
        images=images,
        scenes=asked,
        method=method,
        object=found.object,
        colour=found.colour,
        background=found.background,
        grade=found.grade,
        confidence=found.confidence,
    )
    return path
