"""The stages of `train` that make the miniature DINOv2 and judge, measure them, write cards."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes import (
    dinov2,
    dinov2_evaluate,
    judge,
    judge_evaluate,
    vision_cards,
)
from recipes.decoded import decoded_pictures
from recipes.generated import generate_graded
from recipes.judge_data import Pictures, joined

WEIGHTS = Path(__file__).resolve().parents[1] / "autolora_eval" / "shipped" / "miniature"
DINOV2 = WEIGHTS / "dinov2"
JUDGE = WEIGHTS / "judge"

DECODED = 8_000
DECODED_AGAIN = 2_000
GENERATED = 1_600
GENERATED_HELD_OUT = 600
DECODED_SEED, SEED, HELD_OUT_SEED = 60, 61, 62
# Below this the oracle's own reading is no truth to learn from; measurement uses all pictures.
CONFIDENT = 0.7

READING = judge.Recipe(read_steps=4_800)
SOFTENING = judge.Recipe(
    seed=40, read_steps=2_000, read_rate=8e-4, given_share=0.5, foreign_share=0.04
)
TUNING = judge.Recipe(
    seed=50, read_steps=1_000, read_rate=5e-4, given_share=0.6, foreign_share=0.04
)


def train_dinov2(work_dir: Path) -> None:
    """Train, from the judge's tower, and measure the DINOv2; leaves WORK_DIR/dinov2.json."""
    recipe, started = dinov2.Recipe(), time.monotonic()
    learnt = torch.load(work_dir / "judge" / "judge_read.pt")
    tower = {k.removeprefix("tower."): v for k, v in learnt.items() if k.startswith("tower.")}
    dinov2.export(dinov2.train(recipe, tower), DINOV2)
    measure_dinov2(work_dir, {"recipe": asdict(recipe), "seconds": time.monotonic() - started})


def measure_dinov2(work_dir: Path, training: dict[str, Any]) -> None:
    """Measure the exported DINOv2 and write its card; leaves WORK_DIR/dinov2.json."""
    figures = {"training": training, **dinov2_evaluate.evaluate(DINOV2)}
    recipe = training["recipe"]
    said = (
        f"{recipe['steps']:,} steps of {recipe['batch_size']} pictures, each picture new, in "
        f"{training['seconds'] / 60:.0f} minutes on one CPU core."
    )
    vision_cards.write(DINOV2, vision_cards.dinov2_card(figures, said), figures)
    _leave(work_dir / "dinov2.json", figures)


def train_judge(work_dir: Path) -> None:
    """Train the judge on drawn, then on drawn and decoded pictures; leaves WORK_DIR/judge.json."""
    scratch, started = work_dir / "judge", time.monotonic()
    judge.train(READING, JUDGE, scratch)
    decoded = decoded_pictures(work_dir, DECODED, DECODED_SEED)
    judge.fine_tune(SOFTENING, decoded, scratch / "judge_read.pt", scratch / "judge_soft.pt", JUDGE)
    _leave(
        work_dir / "judge.json",
        {
            "reading": asdict(READING),
            "softening": asdict(SOFTENING),
            "decoded": len(decoded),
            "seconds": time.monotonic() - started,
        },
    )


def graded_by_oracle(path: Path, least_confidence: float = 0.0) -> Pictures:
    """The generated pictures of a file with what the oracle read in them."""
    with np.load(path) as stored:
        sure = stored["confidence"] >= least_confidence
        read = ("object", "colour", "background", "grade")
        truth = np.stack([stored[name] for name in read], 1).astype(np.int64)
        return Pictures(stored["images"][sure], truth[sure], stored["scenes"][sure].astype(int))


def tune_judge(work_dir: Path) -> None:
    """Go on with generated pictures, measure, write the card; leaves WORK_DIR/judge_tuned.json."""
    seen = generate_graded(work_dir, GENERATED, SEED, held_out=False)
    unseen = generate_graded(work_dir, GENERATED_HELD_OUT, HELD_OUT_SEED, held_out=True)
    scratch, started = work_dir / "judge", time.monotonic()
    generated = graded_by_oracle(seen, CONFIDENT)
    # So few generated pictures would be learnt by heart without others of their kind.
    given = joined(generated, decoded_pictures(work_dir, DECODED_AGAIN, DECODED_SEED + 10))
    judge.fine_tune(TUNING, given, scratch / "judge_soft.pt", scratch / "judge_tuned.pt", JUDGE)
    first = json.loads((work_dir / "judge.json").read_text(encoding="utf-8"))
    training = {
        **first,
        "tuning": asdict(TUNING),
        "generated": len(generated),
        "seconds": first["seconds"] + time.monotonic() - started,
    }
    measure_judge(work_dir, training, graded_by_oracle(unseen))


def measure_judge(
    work_dir: Path, training: dict[str, Any], generated: Pictures | None = None
) -> None:
    """Measure the exported judge on drawn and generated pictures, and write its card."""
    sets = {} if generated is None else {"generated": generated}
    figures = {"training": training, **judge_evaluate.evaluate(JUDGE, sets)}
    if generated is not None:
        figures["oracle"] = json.loads((work_dir / "oracle.json").read_text(encoding="utf-8"))
    write_judge_card(work_dir, figures)


def write_judge_card(work_dir: Path, figures: dict[str, Any]) -> None:
    """Write the judge's card from its figures; leaves WORK_DIR/judge_tuned.json."""
    training = figures["training"]
    reading, softening = training["reading"], training["softening"]
    said = (
        f"Looking: {reading['look_steps']:,} steps of {reading['look_batch']} pictures. Reading: "
        f"{reading['read_steps']:,} steps of {reading['images_per_batch']} new pictures with "
        f"{reading['questions_per_image']} questions each; then {softening['read_steps']:,} steps "
        f"in which {softening['given_share']:.0%} of the pictures are drawn ones that went through "
        "the miniature SDXL's autoencoder with some noise."
    )
    if "tuning" in training:
        tuning = training["tuning"]
        said += (
            f" Last, {tuning['read_steps']:,} steps in which {tuning['given_share']:.0%} are such "
            f"pictures or one of {training['generated']:,} that the miniature SDXL generated, with "
            "the oracle's reading as truth."
        )
    said += f" In all {training['seconds'] / 60:.0f} minutes on one CPU core."
    vision_cards.write(JUDGE, vision_cards.judge_card(figures, said), figures)
    _leave(work_dir / "judge_tuned.json", figures)


def _leave(path: Path, figures: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    partial.replace(path)
