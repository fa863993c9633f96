"""Which image of a set is which of a benchmark's. Pure: nothing is read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autolora_eval.errors import UsageError
from autolora_eval.files import prompt_folder, slug
from autolora_eval.image_sets.entries import Entry, ImageSet
from autolora_eval.plan import ImageJob


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
    """

    found: dict[ImageJob, Entry]
    missing: list[ImageJob]
    extra: list[Extra]
    seeds_by_order: bool = False


@dataclass
class _Names:
    """The ways to say a prompt, each → the prompt."""

    prompts: Sequence[str]
    by_name: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, prompt in enumerate(self.prompts):
            for name in (prompt, _one_line(prompt), prompt_folder(prompt)):
                self.by_name.setdefault(name, prompt)
            for name in (slug(prompt), slug(prompt.lower()), slug(prompt).replace("-", "_")):
                self.by_name.setdefault(name.lower(), prompt)
            for name in (str(index), f"{index:02}", f"{index:03}", f"{index:04}", f"{index:05}"):
                self.by_name.setdefault(name, prompt)

    def prompt(self, name: str | None, by_folder: bool) -> str | None:
        """Return the prompt that is meant: its text, or its folder's name or place."""
        if name is None:
            return self.prompts[0] if len(self.prompts) == 1 else None
        if not by_folder:
            wanted = _one_line(name)
            return next((prompt for prompt in self.prompts if _one_line(prompt) == wanted), None)
        return self.by_name.get(name) or self.by_name.get(name.lower())


def match(images: ImageSet, jobs: Sequence[ImageJob]) -> Matching:
    """Return which image belongs to which prompt and seed of a benchmark.

    A folder stands for a prompt if it bears its text, made safe for a file name or not, the name
    that this package gives it, or its place in the benchmark, from 0. A listing's prompts are
    compared as texts, white space aside.

    Args:
        images: the set.
        jobs: the benchmark's images.

    Raises:
        UsageError: nothing fits, or two images claim the same prompt and seed.
    """
    by_place: Mapping[tuple[str, int], ImageJob] = {(job.prompt, job.seed): job for job in jobs}
    names = _Names(list(dict.fromkeys(job.prompt for job in jobs)))
    by_order = all(entry.seed is None for entry in images.entries)
    seeds = _seeds_by_order(images, names, jobs) if by_order else {}
    claims: dict[ImageJob, list[Entry]] = defaultdict(list)
    extra = []
    for entry in images.entries:
        prompt = names.prompt(entry.prompt, images.by_folder)
        seed = seeds.get(id(entry)) if by_order else entry.seed
        job = by_place.get((prompt, seed)) if prompt is not None and seed is not None else None
        if job is None:
            extra.append(Extra(entry, _why_extra(entry, prompt, seed)))
        else:
            claims[job].append(entry)
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


def _why_extra(entry: Entry, prompt: str | None, seed: int | None) -> str:
    if prompt is None:
        what = "folder" if entry.path is not None and entry.prompt is not None else "prompt"
        return f"no such {what} in the benchmark" if entry.prompt else "its prompt is not stated"
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
    return (
        f"none of the {len(images.entries)} images of '{images.place}' ({images.kind}) is one of "
        f"the benchmark's. Its prompts: {'; '.join(seen)} …; seeds: "
        f"{', '.join(map(str, seeds)) or 'none stated'} …. The benchmark's: "
        f"'{prompts[0]}' …, seeds {wanted[0]} to {wanted[-1]}."
    )


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
