"""From images to feature vectors, each taken once: the stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file

from autolora_eval._devices import choose_device, quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json, atomic_write, content_hash
from autolora_eval._progress import Advance, Progress
from autolora_eval._sources import identity
from autolora_eval.config.load import LoadedBenchmark
from autolora_eval.config.plan import Plan
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import CellImage, ImageError, cell_images, open_image
from autolora_eval.scoring.extractor import Extractor, Loading


def extract_features(plan: Plan, folder: RunFolder, progress: Progress) -> Json:
    """Take the features of every image of the plan that has none yet.

    Args:
        plan: whose images.
        folder: where images are, and features go.
        progress: is told of each image.

    Returns:
        What the extractor is and how much was done, for the manifest.
    """
    spec = plan.benchmark.spec.features
    kind = plan.benchmark.extractor.kind
    what = {
        "identity": _identity(plan.benchmark),
        "dtype": _dtype_name(plan),
        **plan.benchmark.extractor.to_json(),
    }
    key = extractor_key(what, spec.batch_size)
    model = spec.model if kind.needs_model else kind.name
    manifest: Json = {"model": model, **what, "key": key, "done": 0, "reused": 0, "failed": 0}
    extractor = cache(lambda: _load(plan))  # loaded for the first image that can be opened
    with progress.task("Features", plan.n_images) as advance:
        for cell in plan.cells:
            images = cell_images(plan, cell, folder)
            known = _known(folder.features(cell.id), key)
            todo = [image for image in images if (image.id, image.sha256) not in known]
            advance(len(images) - len(todo))
            failed: dict[str, str] = {}
            if todo:
                known_dims = {len(row) for row in known.values()}
                fresh, failed = _extract(
                    extractor, todo, spec.batch_size, advance, (kind.name, known_dims)
                )
                known |= fresh
                if fresh:
                    manifest |= {"preprocessing": extractor().preprocessing()}
            if todo or not folder.features(cell.id).is_file():
                _write(folder.features(cell.id), images, known, failed, key)
            manifest["done"] += len(todo) - len(failed)
            manifest["reused"] += len(images) - len(todo)
            manifest["failed"] += len(failed)
            manifest["dim"] = next((len(row) for row in known.values()), None)
    return manifest


def extractor_key(what: Json, batch_size: int) -> str:
    """Return the content key of all that decides a feature vector but the image.

    Args:
        what: identity and precision of the extractor, and of a kind that is not the default what
            it and its parameters are. Where its folder is decides nothing.
        batch_size: images a forward pass, which decides the last bits.
    """
    identity = dict(what["identity"])
    if identity["kind"] != "hub":
        identity.pop("name")
    return content_hash({**what, "identity": identity, "batch_size": batch_size})


Rows = dict[tuple[str, str], npt.NDArray[np.float32]]


def _identity(benchmark: LoadedBenchmark) -> Json:
    """Return what the model is; of an extractor without one, what its code is."""
    if benchmark.features is not None:
        return identity(benchmark.features)
    kind = benchmark.extractor.kind
    return {"name": kind.name, "kind": "code", **kind.code}


def _load(plan: Plan) -> Extractor:
    benchmark = plan.benchmark
    loading = Loading(
        source=benchmark.features,
        parameters=benchmark.extractor.parameters,
        device=choose_device(benchmark.spec.device),
        dtype=getattr(torch, _dtype_name(plan)),
        batch_size=benchmark.spec.features.batch_size,
    )
    with quiet_libraries():
        return benchmark.extractor.kind.load(loading)


def _dtype_name(plan: Plan) -> str:
    """Return the extractor's precision; `auto` is float32 on every device."""
    stated = plan.benchmark.spec.features.dtype
    return "float32" if stated == "auto" else stated


def _known(path: Path, key: str) -> Rows:
    """Return the rows on disk that this extractor made; none of a file that is torn or not ours."""
    try:
        features = read_features(path)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError):
        return {}
    return features.rows() if features.key == key else {}


def _extract(
    extractor: Callable[[], Extractor],
    images: Sequence[CellImage],
    batch_size: int,
    advance: Advance,
    known: tuple[str, set[int]],
) -> tuple[Rows, dict[str, str]]:
    rows: Rows = {}
    failed: dict[str, str] = {}
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        opened: list[tuple[CellImage, Image.Image]] = []
        for image in batch:
            try:
                opened.append((image, open_image(image.path)))
            except ImageError as error:
                failed[image.id] = str(error)
        if opened:
            with quiet_libraries():
                vectors = extractor()([picture for _, picture in opened])
            _refuse_other_length(vectors.shape[1], *known)
            for (image, _), vector in zip(opened, vectors, strict=True):
                rows[image.id, str(image.sha256)] = vector
        advance(len(batch))
    return rows, failed


def _refuse_other_length(dim: int, name: str, known: set[int]) -> None:
    """Refuse vectors of another length than those of the cell before; note the first's."""
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
    present = [image for image in images if (image.id, image.sha256) in known]
    vectors = [known[image.id, str(image.sha256)] for image in present]
    matrix = np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    told = {
        "image_ids": [image.id for image in present],
        "sha256": [image.sha256 for image in present],
        "failed": failed,
        "extractor_key": key,
    }
    # One entry: safetensors writes several in random order, and the same run should give the
    # same bytes.
    with atomic_write(path) as temporary:
        save_file({"features": matrix}, temporary, metadata={"rows": json.dumps(told)})
