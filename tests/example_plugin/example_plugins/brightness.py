"""An extractor: the mean brightness of the cells of a grid."""

from __future__ import annotations

import numpy as np
from PIL import Image


class Brightness:
    """Mean brightness of each cell of a square grid.

    Args:
        cells: the number of cells in a row of the grid.
    """

    def __init__(self, cells: int = 4) -> None:
        self.cells = cells

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        """Return the vectors, float [N, cells²]."""
        size = (self.cells, self.cells)
        grids = [image.convert("L").resize(size, Image.Resampling.BOX) for image in images]
        return np.stack([np.asarray(grid, dtype=np.float32).ravel() + 1.0 for grid in grids])
