"""Which images the gallery shows, and what the judge replied to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._sentences import Sentences
from autolora_eval._text import as_finite_float, truncate
from autolora_eval.analysis.scores import as_said, rubric_of
from autolora_eval.analysis.sentences import Metric
from autolora_eval.report.grids import Thumbnail, count_pixels, load_thumbnails
from autolora_eval.report.run_view import (
    NAME_LENGTH,
    REASON_LENGTH,
    Row,
    RunView,
    in_words,
    records,
    text_of,
)
from autolora_eval.scoring.judgement_store import JudgementFile

if TYPE_CHECKING:
    import pandas as pd

IMAGES_SHOWN = 480
PIXELS_READ = 256 * 1024 * 1024
BYTES_EMBEDDED = 12_000_000
SEEDS_OF_A_PROMPT = 4
SHOWN_REASON_LENGTH = 200
say = Sentences("gallery")


class ImageKey(NamedTuple):
    """What one image of a cell has in common with one image of each other cell."""

    prompt_index: int
    seed: int


@dataclass(frozen=True)
class Shown:
    """An image of the gallery: its row of scores.parquet, and its small copy."""

    row: Row
    cell: int  # index of its cell in the result table
    thumbnail: Thumbnail

    @property
    def missing_reason(self) -> str:
        """Why there is no thumbnail; empty if there is one."""
        if self.thumbnail.image is not None:
            return ""
        reason = in_words(self.row.get("image_error")) or in_words(self.thumbnail.problem)
        return truncate(reason or "", SHOWN_REASON_LENGTH)

    @property
    def crisp(self) -> bool:
        """Whether the thumbnail has all pixels of the image, to be enlarged without smoothing."""
        return bool(self.thumbnail.data) and self.thumbnail.suffix == ".png"


def shown_images(view: RunView) -> list[Shown]:
    """Return the images that the gallery shows, by prompt, seed and cell.

    Three limits keep the file small and the wait short: on the number of images, on the pixels
    that are read, and on the bytes of the thumbnails. What they leave out is left out for every
    cell alike.
    """
    cells, images = [row["cell"] for row in view.rows][:IMAGES_SHOWN], view.images
    if not cells or images.empty:
        return []
    # No more prompts or seeds than these can be chosen.
    first = [sorted(images[name].unique())[:IMAGES_SHOWN] for name in ImageKey._fields]
    images = _of_places(images, *first)
    places = images[[*ImageKey._fields]].drop_duplicates().sort_values([*ImageKey._fields])
    known = [ImageKey(*map(int, place)) for place in places.itertuples(index=False)]
    keys = choose_image_keys(known, _affordable(view, cells))
    rows = {
        (ImageKey(int(row["prompt_index"]), int(row["seed"])), row["cell"]): row
        for row in records(_of_places(images, *map(set, zip(*keys, strict=True))))
    }
    found = [
        (key, n, rows[key, cell])
        for key in keys
        for n, cell in enumerate(cells)
        if (key, cell) in rows
    ]
    files = [text_of(row.get("file")) or "" for _, _, row in found]
    thumbnails = load_thumbnails(view.run.folder.path, files)
    by_key: dict[ImageKey, list[Shown]] = {}
    for (key, cell, row), file in zip(found, files, strict=True):
        by_key.setdefault(key, []).append(Shown(row, cell, thumbnails[file]))
    return _within(list(by_key.values()), BYTES_EMBEDDED)


def _of_places(
    images: pd.DataFrame, prompts: Collection[int], seeds: Collection[int]
) -> pd.DataFrame:
    """Return the images of some prompts and seeds."""
    return images[images["prompt_index"].isin(prompts) & images["seed"].isin(seeds)]


def choose_image_keys(keys: Sequence[ImageKey], limit: int) -> list[ImageKey]:
    """Return at most `limit` keys: the first seeds of the first prompts.

    Several seeds of few prompts are preferred to one seed of many: diversity is about how much
    the images of one prompt differ.
    """
    prompts = sorted({key.prompt_index for key in keys})
    seeds = sorted({key.seed for key in keys})
    seeds_of_a_prompt = min(len(seeds), limit, max(SEEDS_OF_A_PROMPT, limit // len(prompts)))
    prompts = prompts[: limit // seeds_of_a_prompt]
    seeds = seeds[: limit // len(prompts)]
    wanted = {ImageKey(prompt, seed) for prompt in prompts for seed in seeds}
    return [key for key in keys if key in wanted]


def _affordable(view: RunView, cells: Sequence[str]) -> int:
    """Return how many images of each cell can be shown, estimated from the first of each cell."""
    first = view.images.drop_duplicates("cell")
    files = [text_of(file) or "" for file in first.loc[first["cell"].isin(cells), "file"]]
    pixels = sum(count_pixels(view.run.folder.path, file) for file in files)
    return max(1, min(IMAGES_SHOWN // len(cells), PIXELS_READ // max(pixels, 1)))


def _within(groups: Sequence[list[Shown]], limit: int) -> list[Shown]:
    """Return the images of the first group, and of those after it within a limit of bytes."""
    kept: list[Shown] = []
    total = 0
    for group in groups:
        total += sum(len(image.thumbnail.uri) for image in group)
        if kept and total > limit:
            break
        kept += group
    return kept


# ---- Replies of the judge, word for word

RAW_LENGTH = 2000
REPEATS_SHOWN = 5

ByImage = dict[tuple[object, object], list[Row]]


@dataclass(frozen=True)
class ShownReply:
    """One reply of the judge: who gave it, its text if there is one, and what was left out."""

    about: str
    raw: str | None = None
    note: str = ""


class Replies:
    """The judgements of a run on the images that are shown, read cell by cell on first use."""

    def __init__(self, view: RunView, shown: Sequence[Shown]) -> None:
        self._view = view
        self._ids = {(str(image.row["cell"]), image.row.get("image_id")) for image in shown}
        self._key = view.manifest.judge_key
        self._rubric = rubric_of(view.manifest)
        self._cells: dict[str, ByImage | str] = {}

    def of_image(self, row: Row) -> list[ShownReply]:
        """Return the replies to an image as it is now, or the reason why there are none."""
        if not self._view.judged:
            return []
        cell = str(row["cell"])
        if cell not in self._cells:
            self._cells[cell] = self._read(cell)
        known = self._cells[cell]
        if isinstance(known, str):
            return [ShownReply(known)]
        found = known.get((row.get("image_id"), row.get("sha256")), [])
        if not found:
            return [ShownReply(say.no_reply(_file(cell)))]
        shown = [
            _shown(reply, n, len(found), cell, self._view.judged)
            for n, reply in enumerate(found[:REPEATS_SHOWN], start=1)
        ]
        left = len(found) - len(shown)
        return [*shown, ShownReply(say.more_replies(left, _file(cell)))] if left else shown

    def _read(self, cell: str) -> ByImage | str:
        """Return a cell's judgements by image, or why they cannot be read."""
        folder = self._view.run.folder
        try:
            rows = JudgementFile(folder.judgements(cell)).rows(self._key)
            wanted = (row for row in rows if (cell, row["image_id"]) in self._ids)
            return _by_image(as_said(row, self._rubric) for row in wanted)
        except (AutoLoRAEvalError, OSError, ValueError, LookupError, TypeError) as error:
            message = (str(error).splitlines() or [type(error).__name__])[0]
            return say.unreadable(_file(cell), truncate(message, REASON_LENGTH))


def _by_image(rows: Iterable[Row]) -> ByImage:
    """Return rows by image and its hash, in order of repeat; the last row of a repeat counts."""
    found: dict[tuple[object, object], dict[int, Row]] = {}
    for row in rows:
        image = found.setdefault((row["image_id"], row["sha256"]), {})
        image[int(row.get("repeat", 0))] = row
    return {image: [repeats[n] for n in sorted(repeats)] for image, repeats in found.items()}


def _shown(row: Row, n: int, total: int, cell: str, judged: Sequence[Metric]) -> ShownReply:
    raw = row.get("raw")
    raw = raw if isinstance(raw, str) else None
    about = say.reply(
        truncate(row.get("model") or "", NAME_LENGTH),
        n,
        total,
        row.get("attempt", 1),
        bool(row.get("cached")),
        as_finite_float(row.get("latency_seconds")),
        _scores(row, judged),
        raw is not None,
    )
    note = ""
    if raw is not None and len(raw) > RAW_LENGTH:
        note = say.truncated(RAW_LENGTH, len(raw), _file(cell))
        raw = raw[:RAW_LENGTH]
    return ShownReply(truncate(about, 3 * REASON_LENGTH), raw, note)


def _scores(row: Row, judged: Sequence[Metric]) -> str:
    scores = row.get("scores")
    if not isinstance(scores, dict):
        return f"unscored: {in_words(row.get('reason')) or 'reason not recorded'}"
    values = {metric.label: as_finite_float(scores.get(metric.column)) for metric in judged}
    return ", ".join(f"{label} {value:g}" for label, value in values.items() if value is not None)


def _file(cell: str) -> str:
    return truncate(f"judgements/{cell}.jsonl", 2 * NAME_LENGTH)
