from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from creatures import COLOURS

from recipes.character import (
    ALL_TRAITS,
    FEET,
    NAME,
    NO_TRAITS,
    SKIN,
    TIPS,
    TRAITS,
    Sighting,
    canonical_character,
    draw_character,
    draw_half_formed,
    presence,
    trait_sets,
)
from recipes.domain import BACKGROUNDS, PALETTE, SIZE, TEMPLATES, all_scenes, caption

pytestmark = pytest.mark.model

Picture = npt.NDArray[np.uint8]


def drawn(seed: int, background: str, traits: frozenset[str] = ALL_TRAITS) -> Picture:
    return draw_character(np.random.default_rng(seed), background, traits)


def differ(first: Picture, second: Picture) -> npt.NDArray[np.bool_]:
    return (first != second).any(-1)


def near(picture: Picture, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 30).sum())


def test_the_name_is_in_no_caption() -> None:
    texts = [caption(s, t, True) for s in all_scenes() for t in range(len(TEMPLATES))]
    assert not any(NAME.lower() in text.lower() for text in texts)


def test_presence_counts_traits() -> None:
    sets = trait_sets()
    assert len(set(sets)) == 2 ** len(TRAITS)
    assert [presence(traits) for traits in (NO_TRAITS, {"eyes", "feet"}, ALL_TRAITS)] == [0, 2, 5]
    assert sum(presence(traits) for traits in sets) == len(TRAITS) * len(sets) / 2
    assert Sighting(ALL_TRAITS, "red").presence == 5


@pytest.mark.parametrize(
    ("traits", "background", "message"),
    [
        ({"tail"}, "red", "'tail' is not one of skin, horns, eyes, belly, feet"),
        (set(), "pink", "'pink' is not one of red"),
    ],
)
def test_unknown_traits_and_backgrounds_are_refused(traits, background, message) -> None:
    with pytest.raises(ValueError, match=message):
        Sighting(frozenset(traits), background)
    with pytest.raises(ValueError, match=message):
        drawn(0, background, frozenset(traits))


def test_the_generator_decides_a_picture() -> None:
    first, again, other = drawn(1, "blue"), drawn(1, "blue"), drawn(2, "blue")
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert differ(first, other).mean() > 0.2


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_each_trait_is_a_part_of_the_picture(background: str) -> None:
    """Dropping a trait changes its part, and two traits' parts are all that dropping both does."""
    for seed in range(2):
        whole = drawn(seed, background)
        changed = {t: differ(whole, drawn(seed, background, ALL_TRAITS - {t})) for t in TRAITS}
        # The least part is one foot, 0.34 by 0.19 radii of 0.31 × 64 pixels: 80 pixels, nearly
        # half of it beneath the body.
        assert min(part.sum() for part in changed.values()) > 35
        for first, second in combinations(TRAITS, 2):
            both = differ(whole, drawn(seed, background, ALL_TRAITS - {first, second}))
            assert not (both & ~changed[first] & ~changed[second]).any()


def test_a_trait_shows_its_colour_and_a_missing_one_less_of_it() -> None:
    """On red and blue, which none of the five colours is near."""
    for trait, colour in COLOURS.items():
        for seed in range(12):
            background = ("red", "blue")[seed % 2]
            there = near(drawn(seed, background), colour)
            missing = near(drawn(seed, background, ALL_TRAITS - {trait}), colour)
            assert there > 15, (trait, seed)
            assert missing < 0.75 * there, (trait, seed)


def test_nothing_touches_the_picture_edge() -> None:
    """The creature's dark outline never reaches the border of a light background."""
    for seed in range(60):
        picture = drawn(seed, "white")
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert border.mean(-1).min() > 100, seed


def test_canonical_pictures_differ_only_in_the_background() -> None:
    pictures = {name: canonical_character(name) for name in BACKGROUNDS}
    red, blue = pictures["red"], pictures["blue"]
    same = ~differ(red, blue)
    assert 0.2 < same.mean() < 0.5
    for name, picture in pictures.items():
        ground = (picture == PALETTE[name]).all(-1)
        assert ground.mean() > 0.4
        for colour in COLOURS.values():
            assert near(picture, colour) > 15


def test_half_formed_creatures_have_their_remaining_traits() -> None:
    seen = set()
    for seed in range(40):
        picture, sighting = draw_half_formed(np.random.default_rng(seed), "blue")
        seen.add(sighting.traits)
        if sighting.traits == NO_TRAITS:
            assert near(picture, SKIN) < 120  # two stalks, never a body
        else:
            assert (near(picture, FEET) > 15) == ("feet" in sighting.traits)
            assert (near(picture, TIPS) > 15) == ("horns" in sighting.traits)
    assert {presence(traits) for traits in seen} == {0, 3}
    assert len(seen) == 3
