"""The feature stage: feature vectors of images, each extracted once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.numpy import save_file

from autolora_eval._devices import choose_device, is_out_of_memory, keep_freed_memory, without_tf32
from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval._files import Json, atomic_write, content_hash, require_space
from autolora_eval._progress import Advance, Progress, quiet_libraries
from autolora_eval.runs.feature_file import Matrix, checksum, read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import CellImage, ImageError, cell_images, open_image, reduced
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import FeaturesRecord
from autolora_eval.scoring.extractor import Extractor, Loading, ResolvedExtractor
from autolora_eval.sources.identity import identity
from autolora_eval.sources.model_source import Source

Rows = dict[tuple[str, str], npt.NDArray[np.float32]]
Batch = Sequence[CellImage]


@dataclass(frozen=True)
class FeatureSettings:
    """How features are extracted.

    Attributes:
        extractor: its kind and parameters.
        model: the model as the benchmark names it.
        source: where the model is; None for an extractor without one.
        device: `auto` or a torch device.
        dtype: precision of the extractor; `auto` is float32 on every device.
        batch_size: images per forward pass, which decides the last bits of a vector.
    """

    extractor: ResolvedExtractor
    model: str
    source: Source | None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 32

    @property
    def dtype_name(self) -> str:
        """The precision that is used."""
        return "float32" if self.dtype == "auto" else self.dtype

    @property
    def key(self) -> str:
        """The content hash of all that decides a feature vector but the image."""
        return extractor_key(self.identity(), self.batch_size)

    def identity(self) -> Json:
        """Return all that decides a feature vector but the image and the batch size."""
        kind = self.extractor.kind
        code = {"name": kind.name, "kind": "code", **kind.code}
        return {
            "identity": code if self.source is None else identity(self.source),
            "dtype": self.dtype_name,
            **self.extractor.to_json(),
        }

    def load(self) -> Extractor:
        """Load the extractor."""
        import torch  # takes seconds: not for a run whose features are all there

        device = torch.device(choose_device(self.device))
        if device.type == "cpu":
            keep_freed_memory()
        loading = Loading(
            source=self.source,
            parameters=self.extractor.parameters,
            device=device,
            dtype=getattr(torch, self.dtype_name),
            batch_size=self.batch_size,
        )
        with quiet_libraries():
            return self.extractor.kind.load(loading)

    def check(self, size: tuple[int, int]) -> None:
        """Load the extractor, and try it on a batch of grey images of this width and height.

        A CPU tries two at most: it has more memory, and a batch of a large model takes minutes.

        Raises:
            AutoLoRAEvalError: if it cannot be loaded or fails.
        """
        extractor = self.load()
        on_cpu = choose_device(self.device) == "cpu"
        n = min(self.batch_size, 2) if on_cpu else self.batch_size
        try:
            with quiet_libraries():
                extractor([Image.new("RGB", size, (128, 128, 128))] * n)
        except AutoLoRAEvalError:
            raise
        except Exception as error:
            raise AutoLoRAEvalError(
                f"the extractor '{self.model}' fails on a trial batch of {n} images "
                f"({type(error).__name__}: {first_line(error)}). Try another one, or a lower "
                "features.batch_size if its memory is too small."
            ) from error


def extract_features(
    settings: FeatureSettings,
    manifest: RunManifest,
    folder: RunFolder,
    progress: Progress,
    elsewhere: Callable[[str, Sequence[Batch]], Iterator[Extracted]] | None = None,
) -> FeaturesRecord:
    """Extract the features of every image of a run that has none yet.

    `elsewhere` takes the extractor's key and all batches, and yields what a `FeatureMaker` of
    another process makes of each, in order. By default, they are extracted here.

    Returns:
        The manifest's section `features`. If there is nothing to extract, the extractor is not
        loaded, and its preprocessing is taken from the manifest.
    """
    origin, maker = settings.identity(), FeatureMaker(settings)
    key = extractor_key(origin, settings.batch_size)
    n_images = len(manifest.cells) * len(manifest.prompts) * len(manifest.seeds)
    with progress.task("Features", n_images) as advance:
        work: Iterable[_CellWork] = _work(manifest, folder, key, settings.batch_size)
        shared: Iterator[Extracted] | None = None
        if elsewhere is not None:
            work = list(work)
            shared = elsewhere(key, [batch for cell in work for batch in cell.batches])
        writer = _FeatureWriter(settings.extractor.kind.name, key, advance)
        for cell in work:
            if cell.batches:
                require_space(folder.path)
            writer.write(cell, map(maker, cell.batches) if shared is None else shared)
    return FeaturesRecord(
        model=settings.model if settings.extractor.kind.needs_model else writer.name,
        key=key,
        **origin,
        preprocessing=_preprocessing(writer, maker, manifest.features),
        dim=writer.dim,
        done=writer.done,
        reused=writer.reused,
        failed=writer.failed,
    )


def _preprocessing(
    writer: _FeatureWriter, maker: FeatureMaker, before: FeaturesRecord | None
) -> Json | None:
    """Return what was done to the images of a run first; None if it has no features."""
    if writer.preprocessing is not None:
        return writer.preprocessing
    if before is not None and before.key == writer.key and before.preprocessing is not None:
        return before.preprocessing
    # Made during generation, or by a killed run.
    return None if writer.dim is None else maker.preprocessing


class _CellWork(NamedTuple):
    """The images of a cell, and batches of those that have no features yet."""

    file: Path
    images: list[CellImage]
    batches: list[Batch]


def _work(manifest: RunManifest, folder: RunFolder, key: str, size: int) -> Iterator[_CellWork]:
    for cell in manifest.cells:
        images, file = cell_images(manifest, cell, folder), folder.features(cell.id)
        yield _CellWork(file, images, _batches(_missing(images, known_features(file, key)), size))


def _missing(images: Sequence[CellImage], known: Rows) -> list[CellImage]:
    return [i for i in images if i.problem or (i.id, i.sha256) not in known]


@dataclass
class _FeatureWriter:
    """Writes the features of one cell after the other, and counts them."""

    name: str
    key: str
    advance: Advance
    done: int = 0
    reused: int = 0
    failed: int = 0
    dim: int | None = None
    preprocessing: Json | None = None

    def write(self, work: _CellWork, results: Iterator[Extracted]) -> None:
        """Write the features of a cell; takes the results of its batches."""
        known = known_features(work.file, self.key)
        failed: dict[str, str] = {}
        n_todo = sum(map(len, work.batches))
        n_reused = len(work.images) - n_todo
        self.advance(n_reused)
        for batch, extracted in zip(work.batches, islice(results, len(work.batches)), strict=True):
            known |= extracted.rows
            self._check_lengths(known, extracted.rows)
            failed |= extracted.failed
            if extracted.preprocessing is not None:
                self.preprocessing = extracted.preprocessing
            self.advance(len(batch))
        if work.batches or not work.file.is_file():
            _write(work.file, work.images, known, failed, self.key)
        self.done += n_todo - len(failed)
        self.reused += n_reused
        self.failed += len(failed)
        self.dim = next(map(len, known.values()), self.dim)

    def _check_lengths(self, known: Rows, new: Rows) -> None:
        """Check that new vectors are as long as the earlier ones."""
        before = next(map(len, known.values()), 0)
        for row in new.values():
            if len(row) != before:
                raise AutoLoRAEvalError(
                    f"the extractor '{self.name}' returned vectors of {len(row)} numbers, and of "
                    f"{before} before: expected one length for all images, in any batch."
                )


def extract_whole_batches(
    extract: Callable[[Batch], Extracted],
    key: str,
    size: int,
    manifest: RunManifest,
    folder: RunFolder,
    stopped: Callable[[], bool],
) -> Iterator[int]:
    """Extract batches whose images all exist, while others are still being made.

    They are the first batches that the stage would take, so its other batches stay the same: on
    some devices the last bits of a vector depend on its index in the batch. From the first image
    that cannot be opened on, batches are left to the stage. `stopped` is called before each batch.

    Yields:
        The number of vectors that were added to the file of a cell.
    """
    for cell in manifest.cells:
        known = known_features(folder.features(cell.id), key)
        images = cell_images(manifest, cell, folder, known)
        todo = _missing(images, known)
        n_there = next((n for n, image in enumerate(todo) if image.problem), None)
        ready = todo if n_there is None else todo[: n_there // size * size]
        found: Rows = {}
        for batch in _batches(ready, size):
            if stopped() or (extracted := extract(batch)).failed:
                break
            found |= extracted.rows
        if found:
            _write(folder.features(cell.id), images, known | found, {}, key)
            yield len(found)


def _batches(images: Sequence[CellImage], size: int) -> list[Batch]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def extractor_key(origin: Json, batch_size: int) -> str:
    """Return `FeatureSettings.key` from what `FeatureSettings.identity` returns."""
    model = dict(origin["identity"])
    if model["kind"] != "hub":
        model.pop("name")  # a folder is identified by its content
    return content_hash({**origin, "identity": model, "batch_size": batch_size})


def known_features(path: Path, key: str) -> Rows:
    """Return the rows on disk that this extractor made; none if the file is damaged."""
    try:
        features = read_features(path)
    except (FileNotFoundError, AutoLoRAEvalError):
        return {}
    return features.rows() if features.key == key else {}


class Extracted(NamedTuple):
    """The features of a batch.

    Attributes:
        rows: the vectors by image id and SHA-256.
        failed: the reason by image id, for images that could not be opened.
        preprocessing: the extractor's preprocessing of an image; None if no image could be opened.
    """

    rows: Rows
    failed: dict[str, str]
    preprocessing: Json | None


class FeatureMaker:
    """Extracts batches. The extractor is loaded for the first image that can be opened."""

    def __init__(self, settings: FeatureSettings) -> None:
        self._settings = settings
        self._extractor = cache(settings.load)

    def __call__(self, batch: Batch) -> Extracted:
        """Extract the features of at most `batch_size` images.

        Raises:
            AutoLoRAEvalError: if the extractor runs out of memory.
        """
        failed: dict[str, str] = {}
        opened: list[tuple[CellImage, Image.Image]] = []
        for image in batch:
            try:
                if image.problem:
                    raise ImageError(image.problem)
                opened.append((image, reduced(open_image(image.path))))
            except ImageError as error:
                failed[image.id] = str(error)
        if not opened:
            return Extracted({}, failed, None)
        vectors = self._vectors([picture for _, picture in opened])
        pairs = zip(opened, vectors, strict=True)
        rows = {(image.id, str(image.sha256)): vector for (image, _), vector in pairs}
        return Extracted(rows, failed, self.preprocessing)

    def _vectors(self, pictures: list[Image.Image]) -> Matrix:
        extractor = self._extractor()
        try:
            with quiet_libraries(), without_tf32():
                return extractor(pictures)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise AutoLoRAEvalError(
                f"the extractor '{self._settings.extractor.kind.name}' ran out of memory with "
                f"features.batch_size {self._settings.batch_size}. Lower it, and run the same "
                "command again."
            ) from None

    @cached_property
    def preprocessing(self) -> Json:
        """The extractor's preprocessing of an image."""
        return self._extractor().preprocessing()


def _write(
    path: Path, images: Sequence[CellImage], known: Rows, failed: dict[str, str], key: str
) -> None:
    present = [i for i in images if not i.problem and (i.id, i.sha256) in known]
    vectors = [known[image.id, str(image.sha256)] for image in present]
    matrix = np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    rows: Json = {
        "image_ids": [image.id for image in present],
        "sha256": [image.sha256 for image in present],
        "failed": failed,
        "extractor_key": key,
    }
    rows["checksum"] = checksum(rows, matrix)
    # Also as a tensor: the header of safetensors is limited to 100 MB, or about 900,000 images.
    text = np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8)
    with atomic_write(path) as temporary:
        save_file({"features": matrix, "rows": text}, temporary)
