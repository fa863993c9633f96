"""Pictures whose true scores are known: graded pixel art, mangled objects, the prompt score."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from recipes.domain import (
    GRID,
    SIZE,
    FloatArray,
    Picture,
    Scene,
    enlarge,
    paint,
    paint_cells,
    pixel_art,
    pixel_pose,
    random_pose,
    render,
    tinted,
)
from recipes.shapes import OBJECTS, Pose, coverage, silhouette

Mask = npt.NDArray[np.bool_]

GRADES = (1, 2, 3, 4, 5)
NO_OBJECT = "none"
_MASK = 3 * SIZE
_PROMPT_SCORES = {3: 5, 2: 3, 1: 1, 0: 0}


def prompt_score(n_right: int) -> int:
    """The true prompt score, 0 to 5, of a picture with n_right of (object, colour, background)."""
    return _PROMPT_SCORES[n_right]


def _blurred(picture: Picture, rng: np.random.Generator, low: float, high: float) -> Picture:
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(rng.uniform(low, high)))
    return np.asarray(image, dtype=np.uint8)


def _noisy(picture: Picture, rng: np.random.Generator, low: float, high: float) -> Picture:
    """Many colours: noise of the given deviation on every pixel."""
    noise = rng.normal(0, rng.uniform(low, high), (SIZE, SIZE, 3))
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _shaded(picture: Picture, rng: np.random.Generator, low: float, high: float) -> Picture:
    """Many colours: smooth waves of light across the picture, of the given strength."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(9, 16) + phase)
    light = rng.uniform(low, high) * wave[..., None]
    shaded: Picture = np.clip(picture + light, 0, 255).astype(np.uint8)
    return shaded


Degradation = Callable[[Picture, np.random.Generator], Picture]

# Each grade has the same four ways to fall short; their strengths do not overlap between grades.
# A grid of 24 or 32 cells is still pixel art, only not the wanted one; 64 cells are no raster.
_FINER_GRID = {4: 24, 3: 32, 2: 64}
_DEGRADATIONS: dict[int, tuple[Degradation, ...]] = {
    4: (
        partial(_blurred, low=0.6, high=0.9),
        partial(_noisy, low=6, high=10),
        partial(_shaded, low=12, high=18),
    ),
    3: (
        partial(_blurred, low=1.3, high=1.7),
        partial(_noisy, low=16, high=22),
        partial(_shaded, low=28, high=36),
    ),
    2: (
        partial(_blurred, low=2.3, high=3.0),
        partial(_noisy, low=32, high=42),
        partial(_shaded, low=52, high=66),
    ),
}


def graded_pixel_art(scene: Scene, grade: int, rng: np.random.Generator) -> Picture:
    """Draw the scene as pixel art that deserves the grade, 1 to 5.

    5 is crisp on the 16-grid in a few flat colours; 1 is a free render. Grades 4, 3 and 2 are
    crisp pixel art made worse in one way, a little, clearly or badly: blurred, on too fine a
    grid, noisy, or shaded smoothly.
    """
    if grade not in GRADES:
        raise ValueError(f"grade {grade} is not one of {GRADES}")
    if grade == 1:
        return render(scene, rng)
    if grade == 5:
        return pixel_art(scene, rng)
    ways = _DEGRADATIONS[grade]
    way = int(rng.integers(len(ways) + 1))
    if way == len(ways):
        return pixel_art(scene, rng, _FINER_GRID[grade])
    return ways[way](pixel_art(scene, rng, GRID), rng)


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> FloatArray:
    """A smooth random field: float32 [size, size], about -1 to 1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    fine = coarse.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32)


def _image(mask: Mask) -> Image.Image:
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def _blob(pose: Pose, rng: np.random.Generator, size: int) -> Mask:
    """A closed wobbly outline that is none of the objects."""
    y, x = np.mgrid[0:size, 0:size] / size
    dx, dy = x - pose.centre_x, y - pose.centre_y
    angle = np.arctan2(dy, dx)
    phases = rng.uniform(0, 2 * math.pi, 4)
    strengths = rng.uniform(0.14, 0.3, 4)
    waves = zip((2, 3, 4, 5), strengths, phases, strict=True)
    wobble = sum(s * np.sin(k * angle + p) for k, s, p in waves)
    return np.asarray(np.hypot(dx, dy) < pose.radius * (0.85 + wobble))


def _elastic(mask: Mask, rng: np.random.Generator) -> Mask:
    """Deform the silhouette until it cannot be recognized."""
    size = mask.shape[0]
    cells = int(rng.integers(5, 8))
    strength = rng.uniform(0.2, 0.28) * size
    y, x = np.mgrid[0:size, 0:size]
    rows = np.clip(y + strength * _smooth_noise(rng, cells, size), 0, size - 1).astype(int)
    columns = np.clip(x + strength * _smooth_noise(rng, cells, size), 0, size - 1).astype(int)
    return np.asarray(mask[rows, columns])


def _half(mask: Mask, pose: Pose, rng: np.random.Generator) -> Mask:
    """Erase a good half along a ragged cut."""
    size = mask.shape[0]
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, 2 * math.pi)
    across = (x - pose.centre_x) * math.cos(angle) + (y - pose.centre_y) * math.sin(angle)
    cut = pose.radius * (rng.uniform(0.0, 0.2) + 0.5 * _smooth_noise(rng, 7, size))
    return np.asarray(mask & (across > cut))


def _blend(scene: Scene, pose: Pose, rng: np.random.Generator, size: int) -> Mask:
    """Two different objects cut and stuck together: one's left, the other's right, shifted."""
    others = [name for name in OBJECTS if name != scene.object]
    names = (scene.object, others[int(rng.integers(len(others)))])
    turned = Pose(pose.centre_x, pose.centre_y, pose.radius, pose.angle + rng.uniform(1.2, 5))
    first = np.asarray(silhouette(names[0], pose, size)) > 127
    second = np.asarray(silhouette(names[1], turned, size)) > 127
    second = np.roll(second, int(rng.uniform(-0.5, 0.5) * pose.radius * size), axis=0)
    side = np.arange(size)[None, :] < pose.centre_x * size
    return np.asarray(np.where(side, first, second))


def _fragments(pose: Pose, rng: np.random.Generator, size: int) -> Mask:
    """Loose lumps without an outline."""
    field = _smooth_noise(rng, int(rng.integers(7, 11)), size)
    y, x = np.mgrid[0:size, 0:size] / size
    near = np.hypot(x - pose.centre_x, y - pose.centre_y) < pose.radius * 1.1
    return np.asarray((field > 0.1) & near)


def mangled_mask(scene: Scene, pose: Pose, rng: np.random.Generator) -> Image.Image:
    """Return a silhouette that is none of OBJECTS, as an "L" image, made in one of five ways."""
    whole = np.asarray(silhouette(scene.object, pose, _MASK)) > 127
    way = int(rng.integers(5))
    if way == 0:
        mask = _blob(pose, rng, _MASK)
    elif way == 1:
        mask = _elastic(whole, rng)
    elif way == 2:
        mask = _half(whole, pose, rng)
    elif way == 3:
        mask = _blend(scene, pose, rng, _MASK)
    else:
        mask = _fragments(pose, rng, _MASK)
    if mask.mean() < 0.02:  # next to nothing left to carry the object's colour
        mask = _blob(pose, rng, _MASK)
    return _image(mask)


def mangled(scene: Scene, rng: np.random.Generator, pixel: bool = False) -> Picture:
    """Draw the scene in its colours, with an object that cannot be recognized.

    In free style, or with `pixel` as crisp pixel art on the 16-grid.
    """
    pose = pixel_pose(rng) if pixel else random_pose(scene.object, rng)
    mask = mangled_mask(scene, pose, rng)
    if not pixel:
        return paint(scene, mask, pose, rng)
    solid = coverage(mask, GRID) > 0.43
    colour, background = tinted(scene.colour, rng, 6), tinted(scene.background, rng, 6)
    return enlarge(paint_cells(colour, background, solid))
