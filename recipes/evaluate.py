"""Measures a diffusion miniature on held-out scenes and fixed seeds, read by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.domain import Scene, caption, held_out_scenes
from recipes.files import write_figures
from recipes.oracle import Oracle
from recipes.sampling import Guidance
from recipes.shapes import OBJECTS

# Chosen on training scenes. SDXL: at 4, the LoRA's colours are worse; at 2, the base's objects.
# SD3: at 4, LoRA pictures get coloured fringes; the base hardly differs.
CFG_SCALE = 3.0
GAMMA = 1.5
STEPS = 20
SEEDS = (1000, 1001, 1002)
METHODS = {
    "base+CFG": Guidance(0.0, CFG_SCALE, 1.0),
    "LoRA": Guidance(1.0),
    "LoRA+CFG": Guidance(1.0, 1.0, CFG_SCALE),
    "AutoLoRA": Guidance(GAMMA),
    "AutoLoRA+CFG": Guidance(GAMMA, CFG_SCALE, CFG_SCALE),
}
_SHEET_PROMPTS = 8


def diversity(images: npt.NDArray[np.uint8]) -> float:
    """Mean root-mean-square distance between pictures of one prompt, in grey levels / 255.

    Takes uint8 [prompts, seeds, 64, 64, 3].
    """
    x = images.reshape(*images.shape[:2], -1).astype(np.float32) / 255
    first, second = np.triu_indices(x.shape[1], 1)
    return float(np.sqrt(((x[:, first] - x[:, second]) ** 2).mean(-1)).mean())


def measure(
    oracle: Oracle, images: npt.NDArray[np.uint8], scenes: Sequence[Scene]
) -> dict[str, object]:
    """Figures of one method's pictures uint8 [prompts, seeds, 64, 64, 3] of the given scenes."""
    flat = images.reshape(-1, *images.shape[2:])
    each = [scene for scene in scenes for _ in range(images.shape[1])]
    found = oracle.read(flat)
    right = found.right(each)
    names = np.array([scene.object for scene in each])
    return {
        "object": float(right[:, 0].mean()),
        "colour": float(right[:, 1].mean()),
        "background": float(right[:, 2].mean()),
        "all_three": float(right.all(1).mean()),
        "style_grade": float(found.grade.mean()),
        "diversity": diversity(images),
        "object_of": {name: float(right[names == name, 0].mean()) for name in OBJECTS},
    }


def sheet(images: Sequence[npt.NDArray[np.uint8]], path: Path) -> None:
    """Rows: methods within prompts; columns: seeds, then the next prompt beside."""
    rows = []
    for first in range(0, _SHEET_PROMPTS, 2):
        for method in images:
            pair = method[first : first + 2]
            rows.append(np.hstack([np.hstack(list(seeds)) for seeds in pair]))
        rows.append(np.full((4, rows[-1].shape[1], 3), 128, np.uint8))
    Image.fromarray(np.vstack(rows)).save(path)


# Draws pictures uint8 [N, 64, 64, 3] of N prompts and seeds under a guidance in that many steps.
Sampler = Callable[[Sequence[str], Sequence[int], Guidance, int], npt.NDArray[np.uint8]]


def evaluate(work_dir: Path, sample: Sampler, name: str) -> None:
    """Sample and measure all METHODS; write WORK_DIR/<name>.json and <name>.png."""
    oracle = Oracle(work_dir)
    order = np.random.default_rng(61).permutation(len(held_out_scenes()))
    scenes = [held_out_scenes()[int(i)] for i in order]
    prompts = [caption(scene, style=True) for scene in scenes for _ in SEEDS]
    seeds = list(SEEDS) * len(scenes)
    figures: dict[str, object] = {}
    pictures = []
    for method, guidance in METHODS.items():
        flat = sample(prompts, seeds, guidance, STEPS)
        pictures.append(flat.reshape(len(scenes), len(SEEDS), *flat.shape[1:]))
        figures[method] = measure(oracle, pictures[-1], scenes)
        print(name, method, figures[method], flush=True)
    sheet(pictures, work_dir / f"{name}.png")
    result = {
        "scenes": len(scenes),
        "seeds": list(SEEDS),
        "steps": STEPS,
        "cfg_scale": CFG_SCALE,
        "gamma": GAMMA,
        "methods": figures,
    }
    write_figures(work_dir, name, result)
