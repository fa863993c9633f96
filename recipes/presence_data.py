"""Pictures that show more or less of the character, for the judge's second rubric."""

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
from recipes.dinov2 import softened
from recipes.domain import BACKGROUNDS, Picture

HALF_FORMED_SHARE = 0.12
SOFT_SHARE = 0.3


@dataclass(frozen=True)
class Sightings:
    """Pictures uint8 [N, 64, 64, 3] and which of TRAITS each shows, bool [N, 5]."""

    images: npt.NDArray[np.uint8]
    traits: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def presence(self) -> npt.NDArray[np.int64]:
        """The true scores, 0 to 5: int64 [N]."""
        return np.asarray(self.traits.sum(1), dtype=np.int64)

    def rows(self, index: slice | npt.NDArray[np.int64]) -> Sightings:
        """A part of the pictures."""
        return Sightings(self.images[index], self.traits[index])


def gathered(*parts: Sightings) -> Sightings:
    """All pictures, one set after the other."""
    return Sightings(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.traits for part in parts]),
    )


def without_character(images: npt.NDArray[np.uint8]) -> Sightings:
    """Pictures of something else: none of the traits is there."""
    return Sightings(images, np.zeros((len(images), len(TRAITS)), dtype=np.bool_))


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


def drawn_sightings(count: int, rng: np.random.Generator, held_out: bool = False) -> Sightings:
    """Draw creatures with any of the traits, some half formed and some soft as decoded ones are.

    Creatures come on backgrounds that `is_held_out_pairing` leaves to training, or only on the
    others; half-formed ones on all.
    """
    images, traits = [], []
    for _ in range(count):
        picture, there = _one(rng, held_out)
        images.append(softened(picture, rng) if rng.random() < SOFT_SHARE else picture)
        traits.append([name in there for name in TRAITS])
    return Sightings(np.stack(images), np.array(traits, dtype=np.bool_))


class SightingSupply:
    """New drawn pictures for every batch, among them a share of given ones."""

    def __init__(self, seed: int, given: Sightings, share: float) -> None:
        self._rng = np.random.default_rng(seed)
        self._given, self._share = given, share

    def __call__(self, count: int) -> Sightings:
        """The next `count` pictures."""
        taken = round(self._share * count)
        fresh = drawn_sightings(count - taken, self._rng)
        if not taken:
            return fresh
        return gathered(fresh, self._given.rows(self._rng.integers(0, len(self._given), taken)))
