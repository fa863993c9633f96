from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from recipes.domain import (
    COLOURS,
    GRID,
    PALETTE,
    SIZE,
    TEMPLATES,
    Scene,
    all_scenes,
    canonical_pixel_art,
    caption,
    held_out_scenes,
    is_held_out,
    pixel_art,
    render,
    training_scenes,
)
from recipes.grades import GRADES, graded_pixel_art, mangled, prompt_score
from recipes.shapes import OBJECTS

pytestmark = pytest.mark.model

STAR = Scene("star", "red", "blue")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def n_colours(picture: npt.NDArray[np.uint8]) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def within_cells(picture: npt.NDArray[np.uint8], cells: int = GRID) -> float:
    """Mean deviation inside the cells of a grid: 0 for crisp pixel art on that grid."""
    side = SIZE // cells
    blocks = picture.reshape(cells, side, cells, side, 3).astype(float)
    return float(blocks.std(axis=(1, 3)).mean())


def test_scenes_are_every_combination_of_two_different_colours() -> None:
    assert len(set(all_scenes())) == 8 * 8 * 7
    for scene in all_scenes():
        assert scene.colour != scene.background
        o, c, b = scene.labels
        assert Scene(OBJECTS[o], COLOURS[c], COLOURS[b]) == scene


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("dragon", "red", "blue"), "'dragon' is not one of circle"),
        (("star", "pink", "blue"), "'pink' is not one of red"),
        (("star", "red", "red"), "unseen"),
    ],
)
def test_a_scene_outside_the_domain_is_refused(values: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(*values)


def test_the_split_is_a_partition_that_holds_out_every_word_equally_often() -> None:
    held = held_out_scenes()
    assert {*training_scenes(), *held} == set(all_scenes())
    assert not any(is_held_out(scene) for scene in training_scenes())
    assert all(is_held_out(scene) for scene in held)
    assert len(held) == 48
    for field in ("object", "colour", "background"):
        assert set(Counter(getattr(scene, field) for scene in held).values()) == {6}
    pairs = Counter((scene.object, scene.colour) for scene in held)
    assert max(pairs.values()) == 1


def test_captions() -> None:
    assert caption(STAR) == "a red star on a blue background"
    assert caption(STAR, style=True) == "a red star on a blue background, pixel art style"
    assert caption(STAR, 1, "photo style") == "red star, blue background, photo style"
    orange = Scene("house", "orange", "white")
    assert caption(orange) == "an orange house on a white background"
    assert caption(Scene("house", "white", "orange")).endswith("on an orange background")


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_captions_tell_scenes_apart(template: int) -> None:
    assert len({caption(scene, template) for scene in all_scenes()}) == len(all_scenes())


@pytest.mark.parametrize("drawing", [render, pixel_art, mangled])
def test_the_generator_decides_a_picture(drawing) -> None:
    first, again, other = drawing(STAR, rng(1)), drawing(STAR, rng(1)), drawing(STAR, rng(2))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).max() > 0


def test_canonical_pixel_art_is_crisp_flat_and_differs_between_scenes() -> None:
    pictures = [canonical_pixel_art(scene) for scene in all_scenes()]
    assert max(n_colours(picture) for picture in pictures) <= 5
    assert max(within_cells(picture) for picture in pictures) == 0
    assert len({picture.tobytes() for picture in pictures}) == len(all_scenes())


def test_pictures_have_the_scenes_colours() -> None:
    for scene in all_scenes()[::5]:
        picture = canonical_pixel_art(scene).reshape(-1, 3)
        for colour in (scene.colour, scene.background):
            share = (picture == PALETTE[colour]).all(axis=1).mean()
            assert share > 0.04, (scene, colour)


def test_free_renders_keep_the_background_at_the_border() -> None:
    for seed, scene in enumerate(training_scenes()[::7]):
        picture = render(scene, rng(seed))
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]].astype(float).mean(axis=0)
        distances = {name: np.abs(corners - value).sum() for name, value in PALETTE.items()}
        assert distances[scene.background] < distances[scene.colour], scene


def test_grades_differ_in_what_defines_them() -> None:
    """Crisp pictures have few colours and constant cells; every grade below is worse on average."""
    scenes = training_scenes()[::13]
    cases = [(scene, 3 * n + k) for n, scene in enumerate(scenes) for k in range(3)]
    drawn = {g: [graded_pixel_art(scene, g, rng(n)) for scene, n in cases] for g in GRADES}
    spread = {grade: np.mean([*map(within_cells, found)]) for grade, found in drawn.items()}
    colours = {grade: np.mean([*map(n_colours, found)]) for grade, found in drawn.items()}
    assert spread[5] == 0
    assert spread[5] < spread[4] < spread[3] < spread[2]
    assert colours[5] <= 5 < colours[1]


def test_a_crisp_grade_is_on_the_grid_and_the_finer_grid_is_not() -> None:
    assert within_cells(pixel_art(STAR, rng(), 16)) == 0
    assert within_cells(pixel_art(STAR, rng(), 32)) > 0
    assert within_cells(pixel_art(STAR, rng(), 32), 32) == 0


@pytest.mark.parametrize("grade", [0, 6])
def test_a_grade_out_of_range_is_refused(grade: int) -> None:
    with pytest.raises(ValueError, match=f"grade {grade}"):
        graded_pixel_art(STAR, grade, rng())


def test_mangled_pixel_art_is_crisp_and_differs_from_the_object() -> None:
    for seed in range(20):
        picture = mangled(STAR, rng(seed), pixel=True)
        assert within_cells(picture) == 0
        assert 2 <= n_colours(picture) <= 4
        clean = canonical_pixel_art(STAR)
        body = (picture != picture[0, 0]).any(axis=-1)
        star = (clean != clean[0, 0]).any(axis=-1)
        assert (body != star).mean() > 0.05


def test_prompt_score_rewards_every_right_attribute() -> None:
    assert [prompt_score(n) for n in (0, 1, 2, 3)] == [0, 1, 3, 5]
    with pytest.raises(KeyError):
        prompt_score(4)
