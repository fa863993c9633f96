"""Measures the SD3 miniature as `evaluate` does SDXL's: held-out scenes, fixed seeds, oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from autolora_eval.miniature.recipes.domain import caption, held_out_scenes
from autolora_eval.miniature.recipes.evaluate import SEEDS, measure, sheet
from autolora_eval.miniature.recipes.oracle import Oracle
from autolora_eval.miniature.recipes.sampling import Guidance
from autolora_eval.miniature.recipes.sd3_sampling import load, sample

# Chosen on training scenes: at 4, LoRA pictures get coloured fringes; the base hardly differs.
CFG_SCALE = 3.0
GAMMA = 1.5
STEPS = 20
METHODS = {
    "base+CFG": Guidance(0.0, CFG_SCALE, 1.0),
    "LoRA": Guidance(1.0),
    "LoRA+CFG": Guidance(1.0, 1.0, CFG_SCALE),
    "AutoLoRA": Guidance(GAMMA),
    "AutoLoRA+CFG": Guidance(GAMMA, CFG_SCALE, CFG_SCALE),
}


def evaluate(work_dir: Path, sd3: Path, lora: Path) -> dict[str, object]:
    """Sample and measure all METHODS; write sd3_evaluation.json and sd3_evaluation.png."""
    pipeline, oracle = load(sd3, lora), Oracle(work_dir)
    order = np.random.default_rng(61).permutation(len(held_out_scenes()))
    scenes = [held_out_scenes()[int(i)] for i in order]
    prompts = [caption(scene, style=True) for scene in scenes for _ in SEEDS]
    seeds = list(SEEDS) * len(scenes)
    figures: dict[str, object] = {}
    pictures = []
    for name, guidance in METHODS.items():
        flat = sample(pipeline, prompts, seeds, guidance, STEPS)
        pictures.append(flat.reshape(len(scenes), len(SEEDS), *flat.shape[1:]))
        figures[name] = measure(oracle, pictures[-1], scenes)
        print("sd3 evaluate", name, figures[name], flush=True)
    sheet(pictures, work_dir / "sd3_evaluation.png")
    result: dict[str, object] = {
        "scenes": len(scenes),
        "seeds": list(SEEDS),
        "steps": STEPS,
        "cfg_scale": CFG_SCALE,
        "gamma": GAMMA,
        "methods": figures,
    }
    (work_dir / "sd3_evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result
