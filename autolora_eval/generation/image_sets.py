"""Sets of images that were made elsewhere: the images of a set, and the prompt and seed of each.

A set has one of four forms: a tree `<prompt>/<seed>.png`, a Hugging Face imagefolder, a listing
(CSV, TSV, JSON lines or Parquet), or a dataset that `datasets.Dataset.save_to_disk` wrote. No image
is opened here.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autolora_eval._errors import UsageError
from autolora_eval._files import slug
from autolora_eval._text import pluralize
from autolora_eval.generation.image_listing import (
    LISTINGS,
    ImageRecord,
    dataset_images,
    image_files,
    listed_images,
    name_below,
)
from autolora_eval.runs.manifest import ImageJob

_LISTED = 5  # claims that a message names
_METADATA = tuple(f"metadata{suffix}" for suffix in LISTINGS)
# Folders that the library `datasets` takes for the splits of a dataset.
_SPLITS = (
    *("train", "training", "validation", "valid", "val", "dev"),
    *("test", "testing", "eval", "evaluation"),
)
_EXPECTED = (
    "expected a folder with metadata.jsonl (a Hugging Face imagefolder), a tree "
    "<prompt>/<seed>.png, a .csv, .tsv, .jsonl or .parquet file with columns file_name, prompt and "
    "seed, or a dataset written by save_to_disk"
)


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        path: the folder or the listing.
        form: the form in which it was read, for messages.
        records: its images.
        by_folder: True if the prompts of the records are names of folders.
        unlisted: images in an imagefolder that its metadata does not name.
        listing: the file name of that metadata; empty if there is none.
    """

    path: Path
    form: str
    records: list[ImageRecord]
    by_folder: bool = False
    unlisted: list[ImageRecord] = field(default_factory=list)
    listing: str = ""


def read_image_set(path: Path) -> ImageSet:
    """Detect the form of an image set and list its images.

    Args:
        path: a folder or a listing.

    Raises:
        UsageError: if it has none of the forms, or one of its rows or names cannot be used.
    """
    if path.is_file() and path.suffix.lower() in LISTINGS:
        return ImageSet(path, f"listing {path.name}", listed_images(path))
    if not path.is_dir():
        problem = "does not exist" if not path.exists() else "is neither a folder nor a listing"
        raise UsageError(f"images '{path}': {problem}; {_EXPECTED}.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return ImageSet(path, "dataset on disk", dataset_images(path))
    listings = _metadata_files(path)
    if len(listings) > 1:
        names = " and ".join(name_below(path, listing) for listing in listings)
        raise UsageError(
            f"images '{path}': {names} may both list the images. Remove one, or choose one: "
            f"--images {listings[0]}"
        )
    return _imagefolder(path, listings[0]) if listings else _tree(path)


def _metadata_files(folder: Path) -> list[Path]:
    """Return the metadata of an imagefolder: its own, or else that of its splits."""
    own, of_splits = (
        [place / name for place in places for name in _METADATA if (place / name).is_file()]
        for places in ([folder], [folder / split for split in _SPLITS])
    )
    return own or of_splits


def _imagefolder(folder: Path, listing: Path) -> ImageSet:
    records = listed_images(listing)
    known = {record.source for record in records}
    unlisted = [
        ImageRecord(name_below(folder, file), None, None, file)
        for file in image_files(folder)
        if file.resolve() not in known
    ]
    name = name_below(folder, listing)
    return ImageSet(folder, f"imagefolder with {name}", records, unlisted=unlisted, listing=name)


def _tree(folder: Path) -> ImageSet:
    """Read `<prompt>/<seed>.png`, or `<seed>.png` for a benchmark with one prompt."""
    files = image_files(folder)
    if not files:
        raise UsageError(f"images '{folder}': contains no image; {_EXPECTED}.")
    prompts = _only_split(folder, files)
    records = []
    for file in files:
        place = file.parent.relative_to(prompts)
        prompt = None if place == Path() else place.as_posix()
        records.append(ImageRecord(name_below(folder, file), prompt, seed_in_name(file.stem), file))
    return ImageSet(folder, "tree of images", records, by_folder=True)


def _only_split(folder: Path, files: list[Path]) -> Path:
    """Return the folder of the prompts: the split in `<split>/<prompt>/<seed>.png`, or `folder`."""
    places = [file.relative_to(folder).parts for file in files]
    if not all(len(place) > 2 and place[0] in _SPLITS for place in places):
        return folder
    splits = sorted({place[0] for place in places})
    if len(splits) > 1:
        named = ", ".join(f"'{folder / split}'" for split in splits)
        raise UsageError(f"images '{folder}': has several splits; choose one of {named}.")
    return folder / splits[0]


def seed_in_name(stem: str) -> int | None:
    """Return the seed in a file name: its only number, or the number after "seed".

    The counter at the end of ComfyUI's names is not a seed. Neither is the one at the beginning of
    AUTOMATIC1111's, which the seed follows.

    >>> seed_in_name("00017"), seed_in_name("img2_seed-31"), seed_in_name("cat")
    (17, 31, None)
    >>> seed_in_name("ComfyUI_00001_"), seed_in_name("cat_seed7_00012_"), seed_in_name("a1_b2")
    (None, 7, None)
    >>> seed_in_name("00001-31"), seed_in_name("00001-31-a cat")
    (31, 31)
    """
    named = re.search(r"seed[ _=-]?(\d+)", stem, re.IGNORECASE) or re.match(
        r"\d{5}-(\d+)(?:-|$)", stem
    )
    if named:
        return int(named[1])
    numbers = re.findall(r"\d+", re.sub(r"_\d{5,}_$", "", stem))
    return int(numbers[0]) if len(numbers) == 1 else None


class ExtraImage(NamedTuple):
    """An image that the benchmark does not ask for, with the reason."""

    record: ImageRecord
    reason: str


@dataclass(frozen=True)
class Matching:
    """The images of a set by the jobs of a benchmark.

    Attributes:
        found: the image of each job that has one.
        missing: the jobs without an image, in order.
        extra: the images without a job, in the order of the set.
        seeds_by_order: True if the set gives no seeds: the images of each prompt were numbered in
            their order, so they do not share noise with other methods' images of the same seed.
        n_beyond: images that the whole benchmark asks for, but this limited run does not.
    """

    found: dict[ImageJob, ImageRecord]
    missing: list[ImageJob]
    extra: list[ExtraImage]
    seeds_by_order: bool = False
    n_beyond: int = 0

    def limited_to(self, jobs: Collection[ImageJob]) -> Matching:
        """Return the part for some jobs of the benchmark; images of other jobs count as beyond."""
        wanted = set(jobs)
        found = {job: record for job, record in self.found.items() if job in wanted}
        missing = [job for job in self.missing if job in wanted]
        n_beyond = self.n_beyond + len(self.found) - len(found)
        return replace(self, found=found, missing=missing, n_beyond=n_beyond)


def match(images: ImageSet, jobs: Sequence[ImageJob]) -> Matching:
    """Return which image belongs to which prompt and seed of a benchmark.

    A listing names a prompt by its text; white space and the composition of accents are ignored.
    A folder names a prompt by its text, by the folder name that this package uses, by its letters
    and digits (case and punctuation are ignored), or by its index from 0. A name that fits
    several prompts matches none of them.

    If no image of these prompts has a seed, or file names count from 1 and the benchmark's seeds
    from 0, the images of each prompt take the benchmark's seeds in their order.

    Raises:
        UsageError: if no image matches, folders are numbered from 1, or two images claim one
            prompt and seed.
    """
    prompts = _Prompts({job.prompt: job.file.partition("/")[0] for job in jobs})
    _check_numbered_from_zero(images, prompts)
    job_of: dict[tuple[str, int | None], ImageJob] = {(job.prompt, job.seed): job for job in jobs}
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    find = partial(prompts.candidates, by_folder=images.by_folder)
    read = [(record, find(record.prompt)) for record in images.records]
    known: dict[str, list[int | None]] = defaultdict(list)
    for record, candidates in read:
        if len(candidates) == 1:
            known[candidates[0]].append(record.seed)
    by_order = _gives_no_seeds(images, list(known.values()), seeds)
    n_taken: Counter[str] = Counter()
    claims: dict[ImageJob, list[ImageRecord]] = defaultdict(list)
    extra = []
    for record, candidates in read:
        prompt = candidates[0] if len(candidates) == 1 else None
        seed = record.seed
        if by_order and prompt is not None:
            seed = seeds[n_taken[prompt]] if n_taken[prompt] < len(seeds) else None
            n_taken[prompt] += 1
        if prompt is None:
            reason = _unknown_prompt(record, candidates, by_folder=images.by_folder)
            extra.append(ExtraImage(record, reason))
        elif (prompt, seed) not in job_of:
            reason = _unknown_seed(record, len(seeds) if by_order else None)
            extra.append(ExtraImage(record, reason))
        else:
            claims[job_of[prompt, seed]].append(record)
    extra += [ExtraImage(record, f"not in {images.listing}") for record in images.unlisted]
    _check_one_claim_each(claims)
    if not claims:
        raise UsageError(_no_match(images, jobs, knows_prompts=bool(known)))
    found = {job: records[0] for job, records in claims.items()}
    return Matching(found, [job for job in jobs if job not in found], extra, by_order)


def _gives_no_seeds(
    images: ImageSet, found: Sequence[Sequence[int | None]], seeds: Sequence[int]
) -> bool:
    """Return True if a set has no seeds, or the numbers in its file names count from 1.

    Read as seeds of a benchmark that starts at 0, these would leave out an image of each prompt.

    Args:
        images: the set.
        found: the seeds of each prompt's images.
        seeds: those of the benchmark.
    """
    if all(seed is None for of_prompt in found for seed in of_prompt):
        return True
    if not images.by_folder or seeds != list(range(len(seeds))):
        return False
    enough = all(len(of_prompt) >= len(seeds) for of_prompt in found)
    is_named = any("seed" in record.name.lower() for record in images.records)
    return enough and not is_named and all({*one} == {*range(1, len(one) + 1)} for one in found)


class _Prompts:
    """The prompts of a benchmark, found by the names that a set may use for them."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        # The folders are those of each prompt's images in a run of this package.
        self.prompts = prompts = list(folders)
        self._by_text = _index(prompts, lambda prompt: {_one_line(prompt)})
        self._by_folder = _index(prompts, lambda prompt: {folders[prompt]})
        # Scripts often remove other characters than ASCII from file names, as `slug` does.
        self._by_letters = _index(
            prompts, lambda prompt: {_letters(prompt), _letters(slug(prompt))}
        )

    def candidates(self, name: str | None, *, by_folder: bool) -> Sequence[str]:
        """Return the prompts that a name may stand for; the most literal reading wins."""
        if name is None:
            return self.prompts if len(self.prompts) == 1 else []
        if name in self.prompts:
            return [name]
        by_text = self._by_text.get(_one_line(name), [])
        if by_text or not by_folder:
            return by_text
        by_name = self._by_folder.get(name) or self._by_letters.get(_letters(name))
        if by_name:
            return by_name
        index = int(name) if re.fullmatch("[0-9]{1,5}", name) else len(self.prompts)
        return self.prompts[index : index + 1]


def _index(prompts: Iterable[str], names: Callable[[str], Collection[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        for name in names(prompt):
            found[name].append(prompt)
    return dict(found)


def _one_line(text: str) -> str:
    """Return a text in composed Unicode with single spaces; macOS decomposes é in file names."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def _letters(text: str) -> str:
    """Return the letters and digits of a text in lower case, with "-" between words."""
    return re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text).casefold()).strip("-")


def _check_numbered_from_zero(images: ImageSet, prompts: _Prompts) -> None:
    """Refuse folders 1 to N for N prompts: each would stand for the prompt after its own."""
    folders = {record.prompt for record in images.records if record.prompt is not None}
    is_numbered = images.by_folder and all(re.fullmatch("[0-9]+", folder) for folder in folders)
    if not is_numbered or folders & set(prompts.prompts):
        return
    numbers, n_prompts = set(map(int, folders)), len(prompts.prompts)
    if n_prompts in numbers and 0 not in numbers:
        raise UsageError(
            f"images '{images.path}': folders {min(numbers)} to {max(numbers)} for {n_prompts} "
            f"prompts. Indices start at 0: rename the folders 0 to {n_prompts - 1}, or name each "
            "folder after its prompt."
        )


def _unknown_prompt(record: ImageRecord, candidates: Sequence[str], *, by_folder: bool) -> str:
    if candidates:
        prompts = ", ".join(f"'{prompt}'" for prompt in candidates[:3])
        return f"its folder may be any of {len(candidates)} prompts: {prompts}"
    if not record.prompt:
        return "it has no prompt"
    return f"no such {'folder' if by_folder else 'prompt'} in the benchmark"


def _unknown_seed(record: ImageRecord, n_seeds_by_order: int | None) -> str:
    if n_seeds_by_order is not None:
        return f"the benchmark has only {pluralize(n_seeds_by_order, 'seed')}"
    return "it has no seed" if record.seed is None else "no such seed in the benchmark"


def _check_one_claim_each(claims: Mapping[ImageJob, Sequence[ImageRecord]]) -> None:
    several = [(job, records) for job, records in claims.items() if len(records) > 1]
    if not several:
        return
    lines = [
        f"  '{job.prompt}', seed {job.seed}: {', '.join(record.name for record in records)}"
        for job, records in several[:_LISTED]
    ]
    if len(several) > _LISTED:
        lines.append(f"  and {len(several) - _LISTED} more")
    listed = "\n".join(lines)
    raise UsageError(f"several images have the same prompt and seed; keep one of each:\n{listed}")


def _no_match(images: ImageSet, jobs: Sequence[ImageJob], *, knows_prompts: bool) -> str:
    names = list(dict.fromkeys(record.prompt or "(no prompt)" for record in images.records))
    seeds = sorted({record.seed for record in images.records if record.seed is not None})
    wanted = sorted({job.seed for job in jobs})
    advice = "Correct its prompts and seeds, or choose the benchmark that it was made for."
    if knows_prompts:
        advice = (
            f"Only the seeds differ: use {wanted[0]}, {wanted[0] + 1} … for the images of each "
            "prompt, or change 'seeds' in the benchmark."
        )
    elif images.by_folder:
        advice = (
            "Name each folder after its prompt or the index of the prompt from 0, and each file "
            "after its seed; or list the files in a metadata.csv with file_name, prompt and seed."
        )
    return (
        f"none of the {len(images.records)} images of '{images.path}' ({images.form}) belongs to "
        f"the benchmark. Prompts of the set: {'; '.join(names[:3])} …; seeds: "
        f"{', '.join(map(str, seeds[:3])) or 'none'} …. Prompts of the benchmark: "
        f"'{jobs[0].prompt}' …, seeds {wanted[0]} to {wanted[-1]}. {advice}"
    )
