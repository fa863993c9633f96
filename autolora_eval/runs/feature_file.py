"""A cell's features on disk, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import content_hash, sha256_bytes

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CellFeatures:
    """The features of a cell's images.

    Attributes:
        ids: image ids, in the order of the rows.
        sha256: of each image when its features were extracted.
        matrix: float32 [N, D].
        failed: image id → reason, for images without features.
        key: hash of the extractor.
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
        """Return the features of some of the images, float32 [N, D], in the order of the file."""
        known = self._row_of
        return self.take(sorted({known[id_] for id_ in ids if id_ in known})).matrix

    def unchanged(self, images: Iterable[tuple[str, str | None]]) -> CellFeatures:
        """Return the features of images, given as (id, SHA-256 now), that have not changed."""
        known, sha256 = self._row_of, self.sha256
        pairs = ((known.get(id_), hash_) for id_, hash_ in images)
        return self.take(sorted({n for n, hash_ in pairs if n is not None and sha256[n] == hash_}))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {id_: row for row, id_ in enumerate(self.ids)}

    def take(self, rows: Sequence[int]) -> CellFeatures:
        """Return some of the rows; without a copy if these are all."""
        if list(rows) == list(range(len(self.ids))):
            return self
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            sha256=[self.sha256[row] for row in rows],
            matrix=self.matrix[np.asarray(rows, dtype=np.intp)],
        )


def checksum(rows: Mapping[str, object], matrix: Matrix) -> str:
    """Return the checksum of features and of the metadata in their file."""
    data = np.ascontiguousarray(matrix).reshape(-1).view(np.uint8).data
    return content_hash({**rows, "checksum": sha256_bytes(data)})


def read_features(path: Path) -> CellFeatures:
    """Read a cell's features: tensor `features`, and their images as JSON in the tensor `rows`.

    Raises:
        AutoLoRAEvalError: if the file is damaged, or was changed after it was written.
        FileNotFoundError: if the file does not exist.
    """
    try:
        matrix = _tensor(path, "features")
        rows = json.loads(_tensor(path, "rows").tobytes())
        if rows["checksum"] != checksum(rows, matrix):
            raise ValueError("they do not match its checksum")
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise AutoLoRAEvalError(
            f"Cannot read features from '{path}': {error}. Delete the file and run: "
            f"autolora-eval score {path.parent.parent}"
        ) from error
    return CellFeatures(
        ids=rows["image_ids"],
        sha256=rows["sha256"],
        matrix=matrix,
        failed=rows["failed"],
        key=rows["extractor_key"],
    )


def _tensor(path: Path, name: str) -> npt.NDArray[Any]:
    """Return a copy of a tensor. An open file stays in memory as far as it was read."""
    with safe_open(path, framework="np") as file:
        return np.asarray(file.get_tensor(name))
