"""From images to feature vectors: any `transformers` vision model, DINOv2 by default."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file

from autolora_eval.benchmark.sources import Source
from autolora_eval.devices import choose_device
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json, content_key, written_whole
from autolora_eval.identity import identity
from autolora_eval.images import CellImage, ImageError, cell_images, open_image
from autolora_eval.libraries import quiet_libraries
from autolora_eval.plan import Plan
from autolora_eval.progress import Advance, Progress
from autolora_eval.run_folder import RunFolder
from autolora_eval.scoring.feature_file import Matrix, read_features


class Extractor:
    """A vision model with its own preprocessing.

    Args:
        model: from `AutoModel`.
        processor: from `AutoImageProcessor`.
        batch_size: images a forward pass.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int) -> None:  # noqa: ANN401
        self.model, self.processor, self.batch_size = model, processor, batch_size

    @classmethod
    def load(
        cls, source: Source, device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> Extractor:
        """Load a vision model from a folder or hub id, from safetensors only."""
        from transformers import AutoImageProcessor, AutoModel

        options = {"revision": source.revision} if source.revision else {}
        try:
            processor = AutoImageProcessor.from_pretrained(source.location, **options)
            model = AutoModel.from_pretrained(
                source.location, dtype=dtype, use_safetensors=True, **options
            )
        except (OSError, ValueError) as error:
            raise AutoLoRAEvalError(
                f"the extractor '{source.reference}' cannot be loaded: {str(error)[:400]}"
            ) from error
        return cls(model.to(device).eval(), processor, batch_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D].

        The last batch is filled up, so that a vector does not depend on how many images there are.
        """
        filled = [*images, *[images[-1]] * (self.batch_size - len(images))]
        inputs = self.processor(images=filled, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        vectors = self._pooled(pixels)[: len(images)]
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """One vector an image: the pooled output (DINOv2: the CLS token after its norm)."""
        if hasattr(self.model, "get_image_features"):
            features = self.model.get_image_features(pixel_values=pixels)
            pooled = features if isinstance(features, torch.Tensor) else features.pooler_output
        else:
            outputs = self.model(pixel_values=pixels)
            pooled = getattr(outputs, "pooler_output", None)
            if pooled is None:
                pooled = outputs.last_hidden_state[:, 0]
        vectors: torch.Tensor = pooled.flatten(1)
        return vectors

    def preprocessing(self) -> Json:
        """Return what is done to an image before the model sees it, and by which backend."""
        names = ("size", "crop_size", "do_resize", "do_center_crop", "resample", "image_mean")
        config = self.processor.to_dict()
        stated = {name: config[name] for name in (*names, "image_std") if name in config}
        return {
            "processor": type(self.processor).__name__,
            **json.loads(json.dumps(stated, default=str)),
        }


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
    what = {"identity": identity(plan.benchmark.features), "dtype": _dtype_name(plan)}
    key = extractor_key(what, spec.batch_size)
    manifest: Json = {"model": spec.model, **what, "key": key, "done": 0, "reused": 0, "failed": 0}
    extractor = cache(lambda: _load(plan))  # loaded for the first image that can be opened
    with progress.task("Features", plan.n_images) as advance:
        for cell in plan.cells:
            images = cell_images(plan, cell, folder)
            known = _known(folder.features(cell.id), key)
            todo = [image for image in images if (image.id, image.sha256) not in known]
            advance(len(images) - len(todo))
            failed: dict[str, str] = {}
            if todo:
                fresh, failed = _extract(extractor, todo, spec.batch_size, advance)
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
        what: identity and precision of the extractor. Where its folder is decides nothing.
        batch_size: images a forward pass, which decides the last bits.
    """
    identity = dict(what["identity"])
    if identity["kind"] != "hub":
        identity.pop("reference")
    return content_key({**what, "identity": identity, "batch_size": batch_size})


Rows = dict[tuple[str, str], npt.NDArray[np.float32]]


def _load(plan: Plan) -> Extractor:
    spec = plan.benchmark.spec
    dtype = getattr(torch, _dtype_name(plan))
    with quiet_libraries():
        return Extractor.load(
            plan.benchmark.features, choose_device(spec.device), dtype, spec.features.batch_size
        )


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
            for (image, _), vector in zip(opened, vectors, strict=True):
                rows[image.id, str(image.sha256)] = vector
        advance(len(batch))
    return rows, failed


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
    with written_whole(path) as temporary:
        save_file({"features": matrix}, temporary, metadata={"rows": json.dumps(told)})
