"""A cell's numbers made again from the files that they were joined from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from autolora_eval.analysis.cells import diversity_of
from autolora_eval.analysis.measures import Measure
from autolora_eval.analysis.references import BoundMeasure
from autolora_eval.explaining.sources import Sources
from autolora_eval.scoring.diversity import Floats, diversity, unit_vectors

if TYPE_CHECKING:
    import pandas as pd

# Tables hold twelve digits, features are float32.
TOLERANCE = 1e-6


def remade(sources: Sources, cell: str) -> dict[str, float]:
    """Return each measure of a cell from its features and its judge's replies, NaN if undefined.

    Diversity is the mean of equation (8) over prompts, as any other measure of diversity is; a
    score the mean over the scored images, and a product that of the two. A measure of somebody
    else whose code is not here is left out.
    """
    found = {"diversity": _diversity(sources, cell, lambda images: diversity)}
    for column, measure in sources.extra.items():
        found[column] = _diversity(sources, cell, partial(sources.references.bound, measure))
    for score in sources.scores:
        found[score.column] = _score(sources, cell, score)
        found[f"div_{score.column}"] = found["diversity"] * found[score.column]
    return found


def _diversity(
    sources: Sources, cell: str, measure_of: Callable[[pd.DataFrame], BoundMeasure]
) -> float:
    features = sources.features(cell)
    if features is None:
        return math.nan
    groups = sources.images(cell).groupby("prompt_index", sort=False)
    values = [diversity_of(images, features, measure_of(images)).value for _, images in groups]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else math.nan


def _score(sources: Sources, cell: str, measure: Measure) -> float:
    judged = sources.judgements_of(cell)
    values = []
    images = sources.images(cell)
    for image_id, sha256 in zip(images["image_id"], images["sha256"], strict=True):
        rows = judged.get((image_id, sha256), [])
        verdicts = [row["scores"][measure.column] for row in rows if row["scores"] is not None]
        if verdicts:
            values.append(float(np.mean(verdicts)))
    return float(np.mean(values)) if values else math.nan


def agreeing(stated: object, found: float) -> bool:
    """Return whether a number of the table and the same made again are one, or both missing."""
    value = float(stated) if isinstance(stated, int | float) else math.nan
    if math.isnan(value) or math.isnan(found):
        return math.isnan(value) and math.isnan(found)
    return abs(value - found) <= TOLERANCE * max(1.0, abs(value))


def cosines(sources: Sources, cell: str, image_ids: list[str], other: str, to: str) -> Floats:
    """Return the cosine of each image's features with those of the image `to` of cell `other`.

    Args:
        sources: the run.
        cell: of the images.
        image_ids: of the images.
        other: the cell of the one image.
        to: its id.

    Returns:
        float64 [N] in [−1, 1]; NaN where either has no features.
    """
    found = np.full(len(image_ids), np.nan)
    here, there = sources.features(cell), sources.features(other)
    if here is None or there is None or to not in there.ids:
        return found
    one = unit_vectors(there.matrix[[there.ids.index(to)]])[0]
    rows = {image_id: row for row, image_id in enumerate(here.ids)}
    known = [place for place, image_id in enumerate(image_ids) if image_id in rows]
    matrix = here.matrix[[rows[image_ids[place]] for place in known]]
    found[known] = unit_vectors(matrix) @ one
    return found
