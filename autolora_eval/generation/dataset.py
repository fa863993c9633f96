"""A cell's images on disk: a Hugging Face imagefolder that knows what each image is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from autolora_eval.files import Json, read_jsonl, sha256_file, write_jsonl, written_whole
from autolora_eval.plan import Cell, ImageJob


@dataclass
class ImageDataset:
    """The images of one cell.

    An image counts as made if its row carries the cell's settings key and its file has the row's
    hash. Rows of other settings are stale: they and their files go when the first image is added.

    Attributes:
        folder: where the images and `metadata.jsonl` are.
        cell: the cell.
        settings_key: content key of all that decides the images but prompt and seed.
        rows: `file_name` → row of `metadata.jsonl`.
    """

    folder: Path
    cell: Cell
    settings_key: str
    rows: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, cell: Cell, settings_key: str) -> ImageDataset:
        """Read what is there."""
        rows = {row["file_name"]: row for row in read_jsonl(folder / "metadata.jsonl")}
        return cls(folder, cell, settings_key, rows)

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

    def add(self, jobs: Iterable[ImageJob], images: Iterable[Image.Image], nfe: int) -> None:
        """Write images and then their rows, so that a killed run leaves no row without image."""
        self._drop_stale()
        for job, image in zip(jobs, images, strict=True):
            file = self.folder / job.file
            with written_whole(file) as temporary:
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
            }
        rows = sorted(self.rows.values(), key=lambda row: (row["prompt"], row["seed"]))
        write_jsonl(self.folder / "metadata.jsonl", rows)

    def _drop_stale(self) -> None:
        stale = [row for row in self.rows.values() if row["settings_key"] != self.settings_key]
        for row in stale:
            (self.folder / row["file_name"]).unlink(missing_ok=True)
            del self.rows[row["file_name"]]
