"""One image of a set that somebody else made, as the set names it."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from autolora_eval._files import sha256_bytes, sha256_file
from autolora_eval.runs.images import MAX_PIXELS, unwarned

MAX_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Entry:
    """An image, not opened.

    Attributes:
        name: what the set calls it: its path, or its place in the dataset.
        prompt: its prompt, or the name of the folder that stands for it.
        seed: its seed; None where the set does not say.
        path: its file; None if its bytes are given.
        data: its bytes, as an encoded image; None if it has a file.
        load: reads its bytes from where the set has them; None if it has a file or its bytes.
    """

    name: str
    prompt: str | None
    seed: int | None
    path: Path | None = None
    data: bytes | None = None
    load: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """Return the encoded image; of a file larger than `MAX_BYTES` its beginning.

        Raises:
            OSError: there is no such file.
        """
        if self.data is not None:
            return self.data
        if self.load is not None:
            return self.load()
        if self.path is None:
            raise FileNotFoundError(self.name)
        with self.path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)

    def sha256(self) -> str:
        """Return the SHA-256 of the encoded image.

        Raises:
            OSError: there is no such file.
        """
        return sha256_bytes(self.read()) if self.path is None else sha256_file(self.path)


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        place: where it is.
        kind: how it was read, in words.
        entries: its images.
        by_folder: whether prompts are names of folders, not texts.
        unlisted: images beside an imagefolder's metadata that it does not name.
        listing: name of that metadata; empty where there is none.
    """

    place: Path
    kind: str
    entries: list[Entry]
    by_folder: bool = False
    unlisted: list[Entry] = field(default_factory=list)
    listing: str = ""


# --------------------
# What is wrong with images: corrupt, of another size, of one colour, the same as another.


_UPRIGHT = 1
_ORIENTATION = 0x0112
_DEEP = ";16"  # in Pillow's name of how a file holds its pixels
_INKS = ("CMYK", "YCbCr", "LAB", "HSV")
# Numbers whose black and white are not stated.
_NO_RANGE = ("I", "F")

T = TypeVar("T")


@dataclass(frozen=True)
class Looked:
    """An image, opened once.

    Attributes:
        size: (width, height) in pixels; None if it cannot be used.
        format: as Pillow names it.
        content: SHA-256 of size and RGB pixels: the same for the same picture in another file.
        colour: the RGB of an image that has only one; None for any other.
        converted: what of the file is not in its RGB pixels, in words; empty if all is.
        problem: why it cannot be used; None if it can.
    """

    size: tuple[int, int] | None
    format: str = ""
    content: str = ""
    colour: tuple[int, int, int] | None = None
    converted: str = ""
    problem: str | None = None


def look(data: bytes) -> Looked:
    """Open an image and say what it is; one that cannot be used says why."""
    if len(data) > MAX_BYTES:
        return Looked(None, problem=f"too_large ({len(data)} bytes)")
    try:
        with unwarned(), Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return Looked(None, problem=f"too_large ({opened.width}×{opened.height})")
            if opened.mode in _NO_RANGE:
                return Looked(None, problem=f"unknown_range (mode {opened.mode})")
            kind = opened.format or ""
            converted = ", ".join(_converted(opened))
            image = _rgb(opened)
    except Image.DecompressionBombError:
        return Looked(None, problem="too_large")
    except MemoryError:
        raise
    except Exception:  # whatever one of Pillow's many decoders raises at a torn file
        return Looked(None, problem="corrupt_image")
    content = sha256_bytes(f"{image.width}x{image.height}:".encode() + image.tobytes())
    return Looked(image.size, kind, content, _only_colour(image), converted)


def opened(data: bytes) -> Image.Image:
    """Return the RGB picture of an encoded image that `look` has no problem with."""
    with unwarned(), Image.open(io.BytesIO(data)) as image:
        return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image upright, 8 bits a channel; Pillow itself cuts 16 bits off at 255."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    return ImageOps.exif_transpose(image).convert("RGB")


def _converted(image: Image.Image) -> Iterator[str]:
    """Say what of a file its RGB pixels do not show as it is."""
    if image.mode.startswith("I;16"):
        yield "16 bits a channel, scaled to 8"
        return
    if any(_DEEP in str(tile[3]) for tile in getattr(image, "tile", ())):
        yield "16 bits a channel, cut to 8"
    if image.mode in _INKS:
        yield f"{image.mode} turned into RGB"
    if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        yield "turned as its EXIF says"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        yield "transparency dropped"
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        yield f"the first of {frames} frames"
        image.seek(0)


def _only_colour(image: Image.Image) -> tuple[int, int, int] | None:
    """Return the one colour of an RGB image; None if it has several."""
    pixels = np.asarray(image).reshape(-1, 3)
    if (pixels != pixels[0]).any():
        return None
    red, green, blue = pixels[0].tolist()
    return red, green, blue


def same_content(images: Iterable[tuple[T, Looked]]) -> list[list[T]]:
    """Return the groups of images whose pictures are the same pixel for pixel, in order.

    Args:
        images: (which, what was seen); those that cannot be used belong to no group.
    """
    groups: dict[str, list[T]] = defaultdict(list)
    for name, seen in images:
        if seen.content:
            groups[seen.content].append(name)
    return [names for names in groups.values() if len(names) > 1]
