"""Which images the gallery shows, the same prompts and seeds of every cell, and small copies."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._text import as_finite_float, pluralize, truncate
from autolora_eval.analysis.metric_columns import Measure
from autolora_eval.report.document import data_uri
from autolora_eval.report.run_view import (
    NAME_LENGTH,
    REASON_LENGTH,
    Row,
    RunView,
    in_words,
    text_of,
)
from autolora_eval.runs.images import ImageError, open_image
from autolora_eval.scoring.judgement_store import JudgementFile

IMAGES_SHOWN = 480
PIXELS_READ = 256 * 1024 * 1024
BYTES_EMBEDDED = 12_000_000
LONGEST_SIDE = 256
SEEDS_OF_A_PROMPT = 4
JPEG_QUALITY = 80
SHOWN_REASON_LENGTH = 200
THREADS = 4


class Place(NamedTuple):
    """What one image of a cell has in common with one of each other cell."""

    prompt_index: int
    seed: int


@dataclass(frozen=True)
class Shown:
    """An image of the gallery.

    Attributes:
        row: of scores.parquet.
        cell: place of its cell in the result table.
        picture: a small copy as a data URI; empty if there is none.
        absent: why there is none; empty if there is one.
    """

    row: Row
    cell: int
    picture: str
    absent: str

    @property
    def crisp(self) -> bool:
        """Whether the copy has all pixels of the image, to be enlarged without smoothing."""
        return self.picture.startswith("data:image/png")


def shown_images(view: RunView) -> list[Shown]:
    """Return the images that the gallery shows, by prompt, seed and cell.

    Three limits keep file and waiting short: on images, on the pixels that are read for them, and
    on the bytes of the copies. Whatever they leave out, they leave out of every cell alike.
    """
    cells = [row["cell"] for row in view.rows][:IMAGES_SHOWN]
    by_place = {
        (row["cell"], Place(int(row["prompt_index"]), int(row["seed"]))): row for row in view.images
    }
    if not cells or not by_place:
        return []
    places = choose_image_keys(sorted({place for _, place in by_place}), _affordable(view, cells))
    found = [
        (place, n, by_place[cell, place])
        for place in places
        for n, cell in enumerate(cells)
        if (cell, place) in by_place
    ]
    folder = view.run.folder.path
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        copies = list(pool.map(lambda item: _copy(folder, item[2]), found))
    sizes = dict.fromkeys(places, 0)
    for (place, _, _), (picture, _) in zip(found, copies, strict=True):
        sizes[place] += len(picture)
    kept = _within(sizes, BYTES_EMBEDDED)
    return [
        Shown(row, cell, picture, absent)
        for (place, cell, row), (picture, absent) in zip(found, copies, strict=True)
        if place in kept
    ]


def choose_image_keys(places: Sequence[Place], limit: int) -> list[Place]:
    """Return at most `limit` places: the first seeds of the first prompts.

    Several seeds of few prompts rather than one seed of many: how far the images of one prompt
    differ is what diversity is about.

    Args:
        places: those of a run, sorted.
        limit: at least one.
    """
    prompts = sorted({place.prompt_index for place in places})
    seeds = sorted({place.seed for place in places})
    of_a_prompt = min(len(seeds), limit, max(SEEDS_OF_A_PROMPT, limit // len(prompts)))
    prompts = prompts[: limit // of_a_prompt]
    seeds = seeds[: limit // len(prompts)]
    wanted = {Place(prompt, seed) for prompt in prompts for seed in seeds}
    return [place for place in places if place in wanted]


def _affordable(view: RunView, cells: Sequence[str]) -> int:
    """Return how many images of each cell can be shown, judged by the first of each cell."""
    first: dict[str, Row] = {}
    for row in view.images:
        first.setdefault(row["cell"], row)
    folder = view.run.folder.path
    pixels = sum(_pixels(folder, first[cell]) for cell in cells if cell in first)
    return max(1, min(IMAGES_SHOWN // len(cells), PIXELS_READ // max(pixels, 1)))


def _pixels(folder: Path, row: Row) -> int:
    try:
        with Image.open(inside(folder, text_of(row.get("file")) or "")) as image:
            return image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0


def _within(sizes: dict[Place, int], limit: int) -> set[Place]:
    """Return the first places whose sizes add up to at most `limit`, and the very first."""
    kept: set[Place] = set()
    total = 0
    for place, size in sizes.items():
        total += size
        if kept and total > limit:
            break
        kept.add(place)
    return kept


def _copy(folder: Path, row: Row) -> tuple[str, str]:
    """Return a small copy of an image as a data URI, and why there is none; one is empty."""
    try:
        image = open_image(inside(folder, text_of(row.get("file")) or ""))
    except (ImageError, ValueError) as error:
        reason = in_words(row.get("image_error")) or in_words(str(error))
        return "", truncate(reason or type(error).__name__, SHOWN_REASON_LENGTH)
    data, suffix = small_copy(image)
    return data_uri(f"image{suffix}", data), ""


def small_copy(image: Image.Image) -> tuple[bytes, str]:
    """Return a copy of at most 256 pixels a side, and its suffix.

    A small image keeps its pixels, without loss. A large one is divided by a whole number, so
    that equal blocks of pixels become one pixel each and pixel art is not blurred.
    """
    stream = io.BytesIO()
    factor = -(-max(image.size) // LONGEST_SIDE)
    if factor == 1:
        image.save(stream, "PNG", compress_level=9)
        return stream.getvalue(), ".png"
    image.reduce(factor).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue(), ".jpg"


def inside(folder: Path, file: str) -> Path:
    """Return a path below a run folder, which may come from somebody else.

    Raises:
        ValueError: the path leads out of it.
    """
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError("its path leads out of the run folder")
    return path


# --------------------
# What the judge replied to the images of the gallery, word for word.


RAW_LENGTH = 2000
REPEATS_SHOWN = 5

ByImage = dict[tuple[object, object], list[Row]]


@dataclass(frozen=True)
class ShownReply:
    """One reply of the judge.

    Attributes:
        about: which model gave it, at which attempt, and how it was read.
        raw: its text as it came, or the beginning of it; None if there was none.
        note: what was left out; empty if nothing was.
    """

    about: str
    raw: str | None
    note: str


class Replies:
    """The judgements of a run, read cell by cell when first asked for.

    Args:
        evidence: the run.
    """

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._key = view.manifest_value("judge", "key")
        self._cells: dict[str, ByImage | str] = {}

    def of_image(self, row: Row) -> list[ShownReply]:
        """Return the replies to an image as it is now; if there is none, the reason.

        Args:
            row: of scores.parquet.
        """
        if not self._view.judged:
            return []
        cell = str(row["cell"])
        if cell not in self._cells:
            self._cells[cell] = self._read(cell)
        known = self._cells[cell]
        if isinstance(known, str):
            return [ShownReply(known, None, "")]
        found = known.get((row.get("image_id"), row.get("sha256")), [])
        if not found:
            return [ShownReply(f"{_file(cell)} has no reply to this image.", None, "")]
        shown = [
            _shown(reply, n, len(found), cell, self._view.judged)
            for n, reply in enumerate(found[:REPEATS_SHOWN])
        ]
        left = len(found) - len(shown)
        more = ShownReply(
            f"{pluralize(left, 'more reply', 'more replies')}: {_file(cell)}", None, ""
        )
        return [*shown, more] if left else shown

    def _read(self, cell: str) -> ByImage | str:
        """Return a cell's judgements by image, or why there are none."""
        folder = self._view.run.folder
        try:
            path = inside(folder.path, str(folder.judgements(cell).relative_to(folder.path)))
            return _by_image(JudgementFile(path).rows(self._key))
        except (AutoLoRAEvalError, OSError, ValueError, LookupError, TypeError) as error:
            return f"{_file(cell)} cannot be read: {truncate(_first_line(error), REASON_LENGTH)}"


def _by_image(rows: Iterable[Row]) -> ByImage:
    """Return rows by image and its hash, in order of repeat; the last of a repeat counts."""
    found: dict[tuple[object, object], dict[int, Row]] = {}
    for row in rows:
        image = found.setdefault((row["image_id"], row["sha256"]), {})
        image[int(row.get("repeat", 0))] = row
    return {image: [repeats[n] for n in sorted(repeats)] for image, repeats in found.items()}


def _shown(row: Row, n: int, total: int, cell: str, judged: Sequence[Measure]) -> ShownReply:
    raw = row.get("raw")
    raw = raw if isinstance(raw, str) else None
    about = [
        truncate(row.get("model") or "a model not recorded", NAME_LENGTH),
        f"asked for time {n + 1} of {total}" if total > 1 else "",
        f"attempt {row.get('attempt', 1)}",
        _seconds(row),
        _verdict(row, judged),
        "" if raw is not None else "no reply",
    ]
    note = ""
    if raw is not None and len(raw) > RAW_LENGTH:
        note = f"The first {RAW_LENGTH:,} of {len(raw):,} characters; the rest is in {_file(cell)}."
        raw = raw[:RAW_LENGTH]
    return ShownReply(truncate(", ".join(filter(None, about)), 3 * REASON_LENGTH), raw, note)


def _seconds(row: Row) -> str:
    if row.get("cached"):
        return "from the cache of earlier replies"
    seconds = as_finite_float(row.get("latency_seconds"))
    return "" if seconds is None else f"{seconds:.2f} s"


def _verdict(row: Row, judged: Sequence[Measure]) -> str:
    scores = row.get("scores")
    if not isinstance(scores, dict):
        return f"unscored: {in_words(row.get('reason')) or 'reason not manifest_value'}"
    values = {metric.label: as_finite_float(scores.get(metric.column)) for metric in judged}
    return ", ".join(f"{label} {value:g}" for label, value in values.items() if value is not None)


def _file(cell: str) -> str:
    return truncate(f"judgements/{cell}.jsonl", 2 * NAME_LENGTH)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
