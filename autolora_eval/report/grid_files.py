"""Grids as PNG files with their labels, for papers and slides."""

from __future__ import annotations

import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from autolora_eval._files import atomic_write
from autolora_eval.report.grids import Grid, GridImage, Grids
from autolora_eval.report.thumbnails import THUMBNAIL, Copy

FONT_SIZE = 22
LETTERS_DOWN = 24
LETTERS_ACROSS = 20
LINES = 8
GAP = 6
MARGIN = 12
WHITE, INK, FAINT = "#ffffff", "#1b1d1f", "#f0f0f0"


def write_grids(grids: Grids, folder: Path) -> list[Path]:
    """Write every grid as `<name>.png`; those of an earlier report go.

    Args:
        grids: of the report.
        folder: where to write.

    Returns:
        The files written.
    """
    for old in folder.glob("grid_*.png"):
        old.unlink()
    files = [folder / f"{grid.name}.png" for grid in grids.grids]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(partial(_write, copies=grids.copies), grids.grids, files))
    return files


def _write(grid: Grid, file: Path, copies: dict[str, Copy]) -> None:
    with atomic_write(file) as temporary:
        drawn(grid, copies).save(temporary, "PNG")


def drawn(grid: Grid, copies: dict[str, Copy]) -> Image.Image:
    """Return a grid with the heads of its columns and the labels of its rows, on white."""
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE
    )
    heads = [_wrapped(text, LETTERS_ACROSS) for text in grid.columns]
    labels = [_wrapped(row.label, LETTERS_DOWN) for row in grid.rows]
    corner = _wrapped(grid.corner, LETTERS_DOWN)
    line = FONT_SIZE + 6
    left = MARGIN + GAP + max(_width(text, font) for text in [corner, *labels])
    top = MARGIN + GAP + line * max(text.count("\n") + 1 for text in [corner, *heads])
    step = THUMBNAIL + GAP
    size = (left + step * len(heads) + MARGIN, top + step * len(labels) + MARGIN)
    page = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, top - GAP), corner, fill=INK, font=font, anchor="ld")
    for n, head in enumerate(heads):
        middle = left + n * step + THUMBNAIL // 2
        pen.text((middle, top - GAP), head, fill=INK, font=font, anchor="md", align="center")
    for m, (label, row) in enumerate(zip(labels, grid.rows, strict=True)):
        pen.text((MARGIN, top + m * step + THUMBNAIL // 2), label, fill=INK, font=font, anchor="lm")
        for n, picture in enumerate(row.pictures):
            _paste(page, pen, picture, copies, (left + n * step, top + m * step), font)
    return page


def _paste(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    picture: GridImage,
    copies: dict[str, Copy],
    at: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    copy = copies.get(picture.name)
    if copy is not None and copy.image is not None:
        room = [(THUMBNAIL - side) // 2 for side in copy.image.size]
        page.paste(copy.image, (at[0] + room[0], at[1] + room[1]))
        return
    pen.rectangle((*at, at[0] + THUMBNAIL - 1, at[1] + THUMBNAIL - 1), fill=FAINT)
    middle = (at[0] + THUMBNAIL // 2, at[1] + THUMBNAIL // 2)
    text = _wrapped(picture.text, LETTERS_ACROSS - 2)
    pen.text(middle, text, fill=INK, font=font, anchor="mm", align="center")


def _wrapped(text: str, letters: int) -> str:
    """Return text in a few lines that are no longer than this."""
    return textwrap.fill(text, letters, max_lines=LINES, placeholder=" …")


def _width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return round(max((font.getlength(line) for line in text.split("\n")), default=0.0))
