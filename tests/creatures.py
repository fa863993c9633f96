"""Pictures of the miniatures' character with more and more of its traits, as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from recipes.character import BELLY, FEET, SKIN, TIPS, TRAITS, WHITE, draw_character
from recipes.domain import BACKGROUNDS

# The colour of each trait's largest part.
COLOURS = {"skin": SKIN, "horns": TIPS, "eyes": WHITE, "belly": BELLY, "feet": FEET}


def creatures(folder: Path, each: int, seed: int) -> list[tuple[Path, int]]:
    """Files of `each` pictures for each true presence, 0 to 5, with their presence."""
    found = []
    rng = np.random.default_rng(seed)
    for presence in range(len(TRAITS) + 1):
        for n in range(each):
            there = rng.permutation(TRAITS)[:presence]
            background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
            path = folder / f"{presence}-{n}.png"
            picture = draw_character(rng, background, frozenset(str(name) for name in there))
            Image.fromarray(picture).save(path)
            found.append((path, presence))
    return found
