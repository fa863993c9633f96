"""Any vision model of transformers: DINOv2, DINOv3, CLIP, SigLIP, ViT and others."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora_eval._files import Json
from autolora_eval.runs.feature_file import Matrix
from autolora_eval.scoring.extractor import DEFAULT, Extractor, ExtractorKind, Loading
from autolora_eval.sources.model_source import LOADING_ERRORS, Source, loading_options, unloadable

if TYPE_CHECKING:
    import torch
    from PIL import Image


class TransformersExtractor:
    """A vision model with its own preprocessing.

    Args:
        model: from `AutoModel`.
        processor: from `AutoImageProcessor`.
        batch_size: images per forward pass.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int) -> None:  # noqa: ANN401
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the feature vectors of RGB images, float32 [N, D].

        Short batches are filled up, so that a vector does not depend on the number of images.
        """
        import torch

        filled = [*images, *[images[-1]] * (self.batch_size - len(images))]
        inputs = self.processor(images=filled, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        with torch.no_grad():
            vectors = self._pooled(pixels)[: len(images)]
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return one vector per image: the pooled output (DINOv2: the CLS token after the norm)."""
        if hasattr(self.model, "get_image_features"):
            features = self.model.get_image_features(pixel_values=pixels)
            # Some models return the pooled tensor itself.
            pooled = getattr(features, "pooler_output", features)
        else:
            outputs = self.model(pixel_values=pixels)
            pooled = getattr(outputs, "pooler_output", None)
            if pooled is None:
                pooled = outputs.last_hidden_state[:, 0]
        vectors: torch.Tensor = pooled.flatten(1)
        return vectors

    def preprocessing(self) -> Json:
        """Return the preprocessing of an image."""
        names = ("size", "crop_size", "do_resize", "do_center_crop", "resample", "image_mean")
        config = self.processor.to_dict()
        kept = {name: config[name] for name in (*names, "image_std") if name in config}
        plain: Json = json.loads(json.dumps(kept, default=str))
        return {"processor": type(self.processor).__name__, **plain}


def _require_timm(source: Source, options: Mapping[str, Any]) -> None:
    """Raise a clear error for a timm model if timm is not installed."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(source.location, **options)
    is_of_timm = config.get("model_type") == "timm_wrapper" or "pretrained_cfg" in config
    if is_of_timm and importlib.util.find_spec("timm") is None:
        raise ImportError(
            "the model requires timm: pip install 'autolora-eval[timm]'. "
            "'extractor: timm' loads it without transformers."
        )


def _load(loading: Loading) -> Extractor:
    """Load a vision model from a folder or hub id, from safetensors only."""
    from transformers import AutoImageProcessor, AutoModel

    source = loading.source
    assert source is not None
    options = loading_options(source)
    try:
        _require_timm(source, options)
        processor = AutoImageProcessor.from_pretrained(source.location, **options)
        model = AutoModel.from_pretrained(
            source.location, dtype=loading.dtype, use_safetensors=True, **options
        )
    except LOADING_ERRORS as error:
        raise unloadable("extractor", source, error) from error
    return TransformersExtractor(model.to(loading.device).eval(), processor, loading.batch_size)


EXTRACTOR = ExtractorKind(
    name=DEFAULT,
    summary="The pooled output of a vision model (DINOv2: the CLS token; CLIP: its embedding).",
    source="Wolf et al. 2020, arXiv 1910.03771",
    needs_model=True,
    load=_load,
)
