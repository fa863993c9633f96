"""Match the images of a set with the prompts and seeds of a benchmark. Reads no file."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from autolora_eval._errors import UsageError
from autolora_eval._files import slug
from autolora_eval._text import pluralize
from autolora_eval.generation.image_listing import ImageRecord
from autolora_eval.generation.image_readers import ImageSet
from autolora_eval.runs.manifest import ImageJob

_LISTED = 5  # claims that a message names


class ExtraImage(NamedTuple):
    """An image that the benchmark does not ask for.

    Attributes:
        record: the image.
        reason: why no prompt and seed of the benchmark is its own.
    """

    record: ImageRecord
    reason: str


@dataclass(frozen=True)
class Matching:
    """The images of a set by the jobs of a benchmark.

    Attributes:
        found: the image of each job that has one.
        missing: the jobs without an image, in order.
        extra: the images without a job, in the order of the set.
        seeds_by_order: True if the set has no seeds: the images of each prompt were numbered in
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

    If no image has a seed, the images of each prompt take the benchmark's seeds in their order.

    Args:
        images: the set.
        jobs: the images of the benchmark.

    Raises:
        UsageError: if no image matches, folders are numbered from 1, or two images claim one
            prompt and seed.
    """
    prompts = _Prompts({job.prompt: job.file.partition("/")[0] for job in jobs})
    _check_numbered_from_zero(images, prompts)
    job_of = {(job.prompt, job.seed): job for job in jobs}
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    by_order = all(record.seed is None for record in images.records)
    n_taken: Counter[str] = Counter()
    claims: dict[ImageJob, list[ImageRecord]] = defaultdict(list)
    extra = []
    for record in images.records:
        candidates = prompts.candidates(record.prompt, by_folder=images.by_folder)
        prompt = candidates[0] if len(candidates) == 1 else None
        seed = record.seed
        if by_order and prompt is not None and n_taken[prompt] < len(seeds):
            seed = seeds[n_taken[prompt]]
            n_taken[prompt] += 1
        if prompt is None:
            reason = _unknown_prompt(record, candidates, by_folder=images.by_folder)
            extra.append(ExtraImage(record, reason))
        elif seed is None or (prompt, seed) not in job_of:
            extra.append(
                ExtraImage(record, _unknown_seed(record, len(seeds) if by_order else None))
            )
        else:
            claims[job_of[prompt, seed]].append(record)
    extra += [ExtraImage(record, f"not in {images.listing}") for record in images.unlisted]
    _check_one_claim_each(claims)
    if not claims:
        raise UsageError(_no_match(images, jobs))
    found = {job: records[0] for job, records in claims.items()}
    return Matching(found, [job for job in jobs if job not in found], extra, by_order)


class _Prompts:
    """The prompts of a benchmark, found by the names that a set may use for them.

    Args:
        folders: prompt → the folder of its images in a run of this package.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.prompts = prompts = list(folders)
        self._by_text = _index(prompts, lambda prompt: {_one_line(prompt)})
        self._by_folder = _index(prompts, lambda prompt: {folders[prompt]})
        # Scripts often drop all but ASCII from a file name, as `slug` does.
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
    n_prompts = len(prompts.prompts)
    if not images.by_folder or folders & set(prompts.prompts):
        return
    if not all(re.fullmatch("[0-9]+", folder) for folder in folders):
        return
    numbers = set(map(int, folders))
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


def _no_match(images: ImageSet, jobs: Sequence[ImageJob]) -> str:
    names = list(dict.fromkeys(record.prompt or "(no prompt)" for record in images.records))
    seeds = sorted({record.seed for record in images.records if record.seed is not None})
    wanted = sorted({job.seed for job in jobs})
    advice = "Correct its prompts and seeds, or choose the benchmark that it was made for."
    if images.by_folder:
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
