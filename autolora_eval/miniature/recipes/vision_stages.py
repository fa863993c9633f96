"""The stages of `train` that make the miniature DINOv2 and judge, measure them, write cards."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autolora_eval.miniature.recipes import (
    dinov2,
    dinov2_evaluate,
    judge,
    judge_evaluate,
    vision_cards,
)
from autolora_eval.miniature.recipes.generated import generate_graded
from autolora_eval.miniature.recipes.judge_data import Pictures

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DINOV2 = WEIGHTS / "dinov2"
JUDGE = WEIGHTS / "judge"

GENERATED = 4_000
GENERATED_HELD_OUT = 900
SEED, HELD_OUT_SEED = 61, 62
# Below this the oracle's own reading is no truth to learn from; measurement uses all pictures.
CONFIDENT = 0.7

FINE_TUNING = judge.Recipe(read_steps=2_500, read_rate=7e-4)


def train_dinov2(work_dir: Path) -> None:
    """Train, export and measure the miniature DINOv2; leaves WORK_DIR/dinov2.json."""
    recipe, started = dinov2.Recipe(), time.monotonic()
    dinov2.export(dinov2.train(recipe), DINOV2)
    _finish_dinov2(work_dir, {"recipe": asdict(recipe), "seconds": time.monotonic() - started})


def _finish_dinov2(work_dir: Path, training: dict[str, Any]) -> None:
    figures = {"training": training, **dinov2_evaluate.evaluate(DINOV2)}
    recipe = training["recipe"]
    said = (
        f"{recipe['steps']:,} steps of {recipe['batch_size']} pictures, each picture new, in "
        f"{training['seconds'] / 60:.0f} minutes on one CPU core."
    )
    vision_cards.write(DINOV2, vision_cards.dinov2_card(figures, said), figures)
    _leave(work_dir / "dinov2.json", figures)


def train_judge(work_dir: Path) -> None:
    """Train the judge on drawn pictures and export it; leaves WORK_DIR/judge.json."""
    recipe, started = judge.Recipe(), time.monotonic()
    judge.train(recipe, JUDGE, work_dir / "judge")
    _leave(
        work_dir / "judge.json", {"recipe": asdict(recipe), "seconds": time.monotonic() - started}
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
    judge.fine_tune(FINE_TUNING, generated, scratch / "judge_read.pt", JUDGE, scratch)
    training = {
        "drawn": json.loads((work_dir / "judge.json").read_text(encoding="utf-8")),
        "recipe": asdict(FINE_TUNING),
        "generated": len(generated),
        "seconds": time.monotonic() - started,
    }
    _finish_judge(work_dir, training, graded_by_oracle(unseen))


def _finish_judge(work_dir: Path, training: dict[str, Any], generated: Pictures) -> None:
    figures = {"training": training, **judge_evaluate.evaluate(JUDGE, generated)}
    drawn, tuning = training["drawn"]["recipe"], training["recipe"]
    minutes = (training["seconds"] + training["drawn"]["seconds"]) / 60
    said = (
        f"Looking: {drawn['look_steps']:,} steps of {drawn['look_batch']} pictures. Reading: "
        f"{drawn['read_steps']:,} steps of {drawn['images_per_batch']} new pictures with "
        f"{drawn['questions_per_image']} questions each. With generated pictures: "
        f"{tuning['read_steps']:,} steps, {tuning['generated_share']:.0%} of each batch from "
        f"{training['generated']:,} pictures. In all {minutes:.0f} minutes on one CPU core."
    )
    vision_cards.write(JUDGE, vision_cards.judge_card(figures, said), figures)
    _leave(work_dir / "judge_tuned.json", figures)


def _leave(path: Path, figures: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    partial.replace(path)
