"""Any vision model of timm, with the preprocessing of its own configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.feature_file import Matrix
from autolora_eval.scoring.extractor import Extractor, ExtractorKind, Loading
from autolora_eval.sources.model_source import LOADING_ERRORS, PICKLE_ADVICE, Source

if TYPE_CHECKING:
    import torch
    from PIL import Image

_WEIGHTS = "model.safetensors"  # without this file timm would load a pickle


class TimmExtractor:
    """A vision model of timm without its classifier.

    Args:
        model: from `timm.create_model(…, num_classes=0)`.
        transform: maps an RGB image of PIL to a tensor [3, H, W].
        config: the configuration of the transform, for the manifest.
        batch_size: images per forward pass.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        transform: Callable[[Image.Image], torch.Tensor],
        config: Mapping[str, Any],
        batch_size: int,
    ) -> None:
        self.model, self.transform = model, transform
        self.config, self.batch_size = config, batch_size

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D]: the pooled output.

        Short batches are filled up, so that a vector does not depend on the number of images.
        """
        import torch

        filled = [*images, *[images[-1]] * (self.batch_size - len(images))]
        weight = next(self.model.parameters())
        pixels = torch.stack([self.transform(image) for image in filled])
        with torch.no_grad():
            vectors = self.model(pixels.to(weight.device, weight.dtype))[: len(images)]
        return np.asarray(vectors.flatten(1).float().cpu().numpy(), dtype=np.float32)

    def preprocessing(self) -> Json:
        """Return the preprocessing of an image."""
        plain: Json = json.loads(json.dumps(dict(self.config), default=str))
        return {"processor": "timm", **plain}


def _load(loading: Loading) -> Extractor:
    import timm

    assert loading.source is not None
    try:
        folder = _folder(loading.source)
        if not (folder / _WEIGHTS).is_file():
            raise FileNotFoundError(f"it has no {_WEIGHTS}, and {PICKLE_ADVICE}")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        config = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**config, is_training=False)
    except (*LOADING_ERRORS, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise AutoLoRAEvalError(
            f"the extractor '{loading.source.name}' cannot be loaded by timm: {message:.600}"
        ) from error
    model = model.to(loading.device, loading.dtype).eval()
    return TimmExtractor(model, transform, config, loading.batch_size)


def _folder(source: Source) -> Path:
    """Return the model's folder on this machine, downloading it from the hub if needed."""
    if source.kind != "hub":
        return Path(source.location)
    from huggingface_hub import snapshot_download

    files = ["config.json", _WEIGHTS]
    return Path(snapshot_download(source.location, revision=source.revision, allow_patterns=files))


EXTRACTOR = ExtractorKind(
    name="timm",
    summary="The pooled output of a vision model of timm, without its classifier.",
    source="Wightman 2019, PyTorch Image Models, doi 10.5281/zenodo.4414861",
    needs_model=True,
    packages={"timm": "timm"},
    load=_load,
)
