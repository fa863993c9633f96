"""Images that were made elsewhere, put into the run folder: matched, looked at, accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import Json, content_hash, iterate_jsonl, sha256_bytes, write_jsonl
from autolora_eval._progress import Advance
from autolora_eval.config.image_set_benchmark import refuse_overlap
from autolora_eval.config.plan import Cell, ImageJob, Plan, make_plan
from autolora_eval.generation.dataset import SOURCE_HASH, ImageDataset
from autolora_eval.generation.image_sets.matching import (
    Matching,
    account,
    counts,
    match,
    write_account,
)
from autolora_eval.generation.image_sets.readers import read_image_set
from autolora_eval.generation.image_sets.records import MAX_BYTES, ImageSet, Looked, look, opened
from autolora_eval.guidance.method import ImageSetMethod
from autolora_eval.runs.folder import RunFolder

MISSING_FILE = "missing_file"
UNREADABLE = "unreadable_file"
CHUNK = 64
NAMED = 3


@dataclass(frozen=True)
class ImportedCell:
    """One image set beside a benchmark, its files hashed and not yet opened.

    Attributes:
        cell: the cell.
        images: the set.
        matching: which image is which.
        hashes: SHA-256 of each image's file; of one that cannot be read, why.
        settings_key: content key of all its images.
        account_key: content key of all that their account tells.
    """

    cell: Cell
    images: ImageSet
    matching: Matching
    hashes: dict[ImageJob, str]
    settings_key: str
    account_key: str

    @classmethod
    def find(cls, cell: Cell, plan: Plan, run: RunFolder | None = None) -> ImportedCell:
        """Match a cell's set with the plan.

        Args:
            cell: the cell.
            plan: whose prompts and seeds.
            run: where the images go; None to look only.

        Raises:
            UsageError: there is no such set, nothing in it fits, or two images claim one place.
        """
        images, matching = _matched(cell, plan, run)
        hashes = dict(_hashes(matching))
        named = sorted((job.prompt, job.seed, sha256) for job, sha256 in hashes.items())
        key = content_hash({"images": named, "seeds_by_order": matching.seeds_by_order})
        return cls(cell, images, matching, hashes, key, _account_key(cell, images, matching, key))

    def is_accounted_for(self, run: RunFolder) -> bool:
        """Return whether the run folder has the account of this very set."""
        told = (run.read_manifest().get("image_sets") or {}).get(self.cell.id) or {}
        here = told.get("account_key") == self.account_key
        return here and run.image_set(self.cell.id).is_file()

    def not_accounted_for(self, dataset: ImageDataset, jobs: Iterable[ImageJob]) -> list[ImageJob]:
        """Return those jobs of which it is neither there nor noted why there is no image."""
        noted = {
            row["file_name"]
            for row in iterate_jsonl(dataset.run.failed_images(self.cell.id))
            if row["settings_key"] == self.settings_key
        }
        return [job for job in jobs if job.file not in noted]

    def fill(self, dataset: ImageDataset, jobs: list[ImageJob], advance: Advance) -> Json:
        """Copy the images that the run folder lacks, and account for every image of the set.

        Args:
            dataset: where they go.
            jobs: those that are missing there.
            advance: is told of each of them.

        Returns:
            How the set was read, and how many images each finding is told of.
        """
        wanted = set(jobs)
        lacking = wanted - dataset.keep({j: self._source(j) for j in wanted & self.hashes.keys()})
        dataset.tell({j: self._source(j) for j in self.hashes.keys() - lacking})
        looked: dict[ImageJob, Looked] = {}
        found = sorted(self.matching.found, key=lambda job: (job.prompt_index, job.seed))
        for start in range(0, len(found), CHUNK):
            usable = {}
            for job in found[start : start + CHUNK]:
                data = self._data(job)
                if data is None:
                    looked[job] = Looked(None, problem=self.hashes[job])
                    continue
                looked[job] = look(data)
                if looked[job].problem is None and job in lacking:
                    usable[job] = data
            told = [self._source(job) for job in usable]
            dataset.add(usable, map(opened, usable.values()), self.cell.nfe, told)
            advance(sum(job in wanted for job in found[start : start + CHUNK]))
        advance(sum(job not in self.matching.found for job in jobs))
        rows = account(self.matching, looked, self.cell.model.size)
        told_at = dataset.run.image_set(self.cell.id)
        write_account(told_at, rows)
        if dataset.is_empty:
            raise AutoLoRAEvalError(f"cell '{self.cell.id}': {self._why_empty(looked, told_at)}")
        self._note_failed(dataset, looked)
        return {
            "read_as": self.images.kind,
            "images": len(self.images.entries) + len(self.images.unlisted),
            "matched": len(self.matching.found),
            "beyond_limits": self.matching.n_beyond,
            "seeds_by_order": self.matching.seeds_by_order,
            "settings_key": self.settings_key,
            "account_key": self.account_key,
            **counts(rows),
        }

    def _why_empty(self, looked: Mapping[ImageJob, Looked], account: Path) -> str:
        told = [f"{self.matching.found[job].name} ({s.problem})" for job, s in looked.items()]
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        return (
            f"none of the images of '{self.images.place}' that the benchmark asks for can be "
            f"opened: {', '.join(told[:NAMED])}{more}. Each is told in '{account}'."
        )

    def _data(self, job: ImageJob) -> bytes | None:
        """Return an encoded image as it was hashed; None of one that cannot be read.

        Raises:
            AutoLoRAEvalError: the set changes while it is read.
        """
        if self.hashes[job] in (MISSING_FILE, UNREADABLE):
            return None
        entry = self.matching.found[job]
        try:
            data = entry.read()
        except OSError as error:
            raise self._changing(job, error.strerror or "cannot be read any more") from error
        if len(data) <= MAX_BYTES and sha256_bytes(data) != self.hashes[job]:
            raise self._changing(job, "has another content")
        return data

    def _changing(self, job: ImageJob, what: str) -> AutoLoRAEvalError:
        return AutoLoRAEvalError(
            f"'{self.matching.found[job].name}' of '{self.images.place}' changed while it was "
            f"copied: {what}. What was copied is kept: run it again once the set is at rest."
        )

    def _source(self, job: ImageJob) -> dict[str, str]:
        return {"source": self.matching.found[job].name, SOURCE_HASH: self.hashes[job]}

    def _note_failed(self, dataset: ImageDataset, looked: dict[ImageJob, Looked]) -> None:
        """Say why there is no image, for the tables."""
        reasons = dict.fromkeys((job.file for job in self.matching.missing), "not_in_the_set")
        reasons |= {job.file: seen.problem for job, seen in looked.items() if seen.problem}
        path = dataset.run.failed_images(self.cell.id)
        if not reasons:
            path.unlink(missing_ok=True)
            return
        write_jsonl(
            path,
            [
                {"file_name": name, "reason": reason, "settings_key": self.settings_key}
                for name, reason in reasons.items()
            ],
        )


def refuse_unmatched(plan: Plan, run: RunFolder) -> None:
    """Stop before anything is written if a set has no image for the plan. No image is opened.

    Raises:
        UsageError: a set cannot be used as it stands.
    """
    for cell in plan.cells:
        if cell.method.kind == "images":
            _matched(cell, plan, run)


def _matched(cell: Cell, plan: Plan, run: RunFolder | None) -> tuple[ImageSet, Matching]:
    """Return a cell's set, and which of its images is which of the plan's."""
    rule = cell.method.rule
    assert isinstance(rule, ImageSetMethod)
    if run is not None:
        refuse_overlap(rule.place, run)
    images = read_image_set(rule.place)
    # An image beyond the limits of this run is none that the benchmark does not ask for.
    matching = match(images, make_plan(plan.benchmark).jobs).limited_to(plan.jobs)
    if not matching.found:
        raise UsageError(
            f"cell '{cell.id}': '{images.place}' has none of the images that this limited run asks "
            f"for, and {matching.n_beyond} that the whole benchmark does. Raise the limits."
        )
    return images, matching


def _account_key(cell: Cell, images: ImageSet, matching: Matching, settings_key: str) -> str:
    found = sorted((e.name, job.prompt, job.seed) for job, e in matching.found.items())
    return content_hash(
        {
            "images": settings_key,
            "read_as": images.kind,
            "set": [(e.name, e.prompt, e.seed) for e in (*images.entries, *images.unlisted)],
            "found": found,
            "missing": [(job.prompt, job.seed) for job in matching.missing],
            "extra": [why for _, why in matching.extra],
            "beyond_limits": matching.n_beyond,
            "size": cell.model.size,
        }
    )


def _hashes(matching: Matching) -> Iterator[tuple[ImageJob, str]]:
    for job, entry in matching.found.items():
        try:
            yield job, entry.sha256()
        except FileNotFoundError:
            yield job, MISSING_FILE
        except OSError:
            yield job, UNREADABLE
