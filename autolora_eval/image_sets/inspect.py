"""What is wrong with images: corrupt, of another size, of one colour, the same as another."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from autolora_eval.files import sha256_bytes
from autolora_eval.images import MAX_PIXELS

MAX_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Looked:
    """An image, opened once.

    Attributes:
        size: (width, height) in pixels; None if it cannot be used.
        format: as Pillow names it.
        content: SHA-256 of size and RGB pixels: the same for the same picture in another file.
        colour: the RGB of an image that has only one; None for any other.
        problem: why it cannot be used; None if it can.
    """

    size: tuple[int, int] | None
    format: str = ""
    content: str = ""
    colour: tuple[int, int, int] | None = None
    problem: str | None = None


def look(data: bytes) -> Looked:
    """Open an image and say what it is; one that cannot be used says why."""
    if len(data) > MAX_BYTES:
        return Looked(None, problem=f"too_large ({len(data)} bytes)")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return Looked(None, problem=f"too_large ({opened.width}×{opened.height})")
            kind = opened.format or ""
            image = opened.convert("RGB")
    except Image.DecompressionBombError:
        return Looked(None, problem="too_large")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        return Looked(None, problem="corrupt_image")
    content = sha256_bytes(f"{image.width}x{image.height}:".encode() + image.tobytes())
    return Looked(image.size, kind, content, _only_colour(image))


def _only_colour(image: Image.Image) -> tuple[int, int, int] | None:
    """Return the one colour of an RGB image; None if it has several."""
    pixels = np.asarray(image).reshape(-1, 3)
    if (pixels != pixels[0]).any():
        return None
    red, green, blue = pixels[0].tolist()
    return red, green, blue


def same_content(images: Iterable[tuple[str, Looked]]) -> list[list[str]]:
    """Return the groups of names whose pictures are the same pixel for pixel, in order.

    Args:
        images: (name, what was seen); those that cannot be used belong to no group.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, seen in images:
        if seen.content:
            groups[seen.content].append(name)
    return [names for names in groups.values() if len(names) > 1]
