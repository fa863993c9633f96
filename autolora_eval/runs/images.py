"""The images of a cell, as the stages after generation find them on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autolora_eval._files import Json, sha256_file
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import CellRecord

MAX_PIXELS = 100_000_000
# Where an image's metadata says what making it took.
SECONDS = "seconds"


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
        nfe: function evaluations it took; None if not recorded.
    """

    folder: Path
    id: str
    prompt_index: int
    prompt: str
    seed: int
    sha256: str | None
    nfe: int | None

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.id


class ImageError(Exception):
    """An image that cannot be used, with the reason as its message."""


def cell_images(manifest: RunManifest, cell: CellRecord, folder: RunFolder) -> list[CellImage]:
    """Return the images of a cell in the order of prompts, then seeds; a file may be missing."""
    nfe = {row["file_name"]: row.get("nfe") for row in folder.image_rows(cell)}
    images = folder.images(cell.id)
    found = []
    for job in manifest.jobs():
        name = job.file
        exists = name in nfe and (images / name).is_file()
        sha256 = sha256_file(images / name) if exists else None
        key = (job.prompt_index, job.prompt, job.seed)
        found.append(CellImage(images, name, *key, sha256, nfe.get(name)))
    return found


@dataclass(frozen=True)
class Picture:
    """An image file, byte for byte, known to open.

    Attributes:
        data: the file's bytes.
        format: as Pillow names it, such as `PNG`.
        width: pixels.
        height: pixels.
    """

    data: bytes
    format: str
    width: int
    height: int

    def facts(self) -> Json:
        """Return what is recorded of it."""
        size = {"width": self.width, "height": self.height}
        return {"format": self.format, **size, "bytes": len(self.data)}


def read_picture(path: Path, max_bytes: int) -> Picture:
    """Return an image file as it is, once it is known to open.

    Raises:
        ImageError: it is missing or corrupt, or larger than 100 megapixels or `max_bytes`.
    """
    image = open_image(path)
    with unwarned(), Image.open(path) as opened:
        kind = opened.format or "PNG"
    data = path.read_bytes()
    if len(data) > max_bytes:
        raise ImageError(f"too_large ({len(data)} bytes)")
    return Picture(data, kind, image.width, image.height)


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB.

    Raises:
        ImageError: it is missing, corrupt, or larger than 100 megapixels.
    """
    try:
        with unwarned(), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"too_large ({image.width}×{image.height})")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise ImageError("missing_image") from error
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large") from error
    except Exception as error:  # whatever one of Pillow's many decoders raises at a torn file
        raise ImageError("corrupt_image") from error


def single_colour(image: Image.Image) -> tuple[int, ...] | None:
    """Return the only colour of an RGB image, such as (0, 0, 0); None if it has several."""
    extremes = image.convert("RGB").getextrema()
    colour = tuple(int(low) for low, _ in extremes)
    return colour if colour == tuple(int(high) for _, high in extremes) else None


@contextmanager
def unwarned() -> Iterator[None]:
    """Open images without Pillow's warning of large ones: `MAX_PIXELS` bounds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
