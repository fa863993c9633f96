"""Estimates of a cell's metrics, and the reference sets that some diversity metrics need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from autolora_eval.analysis.estimates import (
    Estimate,
    mean_estimate,
    product_estimate,
    ratio_estimate,
)
from autolora_eval.runs.feature_file import CellFeatures, Matrix
from autolora_eval.scoring.diversity import Diversity, diversity, leave_one_out
from autolora_eval.scoring.diversity_metric import DiversityMetric

BoundMetric = Callable[[npt.ArrayLike], Diversity]


@dataclass(frozen=True)
class References:
    """Which images each cell's are compared with, by metrics that need a reference set.

    Attributes:
        cells: the reference's cell of each cell that has one.
        scores: one row an image, those of the references included.
        features: of a cell; None where there are none.
    """

    cells: Mapping[str, str] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    features: Callable[[str], CellFeatures | None] = lambda cell: None

    def bound(self, metric: DiversityMetric, images: pd.DataFrame) -> BoundMetric:
        """Return a metric of features alone; one that needs a reference set has got it."""
        if not metric.against_reference:
            return metric
        cell, prompt_index = str(images["cell"].iloc[0]), int(images["prompt_index"].iloc[0])
        if cell in self.cells:
            return partial(metric, reference=self._matrix(self.cells[cell], prompt_index))
        is_one = cell in self.cells.values()
        why = "it is the reference itself" if is_one else "no reference has its swept parameters"
        return lambda features: Diversity(None, None, len(np.asarray(features)), why)

    def _matrix(self, cell: str, prompt_index: int) -> Matrix:
        """Return the features of the reference's images of a prompt, [M, D]."""
        features = self.features(cell)
        if features is None:
            return np.zeros((0, 0), dtype=np.float32)
        return features.of(self._image_ids.get((cell, prompt_index), []))

    @cached_property
    def _image_ids(self) -> dict[Hashable, list[str]]:
        """The images of each prompt by the references."""
        rows = self.scores[self.scores["cell"].isin(set(self.cells.values()))]
        groups = rows.groupby(["cell", "prompt_index"])["image_id"]
        return {key: ids.tolist() for key, ids in groups}


# --------------------
# From scores and features to the estimates of every cell, and equation (8) of every prompt.


Estimates = dict[str, Estimate]
# A metric without a closed form is made anew for each unit left out: over more seeds than these
# they are left out in as many groups.
MAX_GROUPS = 64
SEED_GROUP = "seed group"


def prompt_diversities(
    scores: pd.DataFrame,
    features: Mapping[str, CellFeatures],
    extra: Iterable[DiversityMetric] = (),
    references: References | None = None,
) -> pd.DataFrame:
    """Return equation (8) of every cell and prompt, and the other diversity metrics.

    Returns:
        Columns cell, model, method, prompt_index, prompt, n, diversity, standard_error, reason;
        of each other metric `<name>`, and `<name>_reason` where it is undefined; and
        reference_cell, where any of them is taken against one.
    """
    others, known = list(extra), references or References()
    against = any(metric.against_reference for metric in others)
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
                **_measured(images, features[str(cell)], others, known),
                **({"reference_cell": known.cells.get(str(cell))} if against else {}),
            }
        )
    frame = pd.DataFrame(rows)
    types = {"diversity": "float64", "standard_error": "float64", "reason": "string"}
    for metric in others:
        types |= {metric.name: "float64", f"{metric.name}_reason": "string"}
    return frame.astype(types)


def _measured(
    images: pd.DataFrame,
    features: CellFeatures,
    extra: Sequence[DiversityMetric],
    references: References,
) -> dict[str, float | str | None]:
    found = {
        metric.name: diversity_of(images, features, references.bound(metric, images))
        for metric in extra
    }
    values: dict[str, float | str | None] = {}
    for name, one in found.items():
        values |= {name: one.value, f"{name}_reason": one.reason}
    return values


def diversity_of(
    images: pd.DataFrame,
    features: CellFeatures,
    metric: Callable[[npt.NDArray[np.float32]], Diversity] = diversity,
) -> Diversity:
    """Return a metric of some images of a cell, those without features left out."""
    return metric(features.of(images["image_id"]))


def cell_estimates(
    images: pd.DataFrame,
    prompts: pd.DataFrame,
    features: CellFeatures,
    score_columns: Sequence[str],
    extra: Sequence[DiversityMetric] = (),
    references: References | None = None,
) -> Estimates:
    """Return a cell's diversity, mean scores, products and other diversity metrics, by column."""
    known = references or References()
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
    for metric in extra:
        estimates[metric.name] = (
            mean_estimate(prompts[metric.name].to_numpy(), units)
            if len(prompts) > 1
            else _metric_over_seeds(images, features, known.bound(metric, images))
        )
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
    without = leave_one_out(features.matrix[rows])
    return Estimate(found.value, without, names, scale="logit")


def _metric_over_seeds(
    images: pd.DataFrame, features: CellFeatures, metric: BoundMetric
) -> Estimate:
    """Return a metric of one prompt's images and what it is without each seed, or group of seeds.

    Above `MAX_GROUPS` seeds the jackknife leaves out one of as many groups, each named by its
    first seed. The group of a seed follows from its place among the planned seeds, so that cells
    have the same groups whatever images they lack.
    """
    planned = list(dict.fromkeys(images["seed"].tolist()))
    n_groups = min(len(planned), MAX_GROUPS)
    group_of = {seed: planned[place % n_groups] for place, seed in enumerate(planned)}
    seeds = dict(zip(images["image_id"], images["seed"], strict=True))
    rows = [index for index, id_ in enumerate(features.ids) if id_ in seeds]
    matrix = features.matrix[np.asarray(rows, dtype=np.intp)]
    groups = [group_of[seeds[features.ids[index]]] for index in rows]
    units = tuple(dict.fromkeys(groups))
    value = metric(matrix).value
    without = [
        metric(matrix[[group != unit for group in groups]]).value if value is not None else None
        for unit in units
    ]
    return Estimate(
        float("nan") if value is None else value,
        np.asarray([np.nan if one is None else one for one in without], dtype=np.float64),
        units,
        unit="" if n_groups == len(planned) else SEED_GROUP,
    )
