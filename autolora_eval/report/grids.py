"""Image grids: one row a method, the same seeds in the columns, small copies of the images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autolora_eval.report.evidence import NAME_LENGTH, Evidence, Row, in_words, text_of
from autolora_eval.text import clip, fixed, number

PROMPTS_SHOWN = 2
ROWS_SHOWN = 16
SEEDS_SHOWN = 8
THUMBNAIL = 256
PROMPT_LENGTH = 300


@dataclass(frozen=True)
class Picture:
    """One image of a grid.

    Attributes:
        name: of its thumbnail; empty if there is no image.
        text: its seed and scores, or why there is no image.
    """

    name: str
    text: str


@dataclass(frozen=True)
class PictureRow:
    """The images of one cell."""

    label: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Grid:
    """The images of one model and prompt."""

    model: str
    prompt: str
    seeds: list[str]
    rows: list[PictureRow]


@dataclass(frozen=True)
class Grids:
    """All grids, and the thumbnails that they show, as file name → PNG or JPEG."""

    grids: list[Grid]
    thumbnails: dict[str, bytes]


def image_grids(evidence: Evidence) -> Grids:
    """Return a grid for each model and each of the first prompts; of many cells, only one."""
    prompts = sorted({int(row["prompt_index"]) for row in evidence.images})
    prompts = prompts[: PROMPTS_SHOWN if len(evidence.rows) * PROMPTS_SHOWN <= ROWS_SHOWN else 1]
    seeds = sorted({int(row["seed"]) for row in evidence.images})[:SEEDS_SHOWN]
    by_place = {
        (row["cell"], int(row["prompt_index"]), int(row["seed"])): row for row in evidence.images
    }
    thumbnails: dict[str, bytes] = {}
    grids = []
    for model, cells in evidence.models.items():
        for prompt in prompts:
            rows = []
            for cell in cells:
                found = [by_place.get((cell["cell"], prompt, seed)) for seed in seeds]
                pictures = [
                    _picture(evidence, row, seed, thumbnails)
                    for row, seed in zip(found, seeds, strict=True)
                ]
                rows.append(PictureRow(evidence.labels[cell["cell"]], pictures))
            grids.append(
                Grid(
                    clip(model, NAME_LENGTH),
                    _prompt(evidence, prompt),
                    [str(seed) for seed in seeds],
                    rows,
                )
            )
    return Grids(grids, thumbnails)


def _prompt(evidence: Evidence, index: int) -> str:
    texts = (row["prompt"] for row in evidence.images if int(row["prompt_index"]) == index)
    return clip(next(texts), PROMPT_LENGTH)


def _picture(
    evidence: Evidence, row: Row | None, seed: int, thumbnails: dict[str, bytes]
) -> Picture:
    if row is None:
        return Picture("", f"seed {seed}: not in this run")
    try:
        data, suffix = thumbnail(evidence.run.folder.path, text_of(row.get("file")) or "")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = in_words(row.get("image_error")) or f"cannot be read: {type(error).__name__}"
        return Picture("", clip(f"seed {seed}: {reason}", PROMPT_LENGTH))
    name = f"image-{len(thumbnails):04d}{suffix}"
    thumbnails[name] = data
    return Picture(name, f"seed {seed}: {_scores(evidence, row)}")


def _scores(evidence: Evidence, row: Row) -> str:
    scores = [measure for measure in evidence.measured if measure.kind == "score"]
    found = [
        f"{m.label} {fixed(row[m.column], 1)}"
        for m in scores
        if number(row.get(m.column)) is not None
    ]
    reason = in_words(row.get("unscored_reason"))
    if scores and reason:
        return clip(f"unscored: {reason}", PROMPT_LENGTH)
    return ", ".join(found) or "no scores"


def thumbnail(folder: Path, file: str) -> tuple[bytes, str]:
    """Return a copy of an image of at most 256 pixels a side, and its suffix.

    Small images are enlarged by whole factors without smoothing, so that pixels stay crisp in
    viewers that smooth, and are kept without loss; large ones become JPEG.

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
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    stream = io.BytesIO()
    longest = max(image.size)
    if longest > THUMBNAIL:
        # The mean over a box adds no halo, which would blur the edges of pixel art.
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=None)
        image.save(stream, "JPEG", quality=88, subsampling=0)
        return stream.getvalue(), ".jpg"
    factor = THUMBNAIL // longest
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue(), ".png"
