"""Which image of a set is which of a benchmark's. Pure: nothing is read."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from autolora_eval._errors import UsageError
from autolora_eval._files import Json, prompt_folder, slug, write_text
from autolora_eval._text import pluralize
from autolora_eval.config.plan import ImageJob
from autolora_eval.generation.image_sets.records import Entry, ImageSet, Looked, same_content


class Extra(NamedTuple):
    """An image that the benchmark does not ask for.

    Attributes:
        entry: the image.
        why: in words.
    """

    entry: Entry
    why: str


@dataclass(frozen=True)
class Matching:
    """A set beside a benchmark.

    Attributes:
        found: the image of each job that has one.
        missing: the jobs without an image, in order.
        extra: the images without a job, in the set's order.
        seeds_by_order: the set states no seeds: each prompt's images were numbered in their
            order, so that an image shares no noise with other methods' of that seed.
        n_beyond: images that the benchmark asks for, but not this limited run.
    """

    found: dict[ImageJob, Entry]
    missing: list[ImageJob]
    extra: list[Extra]
    seeds_by_order: bool = False
    n_beyond: int = 0

    def limited_to(self, jobs: Collection[ImageJob]) -> Matching:
        """Return it for some of the benchmark's jobs; images of the others are put aside."""
        wanted = set(jobs)
        found = {job: entry for job, entry in self.found.items() if job in wanted}
        missing = [job for job in self.missing if job in wanted]
        beyond = self.n_beyond + len(self.found) - len(found)
        return replace(self, found=found, missing=missing, n_beyond=beyond)


@dataclass
class _Names:
    """The ways to say a prompt, each → the prompts that may be meant."""

    prompts: Sequence[str]
    exact: set[str] = field(default_factory=set)
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    folders: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    slugs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    bare: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.exact.update(self.prompts)
        for index, prompt in enumerate(self.prompts):
            self.texts[_one_line(prompt)].append(prompt)
            self.folders[prompt_folder(prompt)].append(prompt)
            safe = slug(prompt).lower()
            for name in {safe, slug(prompt.lower()), safe.replace("-", "_")}:
                self.slugs[name].append(prompt)
            self.bare[_bare(prompt)].append(prompt)
            for digits in range(1, 6):
                self.places[f"{index:0{digits}}"] = [prompt]

    def meant(self, name: str | None, by_folder: bool) -> list[str]:
        """Return the prompts that may be meant; the closest way to say one goes first."""
        if name is None:
            return list(self.prompts) if len(self.prompts) == 1 else []
        if name in self.exact:
            return [name]
        found = self.texts.get(_one_line(name), [])
        if found or not by_folder:
            return found
        ways = (
            *((self.folders, name), (self.slugs, name.lower()), (self.places, name)),
            (self.bare, _bare(name)),
        )
        return next((known[said] for known, said in ways if said in known), [])

    def prompt(self, name: str | None, by_folder: bool) -> str | None:
        """Return the one prompt that is meant; None if none is, or it may be any of several."""
        found = self.meant(name, by_folder)
        return found[0] if len(found) == 1 else None


def match(images: ImageSet, jobs: Sequence[ImageJob]) -> Matching:
    """Return which image belongs to which prompt and seed of a benchmark.

    A folder stands for a prompt if it bears its text, made safe for a file name or not, the name
    that this package gives it, or its place in the benchmark, from 0; where nothing of that fits,
    if it has the letters and digits of one prompt only. A listing's prompts are compared as texts,
    white space aside.

    Args:
        images: the set.
        jobs: the benchmark's images.

    Raises:
        UsageError: nothing fits, folders are counted from 1, or two images claim the same prompt
            and seed.
    """
    by_place: Mapping[tuple[str, int], ImageJob] = {(job.prompt, job.seed): job for job in jobs}
    names = _Names(list(dict.fromkeys(job.prompt for job in jobs)))
    _refuse_counted_from_one(images, names)
    by_order = all(entry.seed is None for entry in images.entries)
    n_seeds = len({job.seed for job in jobs}) if by_order else None
    seeds = _seeds_by_order(images, names, jobs) if by_order else {}
    claims: dict[ImageJob, list[Entry]] = defaultdict(list)
    extra = []
    for entry in images.entries:
        prompt = names.prompt(entry.prompt, images.by_folder)
        seed = seeds.get(id(entry)) if by_order else entry.seed
        job = by_place.get((prompt, seed)) if prompt is not None and seed is not None else None
        if job is None:
            meant = names.meant(entry.prompt, images.by_folder)
            extra.append(Extra(entry, _why_extra(entry, meant, seed, n_seeds)))
        else:
            claims[job].append(entry)
    extra += [Extra(entry, f"not in {images.listing}") for entry in images.unlisted]
    _refuse_ambiguous(claims)
    if not claims:
        raise UsageError(_nothing_fits(images, names.prompts, jobs))
    found = {job: entries[0] for job, entries in claims.items()}
    return Matching(found, [job for job in jobs if job not in found], extra, by_order)


def _seeds_by_order(images: ImageSet, names: _Names, jobs: Sequence[ImageJob]) -> dict[int, int]:
    """Return a seed for each image, by identity: the benchmark's, in the order of its prompt's."""
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    taken: dict[str, int] = defaultdict(int)
    found = {}
    for entry in images.entries:
        prompt = names.prompt(entry.prompt, images.by_folder)
        if prompt is not None and taken[prompt] < len(seeds):
            found[id(entry)] = seeds[taken[prompt]]
            taken[prompt] += 1
    return found


def _refuse_counted_from_one(images: ImageSet, names: _Names) -> None:
    """Stop where each folder would stand for the prompt after the one that is meant."""
    folders = {entry.prompt for entry in images.entries if entry.prompt is not None}
    last = len(names.prompts)
    if not images.by_folder or folders & names.exact:
        return
    if not all(re.fullmatch("[0-9]+", folder) for folder in folders):
        return
    numbers = set(map(int, folders))
    if last in numbers and 0 not in numbers:
        raise UsageError(
            f"images '{images.place}': folders {min(numbers)} to {max(numbers)} for {last} "
            f"prompts: counted from 1? They are counted from 0: rename them 0 to {last - 1}, or "
            "call each by its prompt."
        )


def _why_extra(entry: Entry, meant: Sequence[str], seed: int | None, n_seeds: int | None) -> str:
    """Say why an image has no place; `n_seeds` of the benchmark, where the set states none."""
    if len(meant) > 1:
        prompts = ", ".join(f"'{prompt}'" for prompt in meant[:3])
        return f"its folder may be any of {len(meant)} prompts: {prompts}"
    if not meant:
        what = "folder" if entry.path is not None and entry.prompt is not None else "prompt"
        return f"no such {what} in the benchmark" if entry.prompt else "its prompt is not stated"
    if seed is None and n_seeds is not None:
        return f"the benchmark has only {pluralize(n_seeds, 'seed')}"
    if seed is None:
        return "its name states no seed" if entry.seed is None else "no such seed"
    return "no such seed in the benchmark"


def _refuse_ambiguous(claims: Mapping[ImageJob, Sequence[Entry]]) -> None:
    several = [(job, entries) for job, entries in claims.items() if len(entries) > 1]
    if not several:
        return
    lines = [
        f"  '{job.prompt}', seed {job.seed}: {', '.join(entry.name for entry in entries)}"
        for job, entries in several[:5]
    ]
    more = f"\n  and {len(several) - 5} more" if len(several) > 5 else ""
    raise UsageError(
        "several images claim the same prompt and seed; leave one of each:\n"
        + "\n".join(lines)
        + more
    )


def _nothing_fits(images: ImageSet, prompts: Sequence[str], jobs: Sequence[ImageJob]) -> str:
    seen = list(dict.fromkeys(entry.prompt or "(no prompt)" for entry in images.entries))[:3]
    seeds = sorted({entry.seed for entry in images.entries if entry.seed is not None})[:3]
    wanted = sorted({job.seed for job in jobs})
    step = "Correct its prompts and seeds, or name the benchmark that it was made for."
    if images.by_folder:
        step = (
            "Call each folder by its prompt, or by its place from 0, and each file by its seed; "
            "or list the files in a metadata.csv of file_name, prompt and seed."
        )
    return (
        f"none of the {len(images.entries)} images of '{images.place}' ({images.kind}) is one of "
        f"the benchmark's. Its prompts: {'; '.join(seen)} …; seeds: "
        f"{', '.join(map(str, seeds)) or 'none stated'} …. The benchmark's: "
        f"'{prompts[0]}' …, seeds {wanted[0]} to {wanted[-1]}. {step}"
    )


def _bare(text: str) -> str:
    """Return a text's letters and digits, its case and all between them put aside."""
    return re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text).casefold()).strip("-")


def _one_line(text: str) -> str:
    """Return a text as it is compared: white space and the way accents are written put aside."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


# --------------------
# The account of an image set: what became of every image, as rows and as counts.


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
