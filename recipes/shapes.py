"""The silhouettes of the domain's objects, as polygons and as anti-aliased masks.

Unit coordinates: x to the right, y down, the object inside about [-1.1, 1.1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Polygon = list[tuple[float, float]]
FloatArray = npt.NDArray[np.float32]

OBJECTS = ("circle", "square", "triangle", "star", "heart", "house", "tree", "moon")


@dataclass(frozen=True)
class Pose:
    """Where an object lies in the picture, in fractions of the picture's side."""

    centre_x: float = 0.5
    centre_y: float = 0.5
    radius: float = 0.33
    angle: float = 0.0
    mirrored: bool = False


def _arc(start: float, stop: float, n: int, radius: float = 1.0, x: float = 0.0) -> Polygon:
    return [(x + radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(start, stop, n)]


def _star() -> Polygon:
    radii = (1.12, 0.52)
    return [
        (radii[i % 2] * math.sin(i * math.pi / 5), -radii[i % 2] * math.cos(i * math.pi / 5))
        for i in range(10)
    ]


def _heart() -> Polygon:
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in np.linspace(0, 2 * math.pi, 48)
    ]


def _moon() -> Polygon:
    """A fat crescent: an outer arc, and back along a circle through its two tips."""
    tip = math.radians(50)
    tip_x, tip_y = math.cos(tip), math.sin(tip)
    inner_x = 0.5
    inner_radius = math.hypot(tip_x - inner_x, tip_y)
    inner_tip = math.atan2(tip_y, tip_x - inner_x)
    outer = _arc(tip, 2 * math.pi - tip, 36)
    inner = _arc(2 * math.pi - inner_tip, inner_tip, 24, inner_radius, inner_x)
    return [(x + 0.17, y) for x, y in outer + inner]


_OUTLINES: dict[str, list[Polygon]] = {
    "circle": [_arc(0, 2 * math.pi, 40)],
    "square": [[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]],
    "triangle": [[(0.0, -1.05), (1.08, 0.85), (-1.08, 0.85)]],
    "star": [_star()],
    "heart": [_heart()],
    "house": [
        [(-0.72, -0.1), (0.72, -0.1), (0.72, 1.0), (-0.72, 1.0)],
        [(0.0, -1.05), (1.1, -0.05), (-1.1, -0.05)],
    ],
    "tree": [
        [(-0.2, 0.2), (0.2, 0.2), (0.2, 1.15), (-0.2, 1.15)],
        [(0.78 * x, 0.72 * y - 0.38) for x, y in _arc(0, 2 * math.pi, 32)],
    ],
    "moon": [_moon()],
}

# Drawn over the object in a contrasting colour; the door makes a house of a pentagon.
_DETAILS: dict[str, list[Polygon]] = {
    "house": [[(-0.22, 0.38), (0.22, 0.38), (0.22, 1.0), (-0.22, 1.0)]],
}


def placed(polygon: Polygon, pose: Pose, size: int) -> Polygon:
    """A polygon in unit coordinates, in pixels of a picture of the given side."""
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    sign = -1.0 if pose.mirrored else 1.0
    x0, y0, r = pose.centre_x * size, pose.centre_y * size, pose.radius * size
    return [
        (x0 + r * (sign * x * cos - y * sin), y0 + r * (sign * x * sin + y * cos))
        for x, y in polygon
    ]


def _rasterised(polygons: list[Polygon], pose: Pose, size: int) -> Image.Image:
    image = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon(placed(polygon, pose, size), fill=255)
    return image


def silhouette(name: str, pose: Pose, size: int) -> Image.Image:
    """The object's mask: an "L" image of size × size, 255 inside, not anti-aliased."""
    return _rasterised(_OUTLINES[name], pose, size)


def detail(name: str, pose: Pose, size: int) -> Image.Image | None:
    """The mask of the object's inner detail in the same form, or None if it has none."""
    return _rasterised(_DETAILS[name], pose, size) if name in _DETAILS else None


def coverage(mask: Image.Image, size: int) -> FloatArray:
    """Average an "L" mask over the cells of a size × size grid: float32 [size, size] in [0, 1]."""
    small = mask.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)
