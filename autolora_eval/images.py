"""The images that a plan asks for, as the stages after generation find them on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from autolora_eval.files import read_jsonl, sha256_file
from autolora_eval.plan import Cell, Plan
from autolora_eval.run_folder import RunFolder

MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class CellImage:
    """One image of a cell.

    Attributes:
        id: its path below the cell's image folder; names its features and judgement.
        path: the file.
        prompt_index: place of its prompt in the benchmark.
        prompt: its prompt.
        seed: its seed.
        sha256: of the file as it is now; None if there is no file.
        nfe: denoiser passes it took; None if not recorded.
    """

    id: str
    path: Path
    prompt_index: int
    prompt: str
    seed: int
    sha256: str | None
    nfe: int | None


class ImageError(Exception):
    """An image that cannot be used, with the reason as its message."""


def cell_images(plan: Plan, cell: Cell, folder: RunFolder) -> list[CellImage]:
    """Return the images of a cell in the order of the plan, those without a file included."""
    rows = {row["file_name"]: row for row in read_jsonl(folder.metadata(cell.id))}
    key = folder.settings_key(cell.id)
    # An image of other settings, which an interrupted run has not yet replaced, is none of ours.
    rows = {name: row for name, row in rows.items() if key in (None, row.get("settings_key"))}
    found = []
    for job in plan.jobs:
        path = folder.images(cell.id) / job.file
        ours = key is None or job.file in rows
        sha256 = sha256_file(path) if ours and path.is_file() else None
        nfe = rows.get(job.file, {}).get("nfe")
        found.append(CellImage(job.file, path, job.prompt_index, job.prompt, job.seed, sha256, nfe))
    return found


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB.

    Raises:
        ImageError: it is missing, corrupt, or larger than 100 megapixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"too_large ({image.width}×{image.height})")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise ImageError("missing_image") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ImageError("corrupt_image") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large") from error
