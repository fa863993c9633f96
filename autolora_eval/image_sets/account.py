"""The account of an image set: what became of every image, as rows and as counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from autolora_eval.files import Json, write_text
from autolora_eval.image_sets.entries import Entry
from autolora_eval.image_sets.inspect import Looked, same_content
from autolora_eval.image_sets.match import Matching
from autolora_eval.plan import ImageJob

Finding = Literal[
    "missing", "unusable", "extra", "duplicate", "wrong_size", "constant", "converted"
]
FINDINGS: dict[Finding, str] = {
    "missing": "asked for by the benchmark, and not in the set",
    "unusable": "cannot be opened: not measured",
    "extra": "not asked for by the benchmark: left out",
    "duplicate": "the same, pixel for pixel, as another of the set: measured all the same",
    "wrong_size": "of another size than the model's: measured all the same",
    "constant": "of one colour, as a safety checker's black: measured all the same",
    "converted": "no plain 8-bit picture, upright and opaque: measured as it was converted",
}


class Row(NamedTuple):
    """One thing to know of an image.

    Attributes:
        finding: what.
        prompt: of the image; the set's own name for it if it is an extra one.
        seed: likewise.
        file: what the set calls the image; empty for a missing one.
        detail: in words.
    """

    finding: Finding
    prompt: str | None
    seed: int | None
    file: str
    detail: str


def account(
    matching: Matching, looked: Mapping[ImageJob, Looked], size: tuple[int, int]
) -> list[Row]:
    """Return all there is to know of a set's images, in the order of `FINDINGS`.

    Args:
        matching: which image is which.
        looked: what was seen of each that has a place in the benchmark.
        size: (width, height) of the benchmark's model, in pixels.
    """
    found = [Row("missing", job.prompt, job.seed, "", "") for job in matching.missing]
    found += [
        Row("extra", extra.entry.prompt, extra.entry.seed, extra.entry.name, extra.why)
        for extra in matching.extra
    ]
    for job, seen in looked.items():
        found += _of_one(job, matching.found[job], seen, size)
    found += _duplicates(matching, looked)
    order = list(FINDINGS)
    return sorted(found, key=lambda row: order.index(row.finding))


def _of_one(job: ImageJob, entry: Entry, seen: Looked, size: tuple[int, int]) -> Iterable[Row]:
    if seen.problem is not None:
        yield Row("unusable", job.prompt, job.seed, entry.name, seen.problem)
        return
    if seen.size != size and seen.size is not None:
        got, wanted = (f"{width} × {height}" for width, height in (seen.size, size))
        detail = f"{got} pixels, the model's are {wanted}"
        yield Row("wrong_size", job.prompt, job.seed, entry.name, detail)
    if seen.colour is not None:
        detail = "RGB {} {} {}".format(*seen.colour)
        yield Row("constant", job.prompt, job.seed, entry.name, detail)
    if seen.converted:
        yield Row("converted", job.prompt, job.seed, entry.name, seen.converted)


def _duplicates(matching: Matching, looked: Mapping[ImageJob, Looked]) -> Iterable[Row]:
    for jobs in same_content(looked.items()):
        first = jobs[0]
        named = f"{matching.found[first].name} ('{first.prompt}', seed {first.seed})"
        for job in jobs[1:]:
            name = matching.found[job].name
            yield Row("duplicate", job.prompt, job.seed, name, f"the same as {named}")


def counts(rows: Iterable[Row]) -> Json:
    """Return how many images each finding is told of, those with none included."""
    found: Json = dict.fromkeys(FINDINGS, 0)
    for row in rows:
        found[row.finding] += 1
    return found


def write_account(path: Path, rows: list[Row]) -> None:
    """Write the account as CSV, one row a finding."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(Row._fields))
    frame["seed"] = frame["seed"].astype("Int64")
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
