"""Trains all miniatures: `python -m recipes.train`.

A stage whose result is in the work directory is skipped, unless it is named with --stage. An
interrupted stage continues from its checkpoint, if it has one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from recipes import (
    character_export,
    character_lora,
    character_oracle,
    diffusion_export,
    lora,
    oracle,
    presence_stages,
    sd3,
    sd3_lora,
    sd3_text,
    text,
    unet,
    unet_tune,
    vae,
    vision_stages,
)

# In order. Each takes the work directory and leaves WORK_DIR/<second entry> when it is done.
STAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "text": (text.train, "text.json"),
    "vae": (vae.train, "vae.json"),
    "unet": (unet.train, "unet.json"),
    "unet_tuned": (unet_tune.train, "unet_tuned.json"),
    "oracle": (oracle.train, "oracle.json"),
    "lora": (lora.train, "pixel_art_lora.json"),
    "export": (diffusion_export.export_sdxl, "exported.json"),
    "evaluate": (diffusion_export.evaluate_sdxl, "evaluation.json"),
    "sd3_text": (sd3_text.train, "sd3_text.json"),
    "sd3": (sd3.train, "sd3.json"),
    "sd3_lora": (sd3_lora.train, "sd3_pixel_art_lora.json"),
    "sd3_export": (diffusion_export.export_sd3, "sd3_exported.json"),
    "sd3_evaluate": (diffusion_export.evaluate_sd3, "sd3_evaluation.json"),
    "character_oracle": (character_oracle.train, "character_oracle.json"),
    "character_lora": (character_lora.train, "character_lora.json"),
    "sd3_character_lora": (character_lora.train_sd3, "sd3_character_lora.json"),
    "character_export": (character_export.export, "character_exported.json"),
    "character_evaluate": (character_export.measure, "sd3_character_lora_evaluation.json"),
    "character_generated": (character_export.keep_for_judges, "data/character_generated.npz"),
    "judge": (vision_stages.train_judge, "judge.json"),
    "dinov2": (vision_stages.train_dinov2, "dinov2.json"),
    "judge_tuned": (vision_stages.tune_judge, "judge_tuned.json"),
    "thorough_oracle": (oracle.train_thoroughly, "thorough_oracle.json"),
    "judge_presence": (presence_stages.teach, "judge_presence.json"),
}


def main() -> None:
    """Run the named stages, or all that are not finished."""
    parser = argparse.ArgumentParser(description="Train the miniature models from scratch.")
    parser.add_argument("--stage", nargs="+", choices=STAGES, help="run these, done or not")
    parser.add_argument("--work-dir", type=Path, default=Path("build/miniature"))
    parser.add_argument("--threads", type=int, default=1, help="threads that PyTorch may use")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    for name, (run, result) in STAGES.items():
        wanted = (
            name in options.stage if options.stage else not (options.work_dir / result).exists()
        )
        if wanted:
            begun = time.monotonic()
            run(options.work_dir)
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        else:
            print(f"{name}: left as it is", flush=True)


if __name__ == "__main__":
    main()
