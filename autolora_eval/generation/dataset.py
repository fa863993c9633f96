"""A cell's images on disk: a Hugging Face imagefolder that knows what each image is made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from autolora_eval._files import Json, atomic_write, read_jsonl, sha256_file, write_jsonl
from autolora_eval.config.plan import Cell, ImageJob
from autolora_eval.runs.folder import RunFolder

# Of a file that an image was copied from.
SOURCE_HASH = "source_sha256"


@dataclass
class ImageDataset:
    """The images of one cell.

    An image counts as made if its row carries the cell's settings key and its file has the row's
    hash. Images of other settings are set aside, below `stale_images/<cell>/<their key>`,
    before the first image is added, and come back with the settings: they took GPU time to make.

    Attributes:
        run: the run folder.
        cell: the cell.
        settings_key: content key of all that decides the images but prompt and seed.
        rows: `file_name` → row of `metadata.jsonl`.
    """

    run: RunFolder
    cell: Cell
    settings_key: str
    rows: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def open(cls, run: RunFolder, cell: Cell, settings_key: str) -> ImageDataset:
        """Read what is there, and bring back what was set aside from these settings."""
        dataset = cls(run, cell, settings_key, _rows(run.images(cell.id)))
        aside = run.stale_images(cell.id, settings_key)
        returning = _rows(aside)
        if returning:
            dataset._set_stale_aside()
            for name in returning.keys() - dataset.rows.keys():
                _move(aside / name, dataset.folder / name)
                dataset.rows[name] = returning[name]
            dataset._write_rows()
            shutil.rmtree(aside)
        return dataset

    @property
    def folder(self) -> Path:
        """Where the images and `metadata.jsonl` are."""
        return self.run.images(self.cell.id)

    @property
    def is_empty(self) -> bool:
        """Whether there is no image of these settings."""
        return all(row["settings_key"] != self.settings_key for row in self.rows.values())

    def missing(self, jobs: Iterable[ImageJob]) -> list[ImageJob]:
        """Return the jobs whose image is not there, is stale or was changed."""
        return [job for job in jobs if not self._has(job)]

    def _has(self, job: ImageJob) -> bool:
        row = self.rows.get(job.file)
        file = self.folder / job.file
        return (
            row is not None
            and row["settings_key"] == self.settings_key
            and file.is_file()
            and sha256_file(file) == row["sha256"]
        )

    def keep(self, told: Mapping[ImageJob, Mapping[str, object]]) -> set[ImageJob]:
        """Take images of other settings for one's own, where they are copies of the same file.

        Args:
            told: of each job what an image of these settings would be told to be made of.

        Returns:
            The jobs of the images that were kept: they are whole, and need not be written again.
        """
        kept = set()
        for job, what in told.items():
            row = self.rows.get(job.file, {})
            file = self.folder / job.file
            same = row.get(SOURCE_HASH) == what[SOURCE_HASH]
            if same and file.is_file() and sha256_file(file) == row["sha256"]:
                row.update(what)
                row["settings_key"] = self.settings_key
                kept.add(job)
        if kept:
            self._write_rows()
        return kept

    def tell(self, told: Mapping[ImageJob, Mapping[str, object]]) -> None:
        """Write anew what is told of images of these settings, such as a file's new name."""
        changed = False
        for job, what in told.items():
            row = self.rows.get(job.file)
            if row is not None and row["settings_key"] == self.settings_key:
                changed |= not row.items() >= what.items()
                row.update(what)
        if changed:
            self._write_rows()

    def add(
        self,
        jobs: Iterable[ImageJob],
        images: Iterable[Image.Image],
        nfe: int | None,
        told: Iterable[Mapping[str, object]] | None = None,
    ) -> None:
        """Write images and then their rows, so that a killed run leaves no row without image.

        Args:
            jobs: what they are of.
            images: RGB.
            nfe: denoiser passes that one took; None if that is not known.
            told: what else is to be known of each.
        """
        self._set_stale_aside()
        jobs = list(jobs)
        also = [{}] * len(jobs) if told is None else told
        for job, image, more in zip(jobs, images, also, strict=True):
            file = self.folder / job.file
            with atomic_write(file) as temporary:
                image.save(temporary, format="PNG")
            self.rows[job.file] = {
                "file_name": job.file,
                "prompt": job.prompt,
                "seed": job.seed,
                "model": self.cell.model.name,
                "method": self.cell.method.name,
                "cell": self.cell.id,
                "width": image.width,
                "height": image.height,
                "nfe": nfe,
                "sha256": sha256_file(file),
                "settings_key": self.settings_key,
                **more,
            }
        self._write_rows()

    def _set_stale_aside(self) -> None:
        stale = [row for row in self.rows.values() if row["settings_key"] != self.settings_key]
        for key in {row["settings_key"] for row in stale}:
            aside = self.run.stale_images(self.cell.id, key)
            kept = _rows(aside)
            for row in (row for row in stale if row["settings_key"] == key):
                name = row["file_name"]
                _move(self.folder / name, aside / name)
                kept[name] = row
                del self.rows[name]
            write_jsonl(aside / "metadata.jsonl", kept.values())
        if stale:
            self._write_rows()

    def _write_rows(self) -> None:
        rows = sorted(self.rows.values(), key=lambda row: (row["prompt"], row["seed"]))
        write_jsonl(self.folder / "metadata.jsonl", rows)


def _rows(folder: Path) -> dict[str, Json]:
    return {row["file_name"]: row for row in read_jsonl(folder / "metadata.jsonl")}


def _move(source: Path, target: Path) -> None:
    """Move a file that may have been lost; `missing` finds that out by its hash."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
