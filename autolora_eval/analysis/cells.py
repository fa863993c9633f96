"""From scores and features to the estimates of every cell, and equation (8) of every prompt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from autolora_eval.analysis.estimates import (
    Estimate,
    mean_estimate,
    product_estimate,
    ratio_estimate,
)
from autolora_eval.scoring.diversity import Diversity, diversity, leave_one_out, unit_vectors
from autolora_eval.scoring.feature_file import CellFeatures

Estimates = dict[str, Estimate]


def prompt_diversities(scores: pd.DataFrame, features: Mapping[str, CellFeatures]) -> pd.DataFrame:
    """Return equation (8) of every cell and prompt.

    Args:
        scores: one row an image.
        features: of each cell.

    Returns:
        Columns cell, model, method, prompt_index, prompt, n, diversity, standard_error, reason.
    """
    rows = []
    for (cell, prompt_index), images in scores.groupby(["cell", "prompt_index"], sort=False):
        found = diversity_of(images, features[str(cell)])
        first = images.iloc[0]
        rows.append(
            {
                "cell": cell,
                "model": first["model"],
                "method": first["method"],
                "prompt_index": prompt_index,
                "prompt": first["prompt"],
                "n": found.n,
                "diversity": found.value,
                "standard_error": found.standard_error,
                "reason": found.reason,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({"diversity": "float64", "standard_error": "float64", "reason": "string"})


def diversity_of(images: pd.DataFrame, features: CellFeatures) -> Diversity:
    """Return equation (8) of some of a cell's images, those without features left out."""
    wanted = set(images["image_id"])
    rows = [index for index, id_ in enumerate(features.ids) if id_ in wanted]
    return diversity(features.matrix[np.asarray(rows, dtype=np.intp)])


def cell_estimates(
    images: pd.DataFrame,
    prompts: pd.DataFrame,
    features: CellFeatures,
    score_columns: Sequence[str],
) -> Estimates:
    """Return a cell's diversity, mean scores and products, by column of the result table.

    Args:
        images: the cell's rows of the scores.
        prompts: the cell's rows of the prompts' diversities.
        features: the cell's features.
        score_columns: the judge's scores.
    """
    if len(prompts) > 1:
        units: list[Hashable] = prompts["prompt"].tolist()
        spread = mean_estimate(prompts["diversity"].to_numpy(), units)
        groups = images.groupby("prompt_index", sort=False)
        sums, counts = groups[list(score_columns)].sum(), groups[list(score_columns)].count()
    else:
        units = images["seed"].tolist()
        spread = _diversity_over_seeds(images, features)
        sums, counts = images[list(score_columns)].fillna(0.0), images[list(score_columns)].notna()
    estimates = {"diversity": spread}
    for column in score_columns:
        score = ratio_estimate(sums[column].to_numpy(), counts[column].to_numpy(), units)
        estimates[column] = score
        estimates[f"div_{column}"] = product_estimate(spread, score)
    return estimates


def prompt_mean_products(
    images: pd.DataFrame, prompts: pd.DataFrame, score_columns: Sequence[str]
) -> dict[str, float]:
    """Return the mean over prompts of Diversity × mean X of each prompt, NaN for one prompt."""
    spread = prompts.set_index("prompt_index")["diversity"]
    means = images.groupby("prompt_index")[list(score_columns)].mean()
    several = len(prompts) > 1
    return {
        f"div_{column}_prompt_mean": float((spread * means[column]).mean()) if several else np.nan
        for column in score_columns
    }


def _diversity_over_seeds(images: pd.DataFrame, features: CellFeatures) -> Estimate:
    """Return equation (8) of one prompt's images with its leave-one-out values over seeds."""
    seeds = dict(zip(images["image_id"], images["seed"], strict=True))
    rows = [index for index, id_ in enumerate(features.ids) if id_ in seeds]
    names = tuple(seeds[features.ids[index]] for index in rows)
    found = diversity_of(images, features)
    if found.value is None:
        return Estimate(float("nan"), np.full(len(rows), np.nan), names)
    if len(rows) < 3:
        return Estimate(found.value, np.full(len(rows), np.nan), names)
    without = leave_one_out(unit_vectors(features.matrix[rows]))
    return Estimate(found.value, without, names, scale="logit")
