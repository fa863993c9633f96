"""The images of a cell on disk, for the stages after generation."""

from __future__ import annotations

import math
import stat
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from autolora_eval._files import Json, sha256_file
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import CellRecord

MAX_PIXELS = 100_000_000
# Images of text-to-image models are smaller.
MAX_BYTES = 256 * 1024**2
# A batch holds many images: each is first reduced to about this size.
BATCHED_PIXELS = 2048 * 2048
# Some other formats of Pillow are unsafe: EPS starts an external program.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "MPO")
# The key of the seconds that an image took, in its metadata.
SECONDS = "seconds"
# The key of an image that was made in a batch of 1, because its guider mixes the images of a batch.
MADE_ALONE = "made_alone"


@dataclass(frozen=True, slots=True)
class CellImage:
    """One image of a cell.

    Attributes:
        folder: the cell's image folder.
        id: its path below that folder; names its features and judgement.
        prompt_index: index of its prompt in the benchmark.
        prompt: its prompt.
        seed: its seed.
        sha256: of the file as it is now; None if there is no file.
        nfe: its function evaluations; None if not recorded.
        problem: why it is not scored: `missing_image`, `too_large …`, or `changed_image` if its
            bytes are not those of its record; None if it is scored.
    """

    folder: Path
    id: str
    prompt_index: int
    prompt: str
    seed: int
    sha256: str | None
    nfe: int | None
    problem: str | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.id


class ImageError(Exception):
    """An image that cannot be used, with the reason as its message."""


def cell_images(
    manifest: RunManifest,
    cell: CellRecord,
    folder: RunFolder,
    hashed: Container[tuple[str, str]] = (),
) -> list[CellImage]:
    """Return the images of a cell in the order of prompts, then seeds; a file may be missing.

    The files of images in `hashed`, by id and recorded hash, are not read again.
    """
    # The whole rows of a million images would take a gigabyte.
    recorded = {
        row["file_name"]: (row.get("sha256"), row.get("nfe")) for row in folder.image_rows(cell)
    }
    images = folder.images(cell.id)
    inside: set[Path] = set()
    found = []
    for job in manifest.jobs():
        row, path = recorded.get(job.file), images / job.file
        if path.parent not in inside or path.is_symlink():
            inside.add(folder.within(path).parent)
        sha256, nfe = row or (None, None)
        problem = None
        if (job.file, str(sha256)) not in hashed:
            sha256, problem = _state(path, sha256) if row else (None, "missing_image")
        key = (job.prompt_index, job.prompt, job.seed)
        found.append(CellImage(images, job.file, *key, sha256, nfe, problem))
    return found


def _state(path: Path, recorded: object) -> tuple[str | None, str | None]:
    """Return the hash of an image file, and why it is not scored."""
    try:
        _check_file(path)
    except ImageError as error:
        return None, str(error)
    sha256 = sha256_file(path)
    return sha256, None if sha256 == recorded else "changed_image"


@dataclass(frozen=True)
class Picture:
    """The bytes of an image file that can be opened, and its format as Pillow names it."""

    data: bytes
    format: str
    width: int
    height: int

    def facts(self) -> Json:
        """Return format, size and bytes, for the record of a judgement."""
        size = {"width": self.width, "height": self.height}
        return {"format": self.format, **size, "bytes": len(self.data)}


def read_picture(path: Path, max_bytes: int = MAX_BYTES) -> tuple[Picture, Image.Image]:
    """Return an image file that can be opened, and its image as RGB.

    Raises:
        ImageError: if it is missing or corrupt, or larger than 100 megapixels or `max_bytes`.
    """
    image = open_image(path)
    with opened(path) as header:
        kind = header.format or "PNG"
    data = path.read_bytes()
    if len(data) > max_bytes:
        raise ImageError(f"too_large ({len(data)} bytes)")
    return Picture(data, kind, image.width, image.height), image


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB.

    Raises:
        ImageError: if it is missing, corrupt, or larger than 100 megapixels or 256 MiB.
    """
    try:
        with opened(path) as image:
            return as_rgb(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a decoder of Pillow may raise anything for a damaged file
        raise ImageError("corrupt_image") from error


def single_colour(image: Image.Image) -> tuple[int, ...] | None:
    """Return the only colour of an image, such as (0, 0, 0); None if it has several."""
    colours = as_rgb(image).getcolors(1)  # None if there are more
    colour = colours[0][1] if colours else None
    return colour if isinstance(colour, tuple) else None


def reduced(image: Image.Image) -> Image.Image:
    """Reduce a very large image by a whole factor, for a batch."""
    factor = math.ceil(math.sqrt(image.width * image.height / BATCHED_PIXELS))
    return image.reduce(factor) if factor > 1 else image


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels.

    Raises:
        ImageError: if it is not a regular file, or larger than 100 megapixels or 256 MiB.
    """
    if isinstance(source, Path):
        _check_file(source)
    with warnings.catch_warnings():
        # Pillow only warns of very many pixels; `MAX_PIXELS` limits them.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(source, formats=image_formats())
        except Image.DecompressionBombError as error:
            raise ImageError("too_large") from error
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"too_large ({image.width}×{image.height})")
            yield image


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing_image") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("missing_image")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"too_large ({status.st_size} bytes)")


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as RGB, without a second copy if it is RGB."""
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def image_formats() -> tuple[str, ...]:
    """Return the image formats that are read and that this Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
