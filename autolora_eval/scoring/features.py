"""The feature stage: from images to feature vectors, each extracted once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.numpy import save_file

from autolora_eval._devices import choose_device, is_out_of_memory, quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval._files import Json, atomic_write, content_hash, require_space
from autolora_eval._progress import Progress
from autolora_eval.runs.feature_file import checksum, read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import CellImage, ImageError, cell_images, open_image, reduced
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import CellRecord, FeaturesRecord
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
        """Name of the precision that is used."""
        return "float32" if self.dtype == "auto" else self.dtype

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

        loading = Loading(
            source=self.source,
            parameters=self.extractor.parameters,
            device=torch.device(choose_device(self.device)),
            dtype=getattr(torch, self.dtype_name),
            batch_size=self.batch_size,
        )
        with quiet_libraries():
            return self.extractor.kind.load(loading)

    def check(self, size: tuple[int, int]) -> None:
        """Load the extractor, and extract the features of grey images: a whole batch on a GPU.

        A CPU takes at most two: its memory is larger, and a batch of a large model takes minutes.

        Args:
            size: width and height of the images.

        Raises:
            AutoLoRAEvalError: if it cannot be loaded or fails.
        """
        extractor = self.load()
        n = self.batch_size
        if choose_device(self.device) == "cpu":
            n = min(n, 2)
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

    Args:
        settings: how.
        manifest: whose images.
        folder: where images are and features go.
        progress: is advanced by each image.
        elsewhere: takes the extractor's key and all batches, and yields what a `FeatureMaker` of
            another process makes of each, in order. Default: they are extracted here.

    Returns:
        The extractor and how many images it took. What an earlier run learnt of the same
        extractor is kept: one that has nothing to do is not loaded.
    """
    kind, identity = settings.extractor.kind, settings.identity()
    key = extractor_key(identity, settings.batch_size)
    extract = FeatureMaker(settings)
    preprocessing, dim = None, None
    done = reused = n_failed = 0
    n_images = len(manifest.cells) * len(manifest.prompts) * len(manifest.seeds)
    with progress.task("Features", n_images) as advance:
        work: Iterable[_CellWork] = _work(manifest, folder, key)
        shared: Iterator[Extracted] = iter(())
        if elsewhere is not None:
            work = list(work)
            size = settings.batch_size
            shared = elsewhere(key, [b for one in work for b in _batches(one.todo, size)])
        for cell, images, todo in work:
            known = known_features(folder.features(cell.id), key)
            advance(len(images) - len(todo))
            dims = {len(row) for row in known.values()}
            failed: dict[str, str] = {}
            if todo:
                require_space(folder.path)
            batches = _batches(todo, settings.batch_size)
            found = islice(shared, len(batches)) if elsewhere else map(extract, batches)
            for batch, extracted in zip(batches, found, strict=True):
                for row in extracted.rows.values():
                    _check_length(len(row), kind.name, dims)
                known |= extracted.rows
                failed |= extracted.failed
                if extracted.preprocessing is not None:
                    preprocessing = extracted.preprocessing
                advance(len(batch))
            if todo or not folder.features(cell.id).is_file():
                _write(folder.features(cell.id), images, known, failed, key)
            done += len(todo) - len(failed)
            reused += len(images) - len(todo)
            n_failed += len(failed)
            dim = next((len(row) for row in known.values()), None)
    before = manifest.features
    if preprocessing is None and before is not None and before.key == key:
        preprocessing = before.preprocessing
    if preprocessing is None and dim is not None:  # made beside generation, or by a killed run
        preprocessing = extract.preprocessing()
    return FeaturesRecord(
        model=settings.model if kind.needs_model else kind.name,
        key=key,
        **identity,
        preprocessing=preprocessing,
        dim=dim,
        done=done,
        reused=reused,
        failed=n_failed,
    )


class _CellWork(NamedTuple):
    """The images of a cell, and those of them that have no features yet."""

    cell: CellRecord
    images: list[CellImage]
    todo: list[CellImage]


def _work(manifest: RunManifest, folder: RunFolder, key: str) -> Iterator[_CellWork]:
    for cell in manifest.cells:
        images = cell_images(manifest, cell, folder)
        known = known_features(folder.features(cell.id), key)
        yield _CellWork(cell, images, _missing(images, known))


def _missing(images: Sequence[CellImage], known: Rows) -> list[CellImage]:
    return [i for i in images if i.problem or (i.id, i.sha256) not in known]


def extract_whole_batches(
    extract: Callable[[Batch], Extracted],
    key: str,
    size: int,
    manifest: RunManifest,
    folder: RunFolder,
    stopped: Callable[[], bool],
) -> Iterator[int]:
    """Extract batches whose images are all there, while others are still to be made.

    They are the first ones that the stage would take, so that its others are the same as without
    these: on some devices the last bits of a vector depend on its place in the batch. The stage
    also takes a batch with an image that cannot be opened, and what follows it.

    Args:
        extract: extracts a batch.
        key: the extractor's.
        size: images in a batch.
        manifest: whose images.
        folder: where images are and features go.
        stopped: whether to begin no other batch.

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


def extractor_key(identity: Json, batch_size: int) -> str:
    """Return the hash of all that decides a feature vector but the image.

    Args:
        identity: as `FeatureSettings.identity` has it. The path of the model decides nothing.
        batch_size: images per forward pass.
    """
    model = dict(identity["identity"])
    if model["kind"] != "hub":
        model.pop("name")
    return content_hash({**identity, "identity": model, "batch_size": batch_size})


def known_features(path: Path, key: str) -> Rows:
    """Return the rows on disk that this extractor made; none if the file is damaged."""
    try:
        features = read_features(path)
    except (FileNotFoundError, AutoLoRAEvalError):
        return {}
    return features.rows() if features.key == key else {}


class Extracted(NamedTuple):
    """What became of a batch.

    Attributes:
        rows: the vectors, by image and its hash.
        failed: why an image could not be opened, by image.
        preprocessing: what the extractor does with an image; None if none could be opened.
    """

    rows: Rows
    failed: dict[str, str]
    preprocessing: Json | None


class FeatureMaker:
    """Extracts batches. The extractor is loaded for the first image that can be opened.

    Args:
        settings: how.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self._settings = settings
        self._extractor = cache(settings.load)

    def __call__(self, batch: Batch) -> Extracted:
        """Extract the features of at most `batch_size` images.

        Raises:
            AutoLoRAEvalError: if the memory is too small.
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
        extractor = self._extractor()
        try:
            with quiet_libraries():
                vectors = extractor([picture for _, picture in opened])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise AutoLoRAEvalError(
                f"the extractor '{self._settings.extractor.kind.name}' ran out of memory with "
                f"features.batch_size {self._settings.batch_size}. Lower it, and run the same "
                "command again."
            ) from None
        pairs = zip(opened, vectors, strict=True)
        rows = {(image.id, str(image.sha256)): vector for (image, _), vector in pairs}
        return Extracted(rows, failed, self.preprocessing())

    def preprocessing(self) -> Json:
        """Return what the extractor does with an image."""
        return self._extractor().preprocessing()


def _check_length(dim: int, name: str, known: set[int]) -> None:
    """Refuse a vector of another length than the earlier ones."""
    known.add(dim)
    if len(known) > 1:
        before = next(iter(known - {dim}))
        raise AutoLoRAEvalError(
            f"the extractor '{name}' returned vectors of {dim} numbers, and of {before} before: "
            "expected one length for all images, whatever they are batched with."
        )


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
    # A tensor too: the header of safetensors holds 100 MB, which 900,000 images would fill.
    text = np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8)
    with atomic_write(path) as temporary:
        save_file({"features": matrix, "rows": text}, temporary)
