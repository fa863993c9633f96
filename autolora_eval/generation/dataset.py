"""The images of one cell on disk: a Hugging Face imagefolder that records how each was made."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from autolora_eval._devices import image_libraries
from autolora_eval._files import Json, atomic_write, sha256_file, write_jsonl
from autolora_eval._progress import Advance
from autolora_eval.config.plan import Cell
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import MADE_ALONE
from autolora_eval.runs.manifest import ImageJob, rows_of_images

# Key of a metadata row: the hash of the file that an imported image was copied from.
SOURCE_HASH = "source_sha256"
# Key of a metadata row: the versions of the libraries that made the image.
LIBRARIES = "libraries"
# Batches that wait for the disk: their pictures are in memory.
MAX_QUEUED = 2


@dataclass
class ImageDataset:
    """The images of one cell.

    An image counts as made if its row in `metadata.jsonl` has the settings key of the cell and the
    hash of its file. Images of other settings are moved to `stale_images/` before the first image
    is written. They are restored if their settings return: they may have taken hours of GPU time.

    Attributes:
        settings_key: the hash of all that decides the images, except for prompt and seed.
        rows: the rows of `metadata.jsonl` by `file_name`.
    """

    run: RunFolder
    cell: Cell
    settings_key: str
    rows: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def open(cls, run: RunFolder, cell: Cell, settings_key: str) -> ImageDataset:
        """Read the metadata of a cell, and restore stale images of these settings."""
        dataset = cls(run, cell, settings_key, _read_rows(run.images(cell.id)))
        stale = run.stale_images(cell.id, settings_key)
        returning = _read_rows(stale)
        if returning:
            dataset._move_stale_images()
            for name in returning.keys() - dataset.rows.keys():
                dataset._move(stale / name, dataset.folder / name)
                dataset.rows[name] = returning[name]
            dataset._write_rows()
            shutil.rmtree(stale)
        return dataset

    @property
    def folder(self) -> Path:
        """The folder with the images and `metadata.jsonl`."""
        return self.run.images(self.cell.id)

    @property
    def is_empty(self) -> bool:
        """Whether the cell has no image of these settings."""
        return not any(map(self._is_current, self.rows.values()))

    @property
    def made_alone(self) -> bool:
        """True if images of these settings were made in batches of 1 in place of larger ones."""
        return any(MADE_ALONE in row for row in self.rows.values() if self._is_current(row))

    @property
    def libraries(self) -> set[str]:
        """The versions of the libraries that made the images of these settings."""
        current = filter(self._is_current, self.rows.values())
        return {str(row[LIBRARIES]) for row in current if LIBRARIES in row}

    def missing(self, jobs: Iterable[ImageJob]) -> list[ImageJob]:
        """Return the jobs whose image is not there, is stale, or was changed."""
        return [job for job in jobs if not self._has(job)]

    def write(
        self,
        jobs: Iterable[ImageJob],
        images: Iterable[Image.Image],
        nfe: int | None,
        metadata: Iterable[Mapping[str, object]],
    ) -> None:
        """Write images as PNG and then their rows: a killed run leaves no row without an image.

        Args:
            jobs: the job of each image.
            images: RGB images.
            nfe: the function evaluations per image; None if unknown.
            metadata: further keys for the row of each image, such as the seconds it took.
        """
        self._move_stale_images()
        for job, image, more in zip(jobs, images, metadata, strict=True):
            file = self.run.within(self.folder / job.file)
            with atomic_write(file) as temporary:
                image.save(temporary, format="PNG")
            self.rows[job.file] = {**self._row(job, image, nfe, sha256_file(file)), **more}
        self._write_rows()

    def _row(self, job: ImageJob, image: Image.Image, nfe: int | None, sha256: str) -> Json:
        cell = self.cell
        made_here = cell.parameters.uses_the_model
        return {
            "file_name": job.file,
            "prompt": job.prompt,
            **({"negative_prompt": cell.negative_prompt(job)} if made_here else {}),
            "seed": job.seed,
            "model": cell.model.name,
            "method": cell.method.name,
            "cell": cell.id,
            "width": image.width,
            "height": image.height,
            "nfe": nfe,
            "sha256": sha256,
            "settings_key": self.settings_key,
            **({} if cell.method.kind == "images" else {LIBRARIES: image_libraries()}),
        }

    def record(self, rows: Iterable[Json]) -> None:
        """Take over rows of images of these settings that another process wrote.

        Args:
            rows: as `write` makes them. Without rows, stale images are moved away all the same.
        """
        self._move_stale_images()
        self.rows |= {row["file_name"]: row for row in rows}
        self._write_rows()

    def adopt_existing(self, origins: Mapping[ImageJob, Mapping[str, object]]) -> set[ImageJob]:
        """Keep intact images of other settings that are copies of the same source file.

        Args:
            origins: by job, the metadata of the image to import, with `SOURCE_HASH`.

        Returns:
            The jobs whose image was kept and need not be written.
        """
        adopted = set()
        for job, origin in origins.items():
            row = self.rows.get(job.file, {})
            if row.get(SOURCE_HASH) == origin[SOURCE_HASH] and self._is_intact(row):
                row |= {**origin, "settings_key": self.settings_key}
                adopted.add(job)
        if adopted:
            self._write_rows()
        return adopted

    def update_metadata(self, metadata: Mapping[ImageJob, Mapping[str, object]]) -> None:
        """Update rows of current images, for example if a source file was renamed."""
        changed = False
        for job, more in metadata.items():
            row = self.rows.get(job.file)
            if row is not None and self._is_current(row):
                changed |= not row.items() >= more.items()
                row.update(more)
        if changed:
            self._write_rows()

    def failures(self) -> dict[str, str]:
        """Return why images of these settings could not be made, by `file_name`."""
        rows = rows_of_images(self.run.failed_images(self.cell.id))
        return {row["file_name"]: row["reason"] for row in rows if self._is_current(row)}

    def record_failures(self, reasons: Mapping[str, str]) -> None:
        """Add failures to `failed_images/`; drop those of images that exist by now.

        Args:
            reasons: why an image could not be made, by `file_name`.
        """
        path = self.run.failed_images(self.cell.id)
        made = {name for name, row in self.rows.items() if self._is_current(row)}
        rows = [
            {"file_name": name, "reason": reason, "settings_key": self.settings_key}
            for name, reason in (self.failures() | dict(reasons)).items()
            if name not in made
        ]
        if rows:
            write_jsonl(path, rows)
        else:
            path.unlink(missing_ok=True)

    def _is_current(self, row: Json) -> bool:
        return bool(row["settings_key"] == self.settings_key)

    def _is_intact(self, row: Json) -> bool:
        file = self.run.within(self.folder / row["file_name"])
        return file.is_file() and sha256_file(file) == row.get("sha256")

    def _has(self, job: ImageJob) -> bool:
        row = self.rows.get(job.file)
        return row is not None and self._is_current(row) and self._is_intact(row)

    def _move_stale_images(self) -> None:
        stale = [row for row in self.rows.values() if not self._is_current(row)]
        for key in {row["settings_key"] for row in stale}:
            target = self.run.stale_images(self.cell.id, key)
            rows = _read_rows(target)
            for row in (row for row in stale if row["settings_key"] == key):
                name = row["file_name"]
                self._move(self.folder / name, target / name)
                rows[name] = row
                del self.rows[name]
            write_jsonl(target / "metadata.jsonl", rows.values())
        if stale:
            self._write_rows()

    def _move(self, source: Path, target: Path) -> None:
        """Move a file if it exists. If it was lost, `missing` reports its job."""
        if self.run.within(source).is_file():
            self.run.within(target).parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)

    def _write_rows(self) -> None:
        rows = sorted(self.rows.values(), key=lambda row: (row["prompt"], row["seed"]))
        write_jsonl(self.folder / "metadata.jsonl", rows)


Write = Callable[
    [Sequence[ImageJob], Sequence[Image.Image], int | None, Sequence[Mapping[str, object]]], None
]


@contextmanager
def background_writer(dataset: ImageDataset, advance: Advance) -> Iterator[Write]:
    """Yield an `ImageDataset.write` that works in a thread while the next images are made.

    A call waits if the disk is far behind. The end of the block waits for what is queued, also
    after an error or Ctrl-C. The next call or the end of the block raises an error of writing.

    Args:
        dataset: where the images go.
        advance: called with the number of images that are on disk.
    """
    queued: deque[Future[None]] = deque()

    def put(jobs: Sequence[ImageJob], *more: Any) -> None:  # noqa: ANN401
        dataset.write(jobs, *more)
        advance(len(jobs))

    def write(*arguments: Any) -> None:  # noqa: ANN401
        while len(queued) == MAX_QUEUED or (queued and queued[0].done()):
            queued.popleft().result()
        queued.append(thread.submit(put, *arguments))

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="images") as thread:
            yield write
    except Exception:  # not Ctrl-C, which goes first
        _raise_first(queued)
        raise
    _raise_first(queued)


def _raise_first(done: Iterable[Future[None]]) -> None:
    for one in done:
        one.result()


def _read_rows(folder: Path) -> dict[str, Json]:
    return {row["file_name"]: row for row in rows_of_images(folder / "metadata.jsonl")}
