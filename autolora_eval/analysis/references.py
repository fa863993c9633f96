"""The reference set that a measure of diversity compares a cell's images with: another cell's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from autolora_eval.scoring.diversity import Diversity
from autolora_eval.scoring.diversity_measure import DiversityMeasure
from autolora_eval.scoring.feature_file import CellFeatures, Matrix

BoundMeasure = Callable[[npt.ArrayLike], Diversity]


@dataclass(frozen=True)
class References:
    """Which images each cell's are compared with, by measures that need a reference set.

    Attributes:
        cells: the reference's cell of each cell that has one.
        scores: one row an image, those of the references included.
        features: of a cell; None where there are none.
    """

    cells: Mapping[str, str] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    features: Callable[[str], CellFeatures | None] = lambda cell: None

    def bound(self, measure: DiversityMeasure, images: pd.DataFrame) -> BoundMeasure:
        """Return a measure of features alone; one that needs a reference set has got it.

        Args:
            measure: any measure.
            images: rows of the scores, of one cell and prompt: what it is to be taken of.
        """
        if not measure.against_reference:
            return measure
        cell, prompt_index = str(images["cell"].iloc[0]), int(images["prompt_index"].iloc[0])
        if cell in self.cells:
            return partial(measure, reference=self._matrix(self.cells[cell], prompt_index))
        is_one = cell in self.cells.values()
        why = "it is the reference itself" if is_one else "no reference has its swept parameters"
        return lambda features: Diversity(None, None, len(np.asarray(features)), why)

    def _matrix(self, cell: str, prompt_index: int) -> Matrix:
        """Return the features of the reference's images of a prompt, [M, D]."""
        features = self.features(cell)
        if features is None:
            return np.zeros((0, 0), dtype=np.float32)
        of_prompt = (self.scores["cell"] == cell) & (self.scores["prompt_index"] == prompt_index)
        return features.of(self.scores.loc[of_prompt, "image_id"])
