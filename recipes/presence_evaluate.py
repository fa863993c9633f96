"""Measure the exported judge's replies about the character on labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recipes.character import TRAITS, draw_character
from recipes.domain import BACKGROUNDS
from recipes.judge_evaluate import (
    INVALID,
    ExportedJudge,
    Judging,
    agreement,
)
from recipes.judge_tokenizer import ABSENT, presence_question
from recipes.presence_data import PresenceData, names


class Seen(NamedTuple):
    """What one reply says: the score, INVALID if it is none that the rubric allows, and why."""

    score: int
    reasons: tuple[str, ...]


def parsed(text: str) -> Seen:
    """Read a reply strictly: one JSON object with a score from 0 to 5 and a list of keywords."""
    try:
        said = json.loads(text)
        score, reasons = said["score"], said["reason"]
    except (ValueError, TypeError, KeyError):
        return Seen(INVALID, ())
    right = (
        len(said) == 2
        and isinstance(score, int)
        and 0 <= score <= 5
        and isinstance(reasons, list)
        and all(isinstance(reason, str) for reason in reasons)
    )
    return Seen(score, tuple(reasons)) if right else Seen(INVALID, ())


def replies(judge: Judging, images: npt.NDArray[np.uint8]) -> list[Seen]:
    """What the judge says of each picture, uint8 [N, 64, 64, 3]."""
    return [parsed(text) for text in judge(list(images), [presence_question()] * len(images))]


def expected_reasons(traits: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """The right reasons of a picture with these traits, bool [5]."""
    return tuple(names(traits)) or (ABSENT,)


def _consistent(seen: Seen) -> bool:
    """Whether the score is the number of the traits given as reasons."""
    return seen.score == sum(reason in TRAITS for reason in seen.reasons)


def scored(judge: Judging, shown: PresenceData) -> dict[str, Any]:
    """Agreement with the truth: the score, the reasons, and each trait."""
    found = replies(judge, shown.images)
    right = [
        s.reasons == expected_reasons(there) for s, there in zip(found, shown.traits, strict=True)
    ]
    said = np.array([[name in s.reasons for name in TRAITS] for s in found])
    scores = np.array([s.score for s in found])
    return {
        "count": len(shown),
        "invalid": float((scores == INVALID).mean()),
        "presence": agreement(scores, shown.presence),
        "reasons_right": float(np.mean(right)),
        "score_is_number_of_reasons": float(np.mean([_consistent(s) for s in found])),
        "trait_right": {
            name: float((said[:, i] == shown.traits[:, i]).mean()) for i, name in enumerate(TRAITS)
        },
    }


def drops(judge: Judging, count: int, seed: int) -> dict[str, Any]:
    """How often the score falls when a whole creature is drawn again without one of its traits."""
    states = [np.random.default_rng((seed, i)).bit_generator.state for i in range(count)]
    grounds = [BACKGROUNDS[i % len(BACKGROUNDS)] for i in range(count)]

    def scores(traits: frozenset[str]) -> npt.NDArray[np.int64]:
        pictures = []
        for state, ground in zip(states, grounds, strict=True):
            rng = np.random.default_rng()
            rng.bit_generator.state = state
            pictures.append(draw_character(rng, ground, traits))
        return np.array([seen.score for seen in replies(judge, np.stack(pictures))])

    whole = scores(frozenset(TRAITS))
    lower = {name: float((scores(frozenset(TRAITS) - {name}) < whole).mean()) for name in TRAITS}
    return {"count": count, "whole": float(whole.mean()), "lower_without": lower}


def evaluate(directory: Path, sets: Mapping[str, PresenceData], seed: int = 970) -> dict[str, Any]:
    """All figures about the character: of each set by its name, and of creatures less a trait."""
    judge = ExportedJudge(directory)
    result = {name: scored(judge, shown) for name, shown in sets.items()}
    return {**result, "drops": drops(judge, 160, seed)}
