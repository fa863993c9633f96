"""Which images the gallery shows, and what the judge replied to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autolora_eval._text import Sentences, as_finite_float, truncate
from autolora_eval.analysis.metrics import Metric
from autolora_eval.analysis.scores import records
from autolora_eval.report.grids import Thumbnail, count_pixels, load_thumbnails
from autolora_eval.report.run_view import (
    NAME_LENGTH,
    REASON_LENGTH,
    Row,
    RunView,
    in_words,
    text_of,
)

IMAGES_SHOWN = 480
PIXELS_READ = 256 * 1024 * 1024
BYTES_EMBEDDED = 12_000_000
SEEDS_OF_A_PROMPT = 4
SHOWN_REASON_LENGTH = 200
say = Sentences("gallery")


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
    cells = {row["cell"]: n for n, row in enumerate(view.rows[:IMAGES_SHOWN])}
    folder, images = view.run.folder.path, view.images[view.images["cell"].isin(cells)]
    if images.empty:
        return []
    prompts, seeds = (sorted(images[name].unique()) for name in ("prompt_index", "seed"))
    # How many images of each cell can be read, estimated from the first of each cell.
    firsts = images.drop_duplicates("cell")["file"]
    pixels = sum(count_pixels(folder, text_of(file) or "") for file in firsts)
    limit = max(1, min(IMAGES_SHOWN // len(cells), PIXELS_READ // max(pixels, 1)))
    n_prompts, n_seeds = choose_numbers(len(prompts), len(seeds), limit)
    images = images[
        images["prompt_index"].isin(prompts[:n_prompts]) & images["seed"].isin(seeds[:n_seeds])
    ].drop_duplicates(["prompt_index", "seed", "cell"], keep="last")
    images = images.assign(place=images["cell"].map(cells)).sort_values("place", kind="stable")
    thumbnails = load_thumbnails(folder, [text_of(file) or "" for file in images["file"]])
    shown: list[Shown] = []
    n_bytes = 0
    for _, alike in images.groupby(["prompt_index", "seed"]):
        found = []
        for row in records(alike):
            thumbnail = thumbnails[text_of(row["file"]) or ""]
            n_bytes += len(thumbnail.uri)
            found.append(Shown(row, row.pop("place"), thumbnail))
        if shown and n_bytes > BYTES_EMBEDDED:
            break
        shown += found
    return shown


def choose_numbers(n_prompts: int, n_seeds: int, limit: int) -> tuple[int, int]:
    """Return how many of the first prompts and seeds are shown, at most `limit` images in all.

    Several seeds of few prompts are preferred to one seed of many: diversity is about how much
    the images of one prompt differ.
    """
    seeds_of_a_prompt = min(n_seeds, limit, max(SEEDS_OF_A_PROMPT, limit // n_prompts))
    n_prompts = min(n_prompts, limit // seeds_of_a_prompt)
    return n_prompts, min(n_seeds, limit // n_prompts)


# ---- Replies of the judge, word for word

RAW_LENGTH = 2000
REPEATS_SHOWN = 5


@dataclass(frozen=True)
class ShownReply:
    """One reply of the judge: who gave it, its text if there is one, and what was left out."""

    about: str
    raw: str | None = None
    note: str = ""


def shown_replies(view: RunView, cell: str, found: Sequence[Row]) -> list[ShownReply]:
    """Return the first replies to an image, or that there are none; empty without a judge."""
    if not view.judged:
        return []
    if not found:
        return [ShownReply(say.no_reply(_file(cell)))]
    shown = [
        _shown(reply, n, len(found), cell, view.judged)
        for n, reply in enumerate(found[:REPEATS_SHOWN], start=1)
    ]
    left = len(found) - len(shown)
    return [*shown, ShownReply(say.more_replies(left, _file(cell)))] if left else shown


def _shown(row: Row, n: int, total: int, cell: str, judged: Sequence[Metric]) -> ShownReply:
    raw = row.get("raw")
    raw = raw if isinstance(raw, str) else None
    about = say.reply(
        model=truncate(row.get("model") or "", NAME_LENGTH),
        n=n,
        total=total,
        attempt=row.get("attempt", 1),
        cached=bool(row.get("cached")),
        seconds=as_finite_float(row.get("latency_seconds")),
        judgement=_scores(row, judged),
        has_text=raw is not None,
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
