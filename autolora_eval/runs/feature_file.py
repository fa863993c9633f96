"""A cell's features on disk, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CellFeatures:
    """The features of a cell's images.

    Attributes:
        ids: image ids, in the order of the rows.
        sha256: of each image when its features were taken.
        matrix: float32 [N, D].
        failed: image id → reason, for images without features.
        key: content key of the extractor.
    """

    ids: list[str]
    sha256: list[str]
    matrix: Matrix
    failed: dict[str, str]
    key: str

    def rows(self) -> dict[tuple[str, str], npt.NDArray[np.float32]]:
        """Return (image id, SHA-256) → feature vector, float32 [D]."""
        return dict(zip(zip(self.ids, self.sha256, strict=True), self.matrix, strict=True))

    def of(self, ids: Iterable[str]) -> Matrix:
        """Return the features of some of the images, [N, D]; those without any are left out."""
        wanted = set(ids)
        rows = [index for index, id_ in enumerate(self.ids) if id_ in wanted]
        return self.matrix[np.asarray(rows, dtype=np.intp)]


def read_features(path: Path) -> CellFeatures:
    """Read a cell's features: tensor `features`, and in the metadata's `rows` what they are of."""
    with safe_open(path, framework="np") as file:
        told = json.loads(file.metadata()["rows"])
        matrix = file.get_tensor("features")
    return CellFeatures(
        ids=told["image_ids"],
        sha256=told["sha256"],
        matrix=matrix,
        failed=told["failed"],
        key=told["extractor_key"],
    )
