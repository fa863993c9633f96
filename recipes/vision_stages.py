"""The stages of `train` that make the miniature DINOv2 and judge, measure them, write cards."""

from __future__ import annotations

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
)
from recipes.decoded import decoded_pictures
from recipes.files import DINOV2, JUDGE, read_figures, write_card, write_figures
from recipes.generated import generate_graded
from recipes.judge_data import Pictures
from recipes.vision_cards import dinov2_card

DECODED = 8_000
DECODED_AGAIN = 2_000
GENERATED = 1_600
GENERATED_HELD_OUT = 600
DECODED_SEED, SEED, HELD_OUT_SEED = 60, 61, 62
# Pictures with less confidence are not used for training. Measurements use all pictures.
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
    write_card(DINOV2, dinov2_card(figures), figures)
    write_figures(work_dir, "dinov2", figures)


def train_judge(work_dir: Path) -> None:
    """Train the judge on drawn, then on drawn and decoded pictures; leaves WORK_DIR/judge.json."""
    scratch, started = work_dir / "judge", time.monotonic()
    judge.train(READING, JUDGE, scratch)
    decoded = decoded_pictures(work_dir, DECODED, DECODED_SEED)
    judge.fine_tune(SOFTENING, decoded, scratch / "judge_read.pt", scratch / "judge_soft.pt", JUDGE)
    figures = {
        "reading": asdict(READING),
        "softening": asdict(SOFTENING),
        "decoded": len(decoded),
        "seconds": time.monotonic() - started,
    }
    write_figures(work_dir, "judge", figures)


def graded_by_oracle(path: Path, least_confidence: float = 0.0) -> Pictures:
    """The generated pictures of a file with what the oracle read in them."""
    with np.load(path) as stored:
        sure = stored["confidence"] >= least_confidence
        read = ("object", "colour", "background", "grade")
        truth = np.stack([stored[name] for name in read], 1).astype(np.int64)
        return Pictures(stored["images"][sure], truth[sure], stored["scenes"][sure].astype(int))


def tune_judge(work_dir: Path) -> None:
    """Continue with generated pictures and measure; leaves WORK_DIR/judge_tuned.json.

    The card is written by the next stage, which teaches the second rubric.
    """
    seen = generate_graded(work_dir, GENERATED, SEED, held_out=False)
    unseen = generate_graded(work_dir, GENERATED_HELD_OUT, HELD_OUT_SEED, held_out=True)
    scratch, started = work_dir / "judge", time.monotonic()
    generated = graded_by_oracle(seen, CONFIDENT)
    # Without others of their kind, so few generated pictures would be memorized.
    given = Pictures.concatenate(
        generated, decoded_pictures(work_dir, DECODED_AGAIN, DECODED_SEED + 10)
    )
    judge.fine_tune(TUNING, given, scratch / "judge_soft.pt", scratch / "judge_tuned.pt", JUDGE)
    first = read_figures(work_dir, "judge")
    training = {
        **first,
        "tuning": asdict(TUNING),
        "generated": len(generated),
        "seconds": first["seconds"] + time.monotonic() - started,
    }
    figures = judge_evaluate.evaluate(JUDGE, {"generated": graded_by_oracle(unseen)})
    figures |= {"training": training, "oracle": read_figures(work_dir, "oracle")}
    write_figures(work_dir, "judge_tuned", figures)
