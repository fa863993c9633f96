"""The stage of `train` that teaches the judge its second rubric, measures both, writes the card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes import (
    judge,
    judge_evaluate,
    presence_cards,
    presence_evaluate,
)
from recipes.decoded import decoded, decoded_pictures
from recipes.domain import held_out_scenes
from recipes.files import JUDGE, read_figures, write_card, write_figures
from recipes.generated import generate_graded
from recipes.judge_data import Pictures, picture_sampler
from recipes.judge_data import pictures as drawn_pictures
from recipes.judge_model import Judge, export, exported_weights
from recipes.judge_presence import PresenceRecipe, checkpointed, learn
from recipes.judge_tokenizer import build
from recipes.oracle import THOROUGH
from recipes.presence_data import (
    PresenceData,
    drawn_presence,
    presence_sampler,
    without_character,
)
from recipes.sampling import System
from recipes.vision_stages import CONFIDENT, graded_by_oracle

DECODED, DECODED_SIGHTINGS = 6_000, 6_000
DECODED_SEED, DECODED_HELD_OUT_SEED = 80, 84
# Of each base model: pictures and seed, for training and held out.
GENERATED: dict[System, tuple[tuple[int, int], tuple[int, int]]] = {
    "sdxl": ((1_800, 61), (600, 62)),
    "sd3": ((1_800, 63), (600, 64)),
}
SURE = 0.9  # confidence of the oracle above which replaced words are measured separately
SURE_OF_TRAITS = 0.25  # distance of each trait's probability from one half, for use in training

MEETING = PresenceRecipe(
    judge.Recipe(seed=70, images_per_batch=16, read_rate=8e-4, given_share=0.5, foreign_share=0.04),
    head_steps=150,
    steps=1_000,
)
KNOWING = PresenceRecipe(
    judge.Recipe(seed=75, images_per_batch=20, read_rate=8e-4, given_share=0.6, foreign_share=0.04),
    head_steps=0,
    steps=1_600,
)
SETTLING = PresenceRecipe(
    judge.Recipe(seed=78, images_per_batch=20, read_rate=6e-4, given_share=0.6, foreign_share=0.1),
    head_steps=0,
    steps=900,
)


def decoded_presence(work_dir: Path, count: int, seed: int, held_out: bool = False) -> PresenceData:
    """Drawn creatures after the autoencoder, labelled with the traits that were drawn."""
    plain = drawn_presence(count, np.random.default_rng(seed), held_out)
    return replace(plain, images=decoded(work_dir, plain.images, seed))


def generated_presence(path: Path, held_out: bool, sure: float = 0.0) -> PresenceData:
    """The generated pictures of a file, with what the character's oracle saw in them.

    Every third is held out. `sure` leaves out those of which any trait's probability lies nearer
    than that to one half.
    """
    with np.load(path) as stored:
        rows = (np.arange(len(stored["images"])) % 3 == 0) == held_out
        rows &= np.abs(stored["probabilities"] - 0.5).min(1) >= sure
        return PresenceData(stored["images"][rows], stored["traits"][rows])


def decoded_for_training(work_dir: Path) -> tuple[Pictures, PresenceData]:
    """What the autoencoder makes of drawn pictures, for each of the rubrics."""
    return (
        Pictures.cached(
            work_dir / "data" / f"decoded_{DECODED}_{DECODED_SEED}.npz",
            lambda: decoded_pictures(work_dir, DECODED, DECODED_SEED, THOROUGH),
        ),
        PresenceData.cached(
            work_dir / "data" / f"decoded_sightings_{DECODED_SIGHTINGS}_{DECODED_SEED}.npz",
            lambda: decoded_presence(work_dir, DECODED_SIGHTINGS, DECODED_SEED),
        ),
    )


def generated(work_dir: Path, held_out: bool) -> dict[str, Path]:
    """Graded pictures of both base models, with and without their pixel-art LoRAs, as files."""
    return {
        system: generate_graded(
            work_dir, *sizes[held_out], held_out, tag="_thorough", system=system, effort=THOROUGH
        )
        for system, sizes in GENERATED.items()
    }


def teach(work_dir: Path) -> None:
    """Train the exported judge on both rubrics; leaves WORK_DIR/judge_presence.json."""
    scratch = work_dir / "judge"
    start = scratch / "before"
    if not start.exists():
        shutil.copytree(JUDGE, start)
    torch.manual_seed(MEETING.reading.seed)
    tokenizer = build()
    model = Judge(tokenizer)
    exported_weights(model, start)
    plain, creatures = decoded_for_training(work_dir)
    met, known, settled = (scratch / f"{name}.pt" for name in ("met", "known", "settled"))
    seconds = checkpointed(model, met, lambda: _learn(model, plain, creatures, MEETING))
    made = [graded_by_oracle(p, CONFIDENT) for p in generated(work_dir, held_out=False).values()]
    zibs = generated_presence(character_pictures(work_dir), False, SURE_OF_TRAITS)
    more, sightings = (
        Pictures.concatenate(plain, *made),
        PresenceData.concatenate(creatures, zibs, zibs),
    )
    seconds += checkpointed(model, known, lambda: _learn(model, more, sightings, KNOWING))
    seconds += checkpointed(model, settled, lambda: _learn(model, more, sightings, SETTLING))
    export(model, tokenizer, JUDGE)
    training = {
        "meeting": asdict(MEETING),
        "knowing": asdict(KNOWING),
        "settling": asdict(SETTLING),
        "decoded": len(plain),
        "decoded_presence": len(creatures),
        "generated": sum(map(len, made)),
        "generated_presence": len(zibs),
        "seconds": seconds,
    }
    measure(work_dir, training)


def character_pictures(work_dir: Path) -> Path:
    """The file of generated pictures of the character that its own stage leaves."""
    return work_dir / "data" / "character_generated.npz"


def _learn(model: Judge, given: Pictures, sightings: PresenceData, recipe: PresenceRecipe) -> None:
    seed = recipe.reading.seed
    supply = picture_sampler(seed + 4, given, recipe.reading.given_share)
    learn(model, supply, presence_sampler(seed + 5, sightings, recipe.given_share), recipe)


def _sighted(work_dir: Path) -> dict[str, PresenceData]:
    """The pictures on which presence is measured. They are not in the training data."""
    rng = np.random.default_rng(DECODED_HELD_OUT_SEED)
    objects = drawn_pictures(held_out_scenes(), 400, DECODED_HELD_OUT_SEED).images
    bases = [graded_by_oracle(p).images[:300] for p in generated(work_dir, held_out=True).values()]
    return {
        "presence_drawn": PresenceData.concatenate(
            drawn_presence(1_200, rng, True), without_character(objects)
        ),
        "presence_decoded": decoded_presence(work_dir, 600, DECODED_HELD_OUT_SEED, True),
        "presence_generated": generated_presence(character_pictures(work_dir), True),
        "presence_of_others": without_character(np.concatenate(bases)),
    }


def _of_prompts(work_dir: Path, directory: Path) -> dict[str, Any]:
    """Figures of the first rubric, on the same pictures for any weights."""
    files = generated(work_dir, held_out=True)
    sets = {f"generated_{system}": graded_by_oracle(path) for system, path in files.items()}
    sets |= {f"sure_{system}": graded_by_oracle(path, SURE) for system, path in files.items()}
    return judge_evaluate.evaluate(directory, sets)


def measure(work_dir: Path, training: Mapping[str, Any]) -> None:
    """Measure the exported judge and write the card."""
    figures = {
        "training": dict(training),
        **_of_prompts(work_dir, JUDGE),
        **presence_evaluate.evaluate(JUDGE, _sighted(work_dir)),
        "sure": SURE,
    }
    for name, file in (("oracle", THOROUGH.name), ("character_oracle", "character_oracle")):
        figures[name] = read_figures(work_dir, file)
    publish(work_dir, figures)


def publish(work_dir: Path, figures: dict[str, Any]) -> None:
    """Write the judge's card from its figures; leaves WORK_DIR/judge_presence.json."""
    write_card(JUDGE, presence_cards.judge_card(figures), figures)
    write_figures(work_dir, "judge_presence", figures)
