"""Pictures with some traits of the character, for the judge's second rubric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.character import (
    TRAITS,
    draw_character,
    draw_half_formed,
    trait_sets,
)
from recipes.data import MixedSampler, Rows
from recipes.dinov2 import softened
from recipes.domain import BACKGROUNDS, Picture

HALF_FORMED_SHARE = 0.12
SOFT_SHARE = 0.3


@dataclass(frozen=True)
class PresenceData(Rows):
    """Pictures uint8 [N, 64, 64, 3] and which of TRAITS each shows, bool [N, 5]."""

    images: npt.NDArray[np.uint8]
    traits: npt.NDArray[np.bool_]

    @property
    def presence(self) -> npt.NDArray[np.int64]:
        """The true scores, 0 to 5: int64 [N]."""
        return np.asarray(self.traits.sum(1), dtype=np.int64)


def without_character(images: npt.NDArray[np.uint8]) -> PresenceData:
    """Pictures of something else: none of the traits is there."""
    return PresenceData(images, np.zeros((len(images), len(TRAITS)), dtype=np.bool_))


def names(traits: npt.NDArray[np.bool_]) -> list[str]:
    """The traits that are there, bool [5], by name."""
    return [name for name, there in zip(TRAITS, traits, strict=True) if there]


def is_held_out_pairing(traits: frozenset[str], background: str) -> bool:
    """Whether no drawn training picture shows just these traits on this background.

    Each of the 32 sets of traits is held out on one of the eight backgrounds, and each background
    from four sets.
    """
    number = sum(1 << place for place, name in enumerate(TRAITS) if name in traits)
    return (number + 3 * BACKGROUNDS.index(background)) % len(BACKGROUNDS) == 0


def _drawn_traits(rng: np.random.Generator) -> frozenset[str]:
    """Every number of traits is equally likely, and every set among those of its number."""
    number = int(rng.integers(len(TRAITS) + 1))
    sets = [traits for traits in trait_sets() if len(traits) == number]
    return sets[int(rng.integers(len(sets)))]


def _one(rng: np.random.Generator, held_out: bool) -> tuple[Picture, frozenset[str]]:
    if rng.random() < HALF_FORMED_SHARE:
        picture, seen = draw_half_formed(rng, BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))])
        return picture, seen.traits
    traits = _drawn_traits(rng)
    backgrounds = [b for b in BACKGROUNDS if is_held_out_pairing(traits, b) == held_out]
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    return draw_character(rng, background, traits), traits


def drawn_presence(count: int, rng: np.random.Generator, held_out: bool = False) -> PresenceData:
    """Draw creatures with any of the traits, some half formed and some soft as decoded ones are.

    Creatures come on backgrounds that `is_held_out_pairing` leaves to training, or only on the
    others; half-formed ones on all.
    """
    images, traits = [], []
    for _ in range(count):
        picture, there = _one(rng, held_out)
        images.append(softened(picture, rng) if rng.random() < SOFT_SHARE else picture)
        traits.append([name in there for name in TRAITS])
    return PresenceData(np.stack(images), np.array(traits, dtype=np.bool_))


def presence_sampler(seed: int, given: PresenceData, share: float) -> MixedSampler[PresenceData]:
    """Return a sampler of new drawn pictures and a share of given pictures."""
    return MixedSampler(seed, drawn_presence, given, share)
