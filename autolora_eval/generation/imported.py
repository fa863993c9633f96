"""Images that were made elsewhere, put into the run folder: matched, looked at, accounted for."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from PIL import Image

from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json, content_key, iterate_jsonl, sha256_bytes, write_jsonl
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.image_sets.account import account, counts, write_account
from autolora_eval.image_sets.entries import ImageSet
from autolora_eval.image_sets.inspect import Looked, look
from autolora_eval.image_sets.match import Matching, match
from autolora_eval.image_sets.read import read_image_set
from autolora_eval.image_sets.rule import ImageSetMethod
from autolora_eval.plan import Cell, ImageJob, Plan
from autolora_eval.progress import Advance

UNREADABLE = "unreadable"
CHUNK = 64


@dataclass(frozen=True)
class ImportedCell:
    """One image set beside a benchmark, its files hashed and not yet opened.

    Attributes:
        cell: the cell.
        images: the set.
        matching: which image is which.
        hashes: SHA-256 of each image's file; `unreadable` of one that cannot be read.
        settings_key: content key of all its images.
    """

    cell: Cell
    images: ImageSet
    matching: Matching
    hashes: dict[ImageJob, str]
    settings_key: str

    @classmethod
    def find(cls, cell: Cell, plan: Plan) -> ImportedCell:
        """Match a cell's set with the plan.

        Raises:
            UsageError: there is no such set, nothing in it fits, or two images claim one place.
        """
        rule = cell.method.rule
        assert isinstance(rule, ImageSetMethod)
        images = read_image_set(rule.place)
        matching = match(images, plan.jobs)
        hashes = dict(_hashes(matching))
        named = sorted((job.prompt, job.seed, sha256) for job, sha256 in hashes.items())
        key = content_key({"images": named, "seeds_by_order": matching.seeds_by_order})
        return cls(cell, images, matching, hashes, key)

    def not_accounted_for(self, dataset: ImageDataset, jobs: Iterable[ImageJob]) -> list[ImageJob]:
        """Return those jobs of which it is neither there nor noted why there is no image."""
        noted = {
            row["file_name"]
            for row in iterate_jsonl(dataset.run.unmade(self.cell.id))
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
        looked: dict[ImageJob, Looked] = {}
        found = sorted(self.matching.found, key=lambda job: (job.prompt_index, job.seed))
        for start in range(0, len(found), CHUNK):
            usable = {}
            for job in found[start : start + CHUNK]:
                data = self._data(job)
                looked[job] = look(data)
                if looked[job].problem is None and job in wanted:
                    usable[job] = _rgb(data)
            told = [self._source(job) for job in usable]
            dataset.add(usable, usable.values(), self.cell.nfe, told)
            advance(sum(job in wanted for job in found[start : start + CHUNK]))
        advance(sum(job not in self.matching.found for job in jobs))
        if dataset.is_empty:
            raise AutoLoRAEvalError(
                f"cell '{self.cell.id}': none of the images of '{self.images.place}' that the "
                "benchmark asks for can be opened."
            )
        self._note_unmade(dataset, looked)
        rows = account(self.matching, looked, self.cell.model.size)
        write_account(dataset.run.image_set(self.cell.id), rows)
        return {
            "read_as": self.images.kind,
            "images": len(self.images.entries),
            "matched": len(self.matching.found),
            "seeds_by_order": self.matching.seeds_by_order,
            **counts(rows),
        }

    def _data(self, job: ImageJob) -> bytes:
        return b"" if self.hashes[job] == UNREADABLE else self.matching.found[job].read()

    def _source(self, job: ImageJob) -> dict[str, str]:
        return {"source": self.matching.found[job].name, "source_sha256": self.hashes[job]}

    def _note_unmade(self, dataset: ImageDataset, looked: dict[ImageJob, Looked]) -> None:
        """Say why there is no image, for the tables."""
        reasons = dict.fromkeys((job.file for job in self.matching.missing), "not_in_the_set")
        reasons |= {job.file: seen.problem for job, seen in looked.items() if seen.problem}
        path = dataset.run.unmade(self.cell.id)
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


def _hashes(matching: Matching) -> Iterator[tuple[ImageJob, str]]:
    for job, entry in matching.found.items():
        try:
            yield job, sha256_bytes(entry.read())
        except OSError:
            yield job, UNREADABLE


def _rgb(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")
