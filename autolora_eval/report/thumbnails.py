"""Small copies of a run's images for its report: each is opened once, a bounded number at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

THUMBNAIL = 256
THREADS = 4


@dataclass(frozen=True)
class Copy:
    """A small copy of an image, or why there is none.

    Attributes:
        name: of its file; empty if there is none.
        data: PNG or JPEG.
        image: the same, to be drawn; None if there is none.
        problem: name of the error; empty if there is a copy.
    """

    name: str
    data: bytes
    image: Image.Image | None
    problem: str = ""


def copies(folder: Path, files: Iterable[str]) -> dict[str, Copy]:
    """Return a copy of each distinct file, in order of first appearance.

    Args:
        folder: the run folder.
        files: paths below it.
    """
    distinct = list(dict.fromkeys(files))
    # Decoding leaves Python's lock: threads are enough.
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda item: _copy(folder, *item), enumerate(distinct)))
    return dict(zip(distinct, found, strict=True))


def _copy(folder: Path, place: int, file: str) -> Copy:
    try:
        image = opened(folder, file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Copy("", b"", None, type(error).__name__)
    copy, stream = small(image), io.BytesIO()
    if max(image.size) > THUMBNAIL:
        copy.save(stream, "JPEG", quality=88, subsampling=0)
        return Copy(f"image-{place:04d}.jpg", stream.getvalue(), copy)
    # Enlarged pixels come in long runs: a lossless copy is small.
    copy.save(stream, "PNG")
    return Copy(f"image-{place:04d}.png", stream.getvalue(), copy)


def opened(folder: Path, file: str) -> Image.Image:
    """Return an image of a run folder.

    Args:
        folder: the run folder.
        file: path below it.

    Raises:
        OSError: no such image, or it is broken.
        ValueError: the path leads out of the run folder.
    """
    path = (folder / file).resolve()
    # A run folder may come from somebody else: its tables must not pull in other files.
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"'{file}' leads out of the run folder")
    with Image.open(path) as image:
        return image.convert("RGB")


def small(image: Image.Image) -> Image.Image:
    """Return a copy of at most 256 pixels a side.

    Small images are enlarged by whole factors without smoothing, so that pixels stay crisp in
    viewers that smooth. Of large ones the mean over a box is taken: it adds no halo, which would
    blur the edges of pixel art.
    """
    longest = max(image.size)
    if longest > THUMBNAIL:
        copy = image.copy()
        copy.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=None)
        return copy
    factor = THUMBNAIL // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
