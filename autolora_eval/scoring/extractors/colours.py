"""The colour histogram of an image, which needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from autolora_eval._files import Json
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.runs.feature_file import Matrix
from autolora_eval.scoring.extractor import Extractor, ExtractorKind, Loading

if TYPE_CHECKING:
    from PIL import Image


class ColourParameters(MethodParameters):
    """Parameters of the colour histogram."""

    bins: int = Field(default=8, ge=2, le=16)
    """Intervals of each of red, green and blue; a vector has bins³ entries."""


@dataclass(frozen=True)
class Colours:
    """The square roots of the fractions of pixels in each box of the RGB cube.

    The cosine of two such vectors is Σ √(p_i q_i), the Bhattacharyya coefficient of the two colour
    distributions.
    """

    bins: int

    def __call__(self, images: Sequence[Image.Image]) -> Matrix:
        """Return the vectors of RGB images, float32 [N, bins³], each of length 1."""
        return np.stack([self._histogram(np.asarray(image)) for image in images]).astype(np.float32)

    def _histogram(self, image: np.ndarray) -> np.ndarray:
        red, green, blue = (image.reshape(-1, 3).astype(np.int64) * self.bins // 256).T
        boxes = (red * self.bins + green) * self.bins + blue
        return np.sqrt(np.bincount(boxes, minlength=self.bins**3) / len(boxes))

    def preprocessing(self) -> Json:
        """Return the preprocessing: none."""
        return {"size": "as it is"}


def _load(loading: Loading) -> Extractor:
    return Colours(loading.parameters.bins)


EXTRACTOR = ExtractorKind(
    name="colours",
    summary="The histogram of an image's colours; needs no model.",
    source="Swain and Ballard 1991, Color indexing, doi 10.1007/BF00130487",
    needs_model=False,
    parameters=ColourParameters,
    load=_load,
)
