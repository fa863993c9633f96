"""Estimates of a cell's metrics, and the reference sets that some diversity metrics need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

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
    """The reference sets of cells, for metrics that need one.

    Attributes:
        cells: the cell of the reference set, by cell.
        scores: one row per image, with those of the reference sets.
        features: returns the features of a cell; None if there are none.
    """

    cells: Mapping[str, str] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    features: Callable[[str], CellFeatures | None] = lambda cell: None

    def bound(self, metric: DiversityMetric, images: pd.DataFrame) -> BoundMetric:
        """Return a metric as a function of a cell's features alone."""
        if not metric.against_reference:
            return metric
        cell, prompt_index = str(images["cell"].iloc[0]), int(images["prompt_index"].iloc[0])
        if cell in self.cells:
            return partial(metric, reference=self._matrix(self.cells[cell], prompt_index))
        is_one = cell in self.cells.values()
        why = "it is the reference itself" if is_one else "no reference has its swept parameters"
        return lambda features: Diversity(None, None, len(np.asarray(features)), why)

    def _matrix(self, cell: str, prompt_index: int) -> Matrix:
        features = self.features(cell)
        if features is None:
            return np.zeros((0, 0), dtype=np.float32)
        return features.of(self._image_ids.get((cell, prompt_index), []))

    @cached_property
    def _image_ids(self) -> dict[Hashable, list[str]]:
        rows = self.scores[self.scores["cell"].isin(set(self.cells.values()))]
        groups = rows.groupby(["cell", "prompt_index"])["image_id"]
        return {key: ids.tolist() for key, ids in groups}


# --------------------
# From scores and features to the estimates of every cell, and equation (8) of every prompt.


Estimates = dict[str, Estimate]
# A metric without a closed form is recomputed for each unit left out. With more seeds than this,
# the jackknife leaves out groups of seeds, as many as this.
MAX_GROUPS = 64
SEED_GROUP = "seed group"


def prompt_diversities(
    images: pd.DataFrame,
    features: CellFeatures,
    extra: Iterable[DiversityMetric] = (),
    references: References | None = None,
) -> pd.DataFrame:
    """Return equation (8) of a cell's prompts, and the other diversity metrics.

    Returns:
        Columns cell, model, method, prompt_index, prompt, n, diversity, standard_error, reason;
        of each other metric `<name>`, and `<name>_reason` where it is undefined; and
        reference_cell, where any of them is taken against one.
    """
    others, known = list(extra), references or References()
    against = any(metric.against_reference for metric in others)
    rows = []
    needed = images[["cell", "prompt_index", "model", "method", "prompt", "image_id"]]
    for prompt_index, alike in needed.groupby("prompt_index", sort=False):
        first, matrix = alike.iloc[0], features.of(alike["image_id"])
        found = diversity(matrix)
        row: dict[str, Any] = {
            "cell": first["cell"],
            "model": first["model"],
            "method": first["method"],
            "prompt_index": prompt_index,
            "prompt": first["prompt"],
            "n": found.n,
            "diversity": found.value,
            "standard_error": found.standard_error,
            "reason": found.reason,
        }
        for metric in others:
            other = known.bound(metric, alike)(matrix)
            row |= {metric.name: other.value, f"{metric.name}_reason": other.reason}
        rows.append(row | ({"reference_cell": known.cells.get(first["cell"])} if against else {}))
    frame = pd.DataFrame(rows)
    types = {"diversity": "float64", "standard_error": "float64", "reason": "string"}
    for metric in others:
        types |= {metric.name: "float64", f"{metric.name}_reason": "string"}
    return frame.astype(types)


def take_images(features: CellFeatures, ids: Iterable[str]) -> CellFeatures:
    """Return the features of some images of a cell, in the order of the file."""
    wanted = set(ids)
    return features.take([row for row, id_ in enumerate(features.ids) if id_ in wanted])


def cell_estimates(
    images: pd.DataFrame,
    prompts: pd.DataFrame,
    features: CellFeatures,
    score_columns: Sequence[str],
    extra: Sequence[DiversityMetric] = (),
    references: References | None = None,
) -> Estimates:
    """Return a cell's diversity, mean scores, products and other diversity metrics, by column."""
    if len(prompts) > 1:
        units = prompts["prompt"].tolist()
        others = _others_over_prompts(prompts, [metric.name for metric in extra])
        return _over_prompts(images, prompts, score_columns, units) | others
    known, scores = references or References(), images[list(score_columns)]
    spread = _diversity_over_seeds(images, features)
    others = {
        metric.name: _metric_over_seeds(images, features, known.bound(metric, images))
        for metric in extra
    }
    seeds = images["seed"].tolist()
    return _with_products(spread, scores.fillna(0.0), scores.notna(), seeds) | others


def _over_prompts(
    images: pd.DataFrame,
    prompts: pd.DataFrame,
    score_columns: Sequence[str],
    units: Sequence[Hashable],
) -> Estimates:
    """Return a cell's diversity, mean scores and products, with its prompts as the units."""
    groups = images.groupby("prompt_index")[list(score_columns)]
    sums, counts = (f.reindex(prompts["prompt_index"]) for f in (groups.sum(), groups.count()))
    return _with_products(mean_estimate(prompts["diversity"], units), sums, counts, units)


def _others_over_prompts(prompts: pd.DataFrame, names: Iterable[str]) -> Estimates:
    """Return the other diversity metrics of a cell, with its prompts as the units.

    Many of them grow with the number of images: a prompt is the same unit in two cells only if
    both have equally many. Equation (8) and scores do not.
    """
    units = list(zip(prompts["prompt_index"], prompts["n"], strict=True))
    return {name: mean_estimate(prompts[name], units) for name in names}


def _with_products(
    spread: Estimate, sums: pd.DataFrame, counts: pd.DataFrame, units: Sequence[Hashable]
) -> Estimates:
    estimates = {"diversity": spread}
    for column in map(str, sums):
        score = ratio_estimate(sums[column], counts[column], units)
        estimates |= {column: score, f"div_{column}": product_estimate(spread, score)}
    return estimates


def unit_estimates(
    scores: pd.DataFrame, diversity: pd.DataFrame, columns: Sequence[str], extra: Sequence[str] = ()
) -> dict[str, Estimates]:
    """Return the estimates of each cell that follow from the tables of a run, by cell.

    Of a single prompt these are the scores alone, since one image has no diversity.
    """
    found: dict[str, Estimates] = {}
    if diversity["prompt_index"].nunique() < 2:
        for cell, images in scores.groupby("cell", sort=False):
            seeds = images["seed"].tolist()
            found[str(cell)] = {column: mean_estimate(images[column], seeds) for column in columns}
        return found
    of_cell = scores.groupby("cell").get_group
    for cell, prompts in diversity.groupby("cell", sort=False):
        units: list[Hashable] = prompts["prompt_index"].tolist()
        others = _others_over_prompts(prompts, [name for name in extra if name in prompts])
        found[str(cell)] = _over_prompts(of_cell(cell), prompts, columns, units) | others
    return found


def prompt_mean_products(
    images: pd.DataFrame, prompts: pd.DataFrame, score_columns: Sequence[str]
) -> dict[str, float]:
    """Return the mean over prompts of each prompt's Diversity × mean X; NaN for one prompt."""
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
    own = take_images(features, seeds)
    names = tuple(seeds[id_] for id_ in own.ids)
    value = diversity(own.matrix).value
    if value is None or len(names) < 3:
        unknown = np.full(len(names), np.nan)
        return Estimate(float("nan") if value is None else value, unknown, names)
    return Estimate(value, leave_one_out(own.matrix), names, scale="logit")


def _metric_over_seeds(
    images: pd.DataFrame, features: CellFeatures, metric: BoundMetric
) -> Estimate:
    """Return a metric of one prompt's images and what it is without each seed, or group of seeds.

    Above `MAX_GROUPS` seeds the jackknife leaves out one of as many groups, each named by its
    first seed. The group of a seed follows from its place among the planned seeds, so that cells
    have the same groups whatever images they lack. As over prompts, the number of images is a part
    of the unit.
    """
    planned = list(dict.fromkeys(images["seed"].tolist()))
    n_groups = min(len(planned), MAX_GROUPS)
    group_of = {seed: planned[place % n_groups] for place, seed in enumerate(planned)}
    seeds = dict(zip(images["image_id"], images["seed"], strict=True))
    own = take_images(features, seeds)
    groups = [group_of[seeds[id_]] for id_ in own.ids]
    units = tuple(dict.fromkeys(groups))
    value = metric(own.matrix).value
    without = [
        None if value is None else metric(own.matrix[[group != unit for group in groups]]).value
        for unit in units
    ]
    return Estimate(
        float("nan") if value is None else value,
        np.asarray(without, dtype=np.float64),  # None becomes NaN
        tuple((unit, len(groups)) for unit in units),
        unit="" if n_groups == len(planned) else SEED_GROUP,
    )
