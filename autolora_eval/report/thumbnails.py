"""Small copies of a run's images: the only module of the report that opens images."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autolora_eval._files import path_inside
from autolora_eval.runs.images import ImageError, open_image, opened

SIDE = 256
JPEG_QUALITY = 85
THREADS = 4


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image, or the reason why there is none.

    Attributes:
        data: A PNG file with all pixels, or a JPEG file of a large image; empty without an image.
        image: The same as an image; None without an image.
        problem: Why there is no image; empty if there is one.
    """

    data: bytes
    image: Image.Image | None
    problem: str = ""

    @property
    def suffix(self) -> str:
        """The suffix of its file."""
        return ".png" if self.data.startswith(b"\x89PNG") else ".jpg"

    @property
    def uri(self) -> str:
        """The thumbnail as a data URI; empty without an image."""
        kind = "png" if self.suffix == ".png" else "jpeg"
        encoded = base64.b64encode(self.data).decode("ascii")
        return f"data:image/{kind};base64,{encoded}" if self.data else ""


def load_thumbnails(
    folder: Path, files: Iterable[str], *, enlarge: bool = False
) -> dict[str, Thumbnail]:
    """Return a thumbnail of each distinct file, in order of first appearance.

    Args:
        folder: The run folder.
        files: Paths below it.
        enlarge: Whether small images are enlarged; see `make_thumbnail`.
    """
    distinct = list(dict.fromkeys(files))
    # Decoding releases Python's lock, so threads are enough.
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda file: _load(folder, file, enlarge), distinct))
    return dict(zip(distinct, found, strict=True))


def _load(folder: Path, file: str, enlarge: bool) -> Thumbnail:
    try:
        return make_thumbnail(open_run_image(folder, file), enlarge=enlarge)
    except (ImageError, ValueError) as error:
        return Thumbnail(b"", None, str(error))


def open_run_image(folder: Path, file: str) -> Image.Image:
    """Return an image of a run folder, whose tables may name any path.

    Args:
        folder: The run folder.
        file: Path below it.

    Raises:
        ImageError: The image is missing, corrupt or too large.
        ValueError: The path leads out of the run folder.
    """
    return open_image(path_inside(folder, file))


def make_thumbnail(image: Image.Image, *, enlarge: bool = False) -> Thumbnail:
    """Return a copy of at most 256 pixels a side.

    A small image keeps its pixels, without loss. A large one is divided by an integer, so that
    equal blocks of pixels become one pixel each and pixel art is not blurred.

    Args:
        image: The image.
        enlarge: Whether a small image is enlarged by an integer without smoothing, so that its
            pixels stay crisp in viewers that smooth.
    """
    longest = max(image.size)
    stream = io.BytesIO()
    if longest > SIDE:
        copy = image.convert("RGB").reduce(-(-longest // SIDE))
        copy.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return Thumbnail(stream.getvalue(), copy)
    factor = SIDE // longest if enlarge else 1
    size = (image.width * factor, image.height * factor)
    copy = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    copy.save(stream, "PNG")
    return Thumbnail(stream.getvalue(), copy)


def count_pixels(folder: Path, file: str) -> int:
    """Return the number of pixels of an image without decoding it; 0 if it cannot be opened."""
    try:
        with opened(path_inside(folder, file)) as image:
            return image.width * image.height
    except (ImageError, OSError, ValueError, SyntaxError):
        return 0
