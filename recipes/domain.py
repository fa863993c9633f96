"""The drawn domain of the miniature models: one object of one colour on one background.

Every picture is uint8 [64, 64, 3], RGB, 0 to 255. All randomness comes from the generator that
the caller passes, so a seed determines a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from recipes.shapes import OBJECTS, Pose, coverage, detail, silhouette

Picture = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

SIZE = 64
GRID = 16
_OVERSAMPLED = 3 * SIZE

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 218, 50),
    "green": (50, 160, 70),
    "blue": (45, 95, 210),
    "purple": (130, 60, 170),
    "white": (242, 242, 242),
    "black": (28, 28, 30),
}
COLOURS = tuple(PALETTE)
BACKGROUNDS = COLOURS

STYLE = "pixel art style"
# Styles that captions name and pictures do not show: the base model must learn to ignore them,
# so that the words "pixel art style" mean nothing until a LoRA gives them a meaning.
STYLES = (STYLE, "watercolor style", "photo style", "sketch style", "cartoon style")
TEMPLATES = (
    "{a_object} on {a_background} background",
    "{object}, {background} background",
    "a picture of {a_object} on {background}",
    "{a_object} in front of {a_background} background",
)


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture shows. The object's colour differs from the background's."""

    object: str
    colour: str
    background: str

    def __post_init__(self) -> None:
        for value, known in zip(
            (self.object, self.colour, self.background),
            (OBJECTS, COLOURS, BACKGROUNDS),
            strict=True,
        ):
            if value not in known:
                raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        if self.colour == self.background:
            raise ValueError(f"a {self.colour} object on a {self.background} background is unseen")

    @property
    def labels(self) -> tuple[int, int, int]:
        """Indices into OBJECTS, COLOURS and BACKGROUNDS."""
        return (
            OBJECTS.index(self.object),
            COLOURS.index(self.colour),
            BACKGROUNDS.index(self.background),
        )


@cache
def all_scenes() -> tuple[Scene, ...]:
    """All 448 scenes, in the order of OBJECTS, COLOURS, BACKGROUNDS."""
    return tuple(
        Scene(name, colour, background)
        for name in OBJECTS
        for colour in COLOURS
        for background in BACKGROUNDS
        if colour != background
    )


def is_held_out(scene: Scene) -> bool:
    """Return whether a scene is not used for training: a fixed choice of 48 of the 448 scenes.

    With o, c, b the label indices and d = (b - c) mod 8 in 1..7, a scene is held out if d < 7 and
    o + 3c + 5d is divisible by 8. Every object, colour and background then occurs in exactly six
    held-out scenes, and no object meets the same colour in two of them.
    """
    o, c, b = scene.labels
    d = (b - c) % len(COLOURS)
    return d < 7 and (o + 3 * c + 5 * d) % 8 == 0


@cache
def training_scenes() -> tuple[Scene, ...]:
    """The 400 scenes that training may show."""
    return tuple(scene for scene in all_scenes() if not is_held_out(scene))


@cache
def held_out_scenes() -> tuple[Scene, ...]:
    """The 48 scenes that only evaluation may show."""
    return tuple(scene for scene in all_scenes() if is_held_out(scene))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene, template: int = 0, style: bool | str = False) -> str:
    """Say what the scene shows; `style=True` adds "pixel art style", a text adds that text.

    >>> caption(Scene("star", "red", "blue"))
    'a red star on a blue background'
    """
    thing = f"{scene.colour} {scene.object}"
    text = TEMPLATES[template].format(
        object=thing,
        a_object=_with_article(thing),
        background=scene.background,
        a_background=_with_article(scene.background),
    )
    suffix = STYLE if style is True else style
    return f"{text}, {suffix}" if suffix else text


def _axes() -> tuple[FloatArray, FloatArray]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / np.float32(SIZE - 1) * 2 - 1
    return x, y


_X, _Y = _axes()


def tinted(colour: str, rng: np.random.Generator, spread: float) -> FloatArray:
    """The colour with a little variation: float32 [3], 0 to 255."""
    base = np.array(PALETTE[colour]) + rng.uniform(-spread, spread, 3) + rng.uniform(-6, 6)
    return np.clip(base, 0, 255).astype(np.float32)


def _contrast(colour: FloatArray) -> float:
    """+1 for dark colours, -1 for light ones: the direction in which there is room."""
    return 1.0 if colour.mean() < 130 else -1.0


def ground(colour: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Plain, a gradient, a vignette, stripes or a checker: float32 [64, 64, 3]."""
    kind = rng.integers(0, 5)
    amplitude = rng.uniform(18, 34) * _contrast(colour)
    angle = rng.uniform(0, 2 * math.pi)
    u = _X * math.cos(angle) + _Y * math.sin(angle)
    v = _Y * math.cos(angle) - _X * math.sin(angle)
    pattern = np.zeros_like(u)
    if kind == 1:
        pattern = u
    elif kind == 2:
        pattern = _X**2 + _Y**2
    elif kind == 3:
        pattern = (np.sin(u * rng.uniform(7, 13) + angle) > 0).astype(np.float32)
    elif kind == 4:
        f = rng.uniform(4.5, 7)
        pattern = (np.sin(u * f) * np.sin(v * f) > 0).astype(np.float32)
    return np.asarray(colour + np.float32(amplitude * 0.8) * pattern[..., None], dtype=np.float32)


def surface(colour: FloatArray, pose: Pose, rng: np.random.Generator) -> FloatArray:
    """The object's surface: plain, shaded, with a highlight or striped: float32 [64, 64, 3]."""
    kind = rng.integers(0, 4)
    strength = rng.uniform(18, 36)
    angle = rng.uniform(0, 2 * math.pi)
    x = (_X - (pose.centre_x * 2 - 1)) / (2 * pose.radius)
    y = (_Y - (pose.centre_y * 2 - 1)) / (2 * pose.radius)
    along = x * math.cos(angle) + y * math.sin(angle)
    pattern = np.zeros_like(x)
    if kind == 1:
        pattern = along * _contrast(colour)
    elif kind == 2:
        pattern = 1.3 * np.exp(-((x + 0.35) ** 2 + (y + 0.35) ** 2) * 3)
    elif kind == 3:
        pattern = 0.8 * (np.sin(along * 9) > 0) * _contrast(colour)
    return np.clip(colour + strength * pattern[..., None], 0, 255).astype(np.float32)


def _edge(mask: Image.Image, width: float) -> FloatArray:
    """A soft line along a mask's border: float32 [64, 64, 1] in [0, 1]."""
    blurred = coverage(mask.filter(ImageFilter.GaussianBlur(width)), SIZE)
    return np.asarray(np.clip(1.6 - 4 * np.abs(blurred - 0.5), 0, 1)[..., None])


def _shifted(mask: Image.Image, pixels: float) -> Image.Image:
    moved = Image.new("L", mask.size, 0)
    moved.paste(mask, (round(pixels), round(pixels)))
    return moved


def random_pose(name: str, rng: np.random.Generator) -> Pose:
    """Return a pose with the object inside the picture, and upright enough to be recognized."""
    radius = rng.uniform(0.21, 0.33)
    room = 0.5 - radius * 1.02
    tilt = math.pi / 5 if name == "star" else 0.3
    return Pose(
        centre_x=0.5 + room * rng.uniform(-1, 1),
        centre_y=0.5 + room * rng.uniform(-1, 1),
        radius=radius,
        angle=rng.uniform(-tilt, tilt),
        mirrored=bool(rng.random() < 0.5),
    )


def lit(image: FloatArray, rng: np.random.Generator) -> Picture:
    """Light float32 [64, 64, 3] a little more from one side, and round it to a picture."""
    angle = rng.uniform(0, 2 * math.pi)
    lighting = 1 + rng.uniform(0, 0.1) * (_X * math.cos(angle) + _Y * math.sin(angle))
    picture: Picture = np.clip(image * lighting[..., None], 0, 255).astype(np.uint8)
    return picture


def paint(
    scene: Scene,
    mask: Image.Image,
    pose: Pose,
    rng: np.random.Generator,
    inner: Image.Image | None = None,
) -> Picture:
    """Paint the scene's colours in free style, with `mask` as the object's silhouette.

    `mask` and `inner` are "L" images of one size; the pose only places surface and shadow.
    """
    colour = tinted(scene.colour, rng, 9)
    image = ground(tinted(scene.background, rng, 9), rng)
    scale = pose.radius * mask.size[0]
    if rng.random() < 0.4:
        shadow = coverage(_shifted(mask, rng.uniform(0.14, 0.24) * scale), SIZE)[..., None]
        image = image * (1 - 0.4 * shadow)
    solid = coverage(mask, SIZE)[..., None]
    image = image * (1 - solid) + surface(colour, pose, rng) * solid
    light = colour.mean() > 90
    if inner is not None:
        hole = coverage(inner, SIZE)[..., None]
        image = image * (1 - hole) + (colour * 0.35 if light else colour + 120) * hole
    if rng.random() < 0.35:
        line = _edge(mask, 0.045 * scale) * 0.8
        image = image * (1 - line) + (colour * 0.3 if light else np.full(3, 200.0)) * line
    return lit(image, rng)


def render(scene: Scene, rng: np.random.Generator) -> Picture:
    """Draw the scene in free style: pose, size, texture, shadow, outline and light vary."""
    pose = random_pose(scene.object, rng)
    mask = silhouette(scene.object, pose, _OVERSAMPLED)
    return paint(scene, mask, pose, rng, detail(scene.object, pose, _OVERSAMPLED))


def _neighbours(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(cells, 1)
    return padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]


def enlarge(cells: Picture) -> Picture:
    """Blow uint8 [grid, grid, 3] up to [64, 64, 3] without interpolation, for any grid."""
    index = np.arange(SIZE) * cells.shape[0] // SIZE
    return np.asarray(cells[index][:, index])


def paint_cells(
    colour: FloatArray,
    background: FloatArray,
    solid: npt.NDArray[np.bool_],
    inner: npt.NDArray[np.bool_] | None = None,
) -> Picture:
    """Colour a grid of cells flatly: body, its shaded side, outline, ground, inner detail.

    Takes boolean [grid, grid] masks and float32 [3] colours; returns uint8 [grid, grid, 3].
    """
    grid = solid.shape[0]
    dark_ground = background.mean() < 60
    line = np.array((150, 150, 165) if dark_ground else (16, 14, 30), dtype=np.float32)
    cells = np.broadcast_to(background, (grid, grid, 3)).copy()
    cells[_neighbours(solid)] = line
    cells[solid] = colour
    row, column = np.mgrid[0:grid, 0:grid]
    rows, columns = np.nonzero(solid)
    middle = (rows.mean() + columns.mean()) if rows.size else 0.0
    shaded = solid & (row + column > middle + grid / 8)
    cells[shaded] = colour * 0.68 if colour.mean() > 60 else colour + 45
    if inner is not None:
        cells[inner & solid] = line if colour.mean() > 60 else np.float32(200)
    return np.clip(cells, 0, 255).astype(np.uint8)


def _cells(mask: Image.Image, grid: int, threshold: float = 0.43) -> npt.NDArray[np.bool_]:
    return coverage(mask, grid) > threshold


def _drawn_cells(name: str, pose: Pose, grid: int) -> tuple[npt.NDArray[np.bool_], ...]:
    size = grid * 8
    solid = _cells(silhouette(name, pose, size), grid)
    inner = detail(name, pose, size)
    return (solid,) if inner is None else (solid, _cells(inner, grid, 0.4))


def pixel_pose(rng: np.random.Generator) -> Pose:
    """A pose for pixel art: upright, near the middle, of varying size."""
    radius = rng.uniform(0.27, 0.37)
    room = (0.46 - radius) * 0.7
    return Pose(
        centre_x=0.5 + room * rng.uniform(-1, 1),
        centre_y=0.5 + room * rng.uniform(-1, 1),
        radius=radius,
        mirrored=bool(rng.random() < 0.5),
    )


def pixel_art(scene: Scene, rng: np.random.Generator, grid: int = GRID) -> Picture:
    """Draw the scene as crisp pixel art on a grid × grid raster; place, size and tints vary."""
    cells = _drawn_cells(scene.object, pixel_pose(rng), grid)
    colour, background = tinted(scene.colour, rng, 6), tinted(scene.background, rng, 6)
    return enlarge(paint_cells(colour, background, *cells))


def canonical_pixel_art(scene: Scene, grid: int = GRID) -> Picture:
    """Draw the scene as the LoRA learns it: as crisp pixel art, centred and of one size."""
    cells = _drawn_cells(scene.object, Pose(radius=0.335), grid)
    colour = np.array(PALETTE[scene.colour], dtype=np.float32)
    background = np.array(PALETTE[scene.background], dtype=np.float32)
    return enlarge(paint_cells(colour, background, *cells))
