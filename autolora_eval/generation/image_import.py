"""Imports images that were made elsewhere: matches them with the plan, validates, copies them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import content_hash, sha256_bytes
from autolora_eval._progress import Advance
from autolora_eval._text import first_few
from autolora_eval.config.plan import Cell, Plan, make_plan
from autolora_eval.generation.dataset import SOURCE_HASH, ImageDataset
from autolora_eval.generation.image_sets import ImageSet, Matching, match, read_image_set
from autolora_eval.generation.image_validation import (
    ImageInfo,
    count_issues,
    decode_rgb,
    find_issues,
    validate_image,
    write_issues,
)
from autolora_eval.guidance.method import ImageSetMethod
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import MAX_BYTES
from autolora_eval.runs.manifest import ImageJob
from autolora_eval.runs.records import ImageSetRecord

MISSING_FILE = "missing_file"
UNREADABLE = "unreadable_file"
# Images held in memory, encoded, before their rows are written.
BATCH = 64
_LISTED = 3  # images that a message names


@dataclass(frozen=True)
class ImageImport:
    """The images of one cell, matched with the plan and hashed, but not yet opened.

    Attributes:
        matching: the images by the jobs of the plan.
        hashes: the SHA-256 of each matched file, or why it cannot be read.
        settings_key: the hash of all that decides the cell's images.
        import_key: the hash of all that the import report says.
    """

    cell: Cell
    images: ImageSet
    matching: Matching
    hashes: dict[ImageJob, str]
    settings_key: str
    import_key: str

    @classmethod
    def prepare(cls, cell: Cell, plan: Plan, run: RunFolder) -> ImageImport:
        """Read a cell's image set, match it with a plan, and hash its files.

        Raises:
            UsageError: if the set cannot be read or matched, or overlaps the run folder.
        """
        images, matching = match_set(cell, plan, run)
        hashes = dict(_hash_files(matching))
        named = sorted((job.prompt, job.seed, sha256) for job, sha256 in hashes.items())
        key = content_hash({"images": named, "seeds_by_order": matching.seeds_by_order})
        import_key = _import_key(cell, images, matching, key)
        return cls(cell, images, matching, hashes, key, import_key)

    def is_reported(self, run: RunFolder) -> bool:
        """Return True if the run folder has the import report of exactly this set."""
        manifest = run.find_manifest()
        reported = None if manifest is None else manifest.image_sets.get(self.cell.id)
        is_same = reported is not None and reported.import_key == self.import_key
        return is_same and run.image_set(self.cell.id).is_file()

    def run(
        self, dataset: ImageDataset, jobs: Iterable[ImageJob], advance: Advance
    ) -> ImageSetRecord:
        """Copy the images that the run folder lacks, and report on every image of the set.

        Args:
            dataset: the cell's images in the run folder.
            jobs: the jobs whose image is neither there nor known to have failed.
            advance: called with the number of jobs that are done.

        Returns:
            How the set was read, and the number of images with each issue.

        Raises:
            AutoLoRAEvalError: if no image can be opened, or the set changes while it is read.
        """
        jobs = set(jobs)
        adopted = dataset.adopt_existing(
            {job: self._origin(job) for job in jobs & self.hashes.keys()}
        )
        to_copy = (jobs & self.hashes.keys()) - adopted
        dataset.update_metadata({job: self._origin(job) for job in self.hashes.keys() - to_copy})
        infos: dict[ImageJob, ImageInfo] = {}
        found = sorted(self.matching.found, key=lambda job: (job.prompt_index, job.seed))
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            infos |= self._copy(dataset, batch, to_copy)
            advance(sum(job in jobs for job in batch))
        advance(sum(job not in self.matching.found for job in jobs))
        return self._report(dataset, infos)

    def _copy(
        self, dataset: ImageDataset, batch: Iterable[ImageJob], to_copy: set[ImageJob]
    ) -> dict[ImageJob, ImageInfo]:
        infos, copies = {}, {}
        for job in batch:
            data = self._read(job)
            if data is None:
                infos[job] = ImageInfo(None, problem=self.hashes[job])
                continue
            infos[job] = validate_image(data)
            if infos[job].problem is None and job in to_copy:
                copies[job] = data
        origins = [self._origin(job) for job in copies]
        dataset.write(copies, map(decode_rgb, copies.values()), self.cell.nfe, metadata=origins)
        return infos

    def _read(self, job: ImageJob) -> bytes | None:
        """Return the encoded image that was hashed; None if its file cannot be read."""
        if self.hashes[job] in (MISSING_FILE, UNREADABLE):
            return None
        try:
            data = self.matching.found[job].read()
        except OSError as error:
            raise self._changed(job, error.strerror or "it cannot be read any more") from error
        # Of a larger file only the beginning is read: it is not a usable image in any case.
        if len(data) <= MAX_BYTES and sha256_bytes(data) != self.hashes[job]:
            raise self._changed(job, "its content is different now")
        return data

    def _changed(self, job: ImageJob, what: str) -> AutoLoRAEvalError:
        return AutoLoRAEvalError(
            f"'{self.matching.found[job].name}' of '{self.images.path}' changed while it was "
            f"copied: {what}. The copies made so far are kept: run the same command again when the "
            "set is complete."
        )

    def _origin(self, job: ImageJob) -> dict[str, str]:
        return {"source": self.matching.found[job].name, SOURCE_HASH: self.hashes[job]}

    def _report(self, dataset: ImageDataset, infos: Mapping[ImageJob, ImageInfo]) -> ImageSetRecord:
        issues = find_issues(self.matching, infos, self.cell.model.size)
        report = dataset.run.image_set(self.cell.id)
        write_issues(report, issues)
        if dataset.is_empty:
            raise self._no_usable_image(infos, report)
        reasons = dict.fromkeys((job.file for job in self.matching.missing), "not_in_the_set")
        reasons |= {job.file: info.problem for job, info in infos.items() if info.problem}
        dataset.record_failures(reasons)
        keys = {"settings_key": self.settings_key, "import_key": self.import_key}
        return _record(self.images, self.matching, **keys, **count_issues(issues))

    def _no_usable_image(
        self, infos: Mapping[ImageJob, ImageInfo], report: Path
    ) -> AutoLoRAEvalError:
        listed = [f"{self.matching.found[job].name} ({i.problem})" for job, i in infos.items()]
        return AutoLoRAEvalError(
            f"cell '{self.cell.id}': of the images of '{self.images.path}' that the benchmark "
            f"asks for, none can be opened: {first_few(listed, _LISTED)}. All are listed "
            f"in '{report}'."
        )


def check_no_overlap(images: Path, run: RunFolder) -> None:
    """Check that neither the image set nor the run folder contains the other.

    Otherwise the next run would read its own copies and figures as images of the set.
    """
    if not images.is_dir():
        return  # a listing names its images
    source, folder, copies = (path.resolve() for path in (images, run.path, run.images("")))
    if folder == source or source in folder.parents or copies in (source, *source.parents):
        raise UsageError(
            f"the images '{images}' and the run folder '{run.path}' are inside one another, "
            "so copies and figures would be read as images of the set. Choose another --output."
        )


def match_set(cell: Cell, plan: Plan, run: RunFolder) -> tuple[ImageSet, Matching]:
    """Read the image set of a cell, and match it with the plan.

    Raises:
        UsageError: if the set cannot be read or matched, or overlaps the run folder.
    """
    method = cell.method.definition
    assert isinstance(method, ImageSetMethod)
    check_no_overlap(method.path, run)
    images = read_image_set(method.path)
    # Matched with the whole benchmark: an image beyond the limits of this run is not an extra one.
    matching = match(images, make_plan(plan.benchmark).jobs).limited_to(plan.jobs)
    if not matching.found:
        raise UsageError(
            f"cell '{cell.id}': '{images.path}' has no image for this limited run, but "
            f"{matching.n_beyond} for the whole benchmark. Raise the limits."
        )
    return images, matching


def planned_set(cell: Cell, plan: Plan, run: RunFolder) -> ImageSetRecord:
    """Return how the image set of a cell would be read. No image is opened.

    Raises:
        UsageError: as `match_set`.
    """
    images, matching = match_set(cell, plan, run)
    counts = {"missing": len(matching.missing), "extra": len(matching.extra)}
    return _record(images, matching, settings_key="", import_key="", **counts)


def _record(images: ImageSet, matching: Matching, **more: Any) -> ImageSetRecord:  # noqa: ANN401
    return ImageSetRecord(
        read_as=images.form,
        images=len(images.records) + len(images.unlisted),
        matched=len(matching.found),
        beyond_limits=matching.n_beyond,
        seeds_by_order=matching.seeds_by_order,
        **more,
    )


def _hash_files(matching: Matching) -> Iterator[tuple[ImageJob, str]]:
    for job, record in matching.found.items():
        try:
            yield job, record.sha256()
        except FileNotFoundError:
            yield job, MISSING_FILE
        except OSError:
            yield job, UNREADABLE


def _import_key(cell: Cell, images: ImageSet, matching: Matching, settings_key: str) -> str:
    records = (*images.records, *images.unlisted)
    return content_hash(
        {
            "images": settings_key,
            "read_as": images.form,
            "set": [(record.name, record.prompt, record.seed) for record in records],
            "found": sorted((r.name, job.prompt, job.seed) for job, r in matching.found.items()),
            "missing": [(job.prompt, job.seed) for job in matching.missing],
            "extra": [reason for _, reason in matching.extra],
            "beyond_limits": matching.n_beyond,
            "size": cell.model.size,
        }
    )
