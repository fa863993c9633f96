"""What the judge replied to the images of the gallery, word for word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autolora_eval.analysis.measures import Measure
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.report.evidence import NAME_LENGTH, REASON_LENGTH, Evidence, Row, in_words
from autolora_eval.report.gallery_images import inside
from autolora_eval.scoring.judgement_file import JudgementFile
from autolora_eval.text import clip, number, of

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

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._key = evidence.recorded("judge", "key")
        self._cells: dict[str, ByImage | str] = {}

    def of_image(self, row: Row) -> list[ShownReply]:
        """Return the replies to an image as it is now; if there is none, the reason.

        Args:
            row: of scores.parquet.
        """
        if not self._evidence.judged:
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
            _shown(reply, n, len(found), cell, self._evidence.judged)
            for n, reply in enumerate(found[:REPEATS_SHOWN])
        ]
        left = len(found) - len(shown)
        more = ShownReply(f"{of(left, 'more reply', 'more replies')}: {_file(cell)}", None, "")
        return [*shown, more] if left else shown

    def _read(self, cell: str) -> ByImage | str:
        """Return a cell's judgements by image, or why there are none."""
        folder = self._evidence.run.folder
        try:
            path = inside(folder.path, str(folder.judgements(cell).relative_to(folder.path)))
            return _by_image(JudgementFile(path).rows(self._key))
        except (AutoLoRAEvalError, OSError, ValueError, LookupError, TypeError) as error:
            return f"{_file(cell)} cannot be read: {clip(_first_line(error), REASON_LENGTH)}"


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
        clip(row.get("model") or "a model not recorded", NAME_LENGTH),
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
    return ShownReply(clip(", ".join(filter(None, about)), 3 * REASON_LENGTH), raw, note)


def _seconds(row: Row) -> str:
    if row.get("cached"):
        return "from the cache of earlier replies"
    seconds = number(row.get("latency_seconds"))
    return "" if seconds is None else f"{seconds:.2f} s"


def _verdict(row: Row, judged: Sequence[Measure]) -> str:
    scores = row.get("scores")
    if not isinstance(scores, dict):
        return f"unscored: {in_words(row.get('reason')) or 'reason not recorded'}"
    values = {measure.label: number(scores.get(measure.column)) for measure in judged}
    return ", ".join(f"{label} {value:g}" for label, value in values.items() if value is not None)


def _file(cell: str) -> str:
    return clip(f"judgements/{cell}.jsonl", 2 * NAME_LENGTH)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
