"""Thumbnails and image grids of the report, also as PNG files for papers and slides."""

from __future__ import annotations

import base64
import io
import os
import textwrap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from autolora_eval._files import atomic_write, path_inside
from autolora_eval._text import as_finite_float, format_fixed, truncate
from autolora_eval.report.grid_layout import PROMPT_LENGTH, Grid, GridRow, GridSlot, choose_grids
from autolora_eval.report.run_view import Row, RunView, in_words, text_of
from autolora_eval.runs.images import ImageError, open_image, opened

SIDE = 256
JPEG_QUALITY = 85
THREADS = 4


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an image, or the reason why there is none."""

    data: bytes  # a PNG file with all pixels, or a JPEG file of a large image
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
    """Return a thumbnail of each distinct file of a run folder, in order of first appearance."""

    def load(file: str) -> Thumbnail:
        try:
            return make_thumbnail(open_image(path_inside(folder, file)), enlarge=enlarge)
        except (ImageError, ValueError) as error:
            return Thumbnail(b"", None, str(error))

    distinct = list(dict.fromkeys(files))
    # Decoding releases Python's lock, so threads are enough.
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(distinct, pool.map(load, distinct), strict=True))


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


# Large images take 30 ms each to be read.
IMAGES_READ = 256


@dataclass(frozen=True)
class GridImage:
    """One image of a grid. An empty name stands for a missing image.

    Attributes:
        name: Name of its thumbnail.
        text: Its seed and scores, or why there is no image.
        file: Its path below the run folder.
    """

    name: str
    text: str
    file: str = ""


@dataclass(frozen=True)
class Grids:
    """All grids, and the thumbnails that they show, by file name."""

    grids: list[Grid[GridImage]]
    thumbnails: dict[str, Thumbnail]


def image_grids(view: RunView) -> Grids:
    """Return the grids of a run, up to a limit on the images that are read."""
    specs = _affordable(choose_grids(view))
    files = [file for spec in specs for file in _files(spec)]
    found = load_thumbnails(view.run.folder.path, files, enlarge=True)
    names = {
        file: f"image-{n:04d}{thumbnail.suffix}"
        for n, (file, thumbnail) in enumerate(found.items())
        if thumbnail.image is not None
    }
    grids = [
        spec.with_rows(
            [
                GridRow(row.label, [_image(view, slot, found, names) for slot in row.images])
                for row in spec.rows
            ]
        )
        for spec in specs
    ]
    return Grids(grids, {name: found[file] for file, name in names.items()})


def _affordable(specs: list[Grid[GridSlot]]) -> list[Grid[GridSlot]]:
    """Return the first grid, and the next ones until the limit on images is reached."""
    kept: list[Grid[GridSlot]] = []
    read: set[str] = set()
    for spec in specs:
        more = read | set(_files(spec))
        if not kept or len(more) <= IMAGES_READ:
            kept.append(spec)
            read = more
    return kept


def _files(spec: Grid[GridSlot]) -> list[str]:
    rows = [slot.row for row in spec.rows for slot in row.images]
    return [file for row in rows if row and (file := text_of(row.get("file")))]


def _image(
    view: RunView, slot: GridSlot, found: dict[str, Thumbnail], names: dict[str, str]
) -> GridImage:
    if slot.row is None:
        return GridImage("", f"seed {slot.seed}: not in this run")
    file = text_of(slot.row.get("file")) or ""
    if file not in names:
        problem = found[file].problem if file else "no file"
        reason = in_words(slot.row.get("image_error")) or in_words(problem)
        return GridImage("", truncate(f"seed {slot.seed}: {reason}", PROMPT_LENGTH))
    return GridImage(names[file], f"seed {slot.seed}: {_scores(view, slot.row)}", file)


def _scores(view: RunView, row: Row) -> str:
    reason = in_words(row.get("unscored_reason"))
    if view.judged and reason:
        return truncate(f"unscored: {reason}", PROMPT_LENGTH)
    found = [
        f"{score.label} {format_fixed(row[score.column], 1)}"
        for score in view.judged
        if as_finite_float(row.get(score.column)) is not None
    ]
    return ", ".join(found) or "no scores"


# ---- Grids as files

FONT_SIZE = 22
LETTERS_DOWN = 24
LETTERS_ACROSS = 20
LINES = 8
GAP = 6
MARGIN = 12
WHITE, INK, FAINT = "#ffffff", "#1b1d1f", "#f0f0f0"


def write_grids(grids: Grids, folder: Path) -> list[Path]:
    """Write every grid as `<name>.png`, delete those of an earlier report, and return the files."""
    for old in folder.glob("grid_*.png"):
        old.unlink()

    def write(grid: Grid[GridImage]) -> Path:
        file = folder / f"{grid.name}.png"
        with atomic_write(file) as temporary:
            draw_grid(grid, grids.thumbnails).save(temporary, "PNG")
        return file

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(write, grids.grids))


def draw_grid(grid: Grid[GridImage], thumbnails: dict[str, Thumbnail]) -> Image.Image:
    """Return a grid with the heads of its columns and the labels of its rows, on white."""
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE
    )
    heads = [_wrapped(text, LETTERS_ACROSS) for text in grid.columns]
    labels = [_wrapped(row.label, LETTERS_DOWN) for row in grid.rows]
    corner = _wrapped(grid.corner, LETTERS_DOWN)
    line = FONT_SIZE + 6
    widths = [font.getlength(line) for text in (corner, *labels) for line in text.split("\n")]
    left = MARGIN + GAP + round(max(widths))
    top = MARGIN + GAP + line * max(text.count("\n") + 1 for text in [corner, *heads])
    step = SIDE + GAP
    size = (left + step * len(heads) + MARGIN, top + step * len(labels) + MARGIN)
    page = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, top - GAP), corner, fill=INK, font=font, anchor="ld")
    for n, head in enumerate(heads):
        middle = left + n * step + SIDE // 2
        pen.text((middle, top - GAP), head, fill=INK, font=font, anchor="md", align="center")
    for m, (label, row) in enumerate(zip(labels, grid.rows, strict=True)):
        y = top + m * step
        pen.text((MARGIN, y + SIDE // 2), label, fill=INK, font=font, anchor="lm")
        for n, image in enumerate(row.images):
            thumbnail = thumbnails.get(image.name)
            at = (left + n * step, y)
            if thumbnail is not None and thumbnail.image is not None:
                room = [(SIDE - side) // 2 for side in thumbnail.image.size]
                page.paste(thumbnail.image, (at[0] + room[0], at[1] + room[1]))
            else:
                _draw_missing(pen, image.text, at, font)
    return page


def _draw_missing(
    pen: ImageDraw.ImageDraw, text: str, at: tuple[int, int], font: ImageFont.FreeTypeFont
) -> None:
    pen.rectangle((*at, at[0] + SIDE - 1, at[1] + SIDE - 1), fill=FAINT)
    middle = (at[0] + SIDE // 2, at[1] + SIDE // 2)
    wrapped = _wrapped(text, LETTERS_ACROSS - 2)
    pen.text(middle, wrapped, fill=INK, font=font, anchor="mm", align="center")


def _wrapped(text: str, letters: int) -> str:
    """Return text in a few lines of at most this many letters."""
    return textwrap.fill(text, letters, max_lines=LINES, placeholder=" …")
