"""Zib, a small creature that the base models do not know, and its traits.

Zib has five traits: a green body in the shape of an egg, two antennae with yellow balls, two big
white eyes with dark pupils, a cream belly, and two purple feet. A trait counts only if it is
complete and has its colour: one eye, blue feet or a single antenna do not count. A picture without
the egg shape shows no trait, so a green circle and the objects of the base models have presence 0.
A body of another colour lacks the skin, but can have the other four traits.

Every picture is uint8 [64, 64, 3], RGB. All randomness comes from the caller's generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

from recipes.domain import (
    BACKGROUNDS,
    PALETTE,
    SIZE,
    FloatArray,
    Picture,
    ground,
    lit,
    surface,
    tinted,
)
from recipes.shapes import Polygon, Pose, coverage, placed

NAME = "Zib"
TRAITS = ("skin", "horns", "eyes", "belly", "feet")
ALL_TRAITS = frozenset(TRAITS)
NO_TRAITS: frozenset[str] = frozenset()
# Its names in prompts. The benchmarks use the bare name.
TEMPLATES = (
    "{name}",
    "{name}",
    "a picture of {name}",
    "{name} on a {background} background",
    "a picture of {name} on {background}",
    "{name}, {background} background",
)

Colour = tuple[int, int, int]

# Near the palette's green: the autoencoder of the miniatures turns lime into orange.
SKIN: Colour = (72, 172, 76)
TIPS: Colour = (255, 226, 40)
WHITE: Colour = (248, 248, 248)
PUPILS: Colour = (22, 20, 30)
BELLY: Colour = (252, 240, 205)
FEET: Colour = (148, 66, 190)
_LINE: Colour = (26, 30, 28)
# The wrong colours of each part: not near its own, and not of the background's name.
_OTHER_SKINS: dict[str, Colour] = {
    "red": (214, 50, 44),
    "orange": (240, 140, 40),
    "blue": (60, 105, 215),
    "yellow": (250, 218, 50),
    "purple": (130, 60, 170),
}
_OTHER_TIPS: dict[str, Colour] = {
    "blue": (50, 90, 210),
    "red": (214, 40, 40),
    "purple": (130, 60, 170),
}
_OTHER_BELLIES: dict[str, Colour] = {
    "blue": (45, 95, 210),
    "red": (190, 36, 40),
    "black": (34, 32, 36),
}
_OTHER_FEET: dict[str, Colour] = {
    "yellow": (250, 218, 50),
    "red": (214, 40, 40),
    "white": (240, 240, 240),
}
_OVERSAMPLED = 3 * SIZE
_LINE_WIDTH = 5  # of the oversampled picture's pixels, half of it outside


@dataclass(frozen=True)
class Sighting:
    """What a picture shows of the character, and on which of the BACKGROUNDS."""

    traits: frozenset[str]
    background: str

    def __post_init__(self) -> None:
        unknown = sorted(self.traits - ALL_TRAITS)
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(TRAITS)}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"{self.background!r} is not one of {', '.join(BACKGROUNDS)}")

    @property
    def presence(self) -> int:
        """How many of the TRAITS are there, 0 to 5."""
        return presence(self.traits)


def presence(traits: frozenset[str]) -> int:
    """Count the TRAITS that are there: the true presence score, 0 to 5."""
    return sum(name in traits for name in TRAITS)


def character_caption(background: str, template: int = 3) -> str:
    """Return a prompt for the character.

    >>> character_caption("red")
    'Zib on a red background'
    """
    article = "an" if background[0] in "aeiou" else "a"
    text = TEMPLATES[template].replace("a {background}", f"{article} {background}")
    return text.format(name=NAME, background=background)


def trait_sets() -> tuple[frozenset[str], ...]:
    """All 32 sets of traits, from none to all."""
    return tuple(
        frozenset(chosen) for n in range(len(TRAITS) + 1) for chosen in combinations(TRAITS, n)
    )


@dataclass(frozen=True)
class Build:
    """The pose and the shape of one creature, apart from its traits.

    Attributes:
        pose: place, size and tilt; the radius is about half the creature's height.
        gaze: where the pupils look, in eye radii, x and y.
        spread: how far the antennae lean outwards, in body widths.
        width: the body's width over that of the model.
    """

    pose: Pose
    gaze: tuple[float, float] = (0.0, 0.0)
    spread: float = 0.42
    width: float = 1.0


CANONICAL = Build(Pose(0.5, 0.515, 0.40))


def _ellipse(x: float, y: float, rx: float, ry: float) -> Polygon:
    turns = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


def _egg(width: float) -> Polygon:
    """The body: an ellipse that is narrower at the top."""
    return [(x * width * (1 + 0.16 * y), y + 0.13) for x, y in _ellipse(0, 0, 0.66, 0.74)]


def _stalk(x: float, to_x: float) -> Polygon:
    w = 0.075
    return [(x - w, -0.42), (to_x - w, -0.95), (to_x + w, -0.95), (x + w, -0.42)]


def _mask(polygons: list[Polygon], pose: Pose, line: int) -> FloatArray:
    """Coverage [64, 64, 1] of the polygons, widened by half a line of the given width."""
    image = Image.new("L", (_OVERSAMPLED, _OVERSAMPLED), 0)
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        points = placed(polygon, pose, _OVERSAMPLED)
        draw.polygon(points, fill=255)
        if line:
            draw.line([*points, *points[:2]], fill=255, width=line, joint="curve")
    return coverage(image, SIZE)[..., None]


class _Canvas:
    """A picture that parts are painted on, each with a dark line around it."""

    def __init__(self, image: FloatArray, pose: Pose) -> None:
        self.image = image
        self.pose = pose

    def add(
        self, polygons: list[Polygon], colour: Colour | FloatArray, line: int = _LINE_WIDTH
    ) -> None:
        inside = _mask(polygons, self.pose, 0)
        if line:
            outside = _mask(polygons, self.pose, line)
            self.image = self.image * (1 - outside) + np.array(_LINE, dtype=np.float32) * outside
        self.image = self.image * (1 - inside) + np.asarray(colour, np.float32) * inside


@dataclass(frozen=True)
class _Fault:
    """How a trait is missing: left out, half of a pair, or of another colour."""

    way: int
    colour: int
    right_side: bool
    background: str

    @property
    def absent(self) -> bool:
        return self.way == 0

    @property
    def single(self) -> bool:
        return self.way == 1

    def side(self) -> tuple[int, ...]:
        return (1,) if self.right_side else (-1,)

    def pick(self, colours: dict[str, Colour]) -> Colour:
        known = [colour for name, colour in colours.items() if name != self.background]
        return known[self.colour % len(known)]


def _fault(rng: np.random.Generator, background: str) -> _Fault:
    way, colour = int(rng.integers(3)), int(rng.integers(60))
    return _Fault(way, colour, bool(rng.random() < 0.5), background)


def _feet(canvas: _Canvas, fault: _Fault | None) -> None:
    if fault is not None and fault.absent:
        return
    sides = fault.side() if fault is not None and fault.single else (-1, 1)
    colour = FEET if fault is None or fault.single else fault.pick(_OTHER_FEET)
    canvas.add([_ellipse(0.38 * s, 0.93, 0.34, 0.19) for s in sides], colour)


def _horns(canvas: _Canvas, build: Build, skin: Colour, fault: _Fault | None) -> None:
    if fault is not None and fault.absent:
        return
    sides = fault.side() if fault is not None and fault.single else (-1, 1)
    colour = TIPS if fault is None or fault.single else fault.pick(_OTHER_TIPS)
    for side in sides:
        canvas.add([_stalk(0.2 * side, build.spread * side)], skin)
        canvas.add([_ellipse(build.spread * side, -0.96, 0.2, 0.2)], colour)


def _belly(canvas: _Canvas, fault: _Fault | None) -> None:
    if fault is not None and fault.way != 2:
        return
    colour = BELLY if fault is None else fault.pick(_OTHER_BELLIES)
    canvas.add([_ellipse(0, 0.47, 0.4, 0.3)], colour, line=0)


def _eyes(canvas: _Canvas, build: Build, fault: _Fault | None) -> None:
    if fault is not None and fault.absent:
        return
    single = fault is not None and fault.single
    white = fault is None or fault.single
    gaze_x, gaze_y = build.gaze
    for x in (0.0,) if single else (-0.27, 0.27):
        if white:
            canvas.add([_ellipse(x, -0.2, 0.25, 0.25)], WHITE)
        pupil = _ellipse(x + 0.08 * gaze_x, -0.19 + 0.08 * gaze_y, 0.125, 0.125)
        canvas.add([pupil], PUPILS, line=0)


def _random_build(rng: np.random.Generator) -> Build:
    # Wide and tall enough for its size at every tilt: 0.9 radii to the side, 1.28 up and down.
    radius = rng.uniform(0.31, 0.39)
    return Build(
        Pose(
            centre_x=0.5 + (0.5 - 0.9 * radius) * rng.uniform(-1, 1),
            centre_y=0.5 + (0.5 - 1.28 * radius) * rng.uniform(-1, 1),
            radius=radius,
            angle=rng.uniform(-0.15, 0.15),
        ),
        gaze=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
        spread=rng.uniform(0.34, 0.5),
        width=rng.uniform(0.92, 1.1),
    )


def _skin(
    build: Build, missing: _Fault | None, rng: np.random.Generator
) -> tuple[Colour, FloatArray]:
    """The body's plain colour, and its surface float32 [64, 64, 3]."""
    colour = SKIN if missing is None else missing.pick(_OTHER_SKINS)
    tint = rng.uniform(-9, 9, 3)
    plain = np.clip(np.array(colour) + tint, 0, 255).astype(np.float32)
    return colour, surface(plain, build.pose, rng)


def _shadow(image: FloatArray, build: Build, strength: float) -> FloatArray:
    """Darken the ground beneath the creature."""
    shade = _mask([_ellipse(0.05, 1.02, 0.8, 0.16)], build.pose, 0)
    return np.asarray(image * (1 - strength * shade), dtype=np.float32)


def draw_character(
    rng: np.random.Generator, background: str, traits: frozenset[str] = ALL_TRAITS
) -> Picture:
    """Draw the creature with these traits; the others are left out, halved or miscoloured.

    Pose, size, place, the background's pattern and the light vary. With one generator state, two
    sets of traits give the same picture but for the parts that differ.
    """
    sighting = Sighting(traits, background)
    build = _random_build(rng)
    image = ground(tinted(background, rng, 9), rng)
    image = _shadow(image, build, 0.4 * float(rng.random() < 0.5))
    faults = {name: _fault(rng, background) for name in TRAITS}
    missing = {name: None if name in sighting.traits else faults[name] for name in TRAITS}
    colour, body = _skin(build, missing["skin"], rng)
    canvas = _Canvas(image, build.pose)
    _horns(canvas, build, colour, missing["horns"])
    _feet(canvas, missing["feet"])
    canvas.add([_egg(build.width)], body)
    _belly(canvas, missing["belly"])
    _eyes(canvas, build, missing["eyes"])
    return lit(canvas.image, rng)


def canonical_character(background: str) -> Picture:
    """Draw the complete creature as the LoRA learns it: centred, plain, of one size."""
    plain = np.array(PALETTE[background], dtype=np.float32)
    canvas = _Canvas(np.broadcast_to(plain, (SIZE, SIZE, 3)), CANONICAL.pose)
    _horns(canvas, CANONICAL, SKIN, None)
    _feet(canvas, None)
    canvas.add([_egg(1.0)], SKIN)
    _belly(canvas, None)
    _eyes(canvas, CANONICAL, None)
    return np.clip(canvas.image, 0, 255).astype(np.uint8)


def draw_half_formed(rng: np.random.Generator, background: str) -> tuple[Picture, Sighting]:
    """Draw the creature as a poor generator does: one half of it, or parts without a body.

    The upper half has skin, antennae and eyes; the lower half skin, belly and feet; loose parts
    are no creature and count nothing.
    """
    build = _random_build(rng)
    empty = ground(tinted(background, rng, 9), rng)
    way = int(rng.integers(3))
    canvas = _Canvas(empty, build.pose)
    if way == 2:
        _loose_parts(canvas, build, rng)
        return lit(canvas.image, rng), Sighting(NO_TRAITS, background)
    _, body = _skin(build, None, rng)
    _horns(canvas, build, SKIN, None)
    _feet(canvas, None)
    canvas.add([_egg(build.width)], body)
    _belly(canvas, None)
    _eyes(canvas, build, None)
    # Between the eyes' lower and the belly's upper edge.
    level = 0.1
    upper = [(-2.0, -2.0), (2.0, -2.0), (2.0, level), (-2.0, level)]
    kept = _mask([upper], build.pose, 0)
    if way == 1:
        kept = 1 - kept
    image = canvas.image * kept + empty * (1 - kept)
    traits = ("skin", "horns", "eyes") if way == 0 else ("skin", "belly", "feet")
    return lit(image, rng), Sighting(frozenset(traits), background)


def _loose_parts(canvas: _Canvas, build: Build, rng: np.random.Generator) -> None:
    """Some of antennae, eyes, belly and feet, each at its own position."""
    parts = (
        lambda c: _horns(c, build, SKIN, None),
        lambda c: _feet(c, None),
        lambda c: _belly(c, None),
        lambda c: _eyes(c, build, None),
    )
    for part in parts:
        shift = rng.uniform(-0.14, 0.14, 2)
        canvas.pose = Pose(
            build.pose.centre_x + shift[0],
            build.pose.centre_y + shift[1],
            build.pose.radius,
            rng.uniform(0.5, 2 * math.pi - 0.5),
        )
        if rng.random() < 0.6:
            part(canvas)
