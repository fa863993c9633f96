"""What `explain` reads of a run: the selected cell, prompt and image, and the metrics again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import Json, path_inside, sha256_file
from autolora_eval._text import join_names
from autolora_eval.analysis.cell_estimates import BoundMetric, References, take_images
from autolora_eval.analysis.metrics import Metric, run_metrics
from autolora_eval.analysis.scores import cell_judgements, records, scored_features
from autolora_eval.runs.feature_file import CellFeatures
from autolora_eval.runs.folder import Run
from autolora_eval.runs.images import ImageError, open_image
from autolora_eval.runs.manifest import rows_of_images
from autolora_eval.scoring.diversity import Floats, diversity, unit_vectors
from autolora_eval.scoring.diversity_metric import DiversityMetric, installed_metric

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
# The tables hold twelve digits, but features are float32.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class RunReader:
    """The parts of a finished run that explanations use, each file read at most once."""

    run: Run
    _features: dict[str, CellFeatures | None] = field(default_factory=dict)

    @cached_property
    def cells(self) -> list[Row]:
        """The rows of the result table."""
        return records(self.run.table)

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics of the result table, in its order."""
        return run_metrics(self.run.manifest)

    @property
    def scores(self) -> list[Metric]:
        """The judge's scores."""
        return [metric for metric in self.metrics if metric.kind == "score"]

    @cached_property
    def extra_metrics(self) -> dict[str, DiversityMetric]:
        """The additional diversity metrics by column, if their code is installed.

        A module in the run folder or beside it is not imported: it may be someone else's.
        """
        found = [installed_metric(name) for name in self.run.manifest.diversity_metrics]
        return {metric.name: metric for metric in found if metric is not None}

    @cached_property
    def references(self) -> References:
        """The reference image set of each cell, for metrics such as coverage."""
        known = self.run.diversity
        if "reference_cell" not in known:
            return References()
        compared = known.dropna(subset=["reference_cell"])
        cells = dict(zip(compared["cell"], compared["reference_cell"], strict=True))
        return References(cells, self.run.scores, self.features)

    def cell(self, cell: str) -> Row:
        """Return a cell's row of the result table."""
        return next(row for row in self.cells if row["cell"] == cell)

    def images(self, cell: str, prompt_index: int | None = None) -> pd.DataFrame:
        """Return a cell's rows of scores.parquet, those of one prompt if it is given."""
        rows = self.run.scores[self.run.scores["cell"] == cell]
        return rows if prompt_index is None else rows[rows["prompt_index"] == prompt_index]

    def prompts(self, cell: str) -> pd.DataFrame:
        """Return a cell's rows of diversity.csv, one per prompt."""
        return self.run.diversity[self.run.diversity["cell"] == cell]

    def image_metadata(self, cell: str, image_id: str) -> Json:
        """Return what was recorded when an image was made; empty if nothing was."""
        rows = rows_of_images(self.run.folder.metadata(cell))
        return next((row for row in rows if row["file_name"] == image_id), {})

    def features(self, cell: str) -> CellFeatures | None:
        """Return the features of a cell's images; None if the file does not exist."""
        folder = self.run.folder
        if cell not in self._features:
            is_there = folder.features(cell).is_file()
            own = scored_features(folder, cell, self.images(cell)) if is_there else None
            self._features[cell] = own
        return self._features[cell]

    def unit_vectors(self, cell: str, image_ids: Iterable[str]) -> dict[str, Floats]:
        """Return the normalized features, float64 [D], of those images that have any."""
        features = self.features(cell)
        if features is None:
            return {}
        own = take_images(features, image_ids)
        return dict(zip(own.ids, unit_vectors(own.matrix), strict=True))

    def replies(self, cell: str) -> dict[tuple[str, str | None], list[Json]]:
        """Return the judge's replies by (image id, SHA-256), in order of their repeats."""
        return cell_judgements(self.run.manifest, self.run.folder, cell)

    def file_state(self, file: str, sha256: object) -> str:
        """Return whether an image file is still the one that was scored."""
        try:
            path = path_inside(self.run.folder.path, file)
        except ValueError:
            return "outside the run folder"
        if not path.is_file():
            return "missing"
        if sha256_file(path) != sha256:
            return "changed since it was scored"
        try:
            image = open_image(path)
        except ImageError as error:
            return f"unchanged, but unusable: {error}"
        return f"unchanged, {image.width} × {image.height} pixels"


def select(
    reader: RunReader, cell: str, prompt: str | None, seed: int | None
) -> tuple[str, int | None]:
    """Return the id of the selected cell and the index of the selected prompt, if there is one."""
    id_ = _select_cell(reader, cell)
    images = reader.images(id_)
    prompts = {
        int(n): str(t) for n, t in zip(images["prompt_index"], images["prompt"], strict=True)
    }
    if prompt is None and seed is None:
        return id_, None
    if prompt is None and len(prompts) > 1:
        raise UsageError(
            f"Seed {seed} is ambiguous: the run has {len(prompts)} prompts. Also pass PROMPT."
        )
    index = next(iter(prompts)) if prompt is None else _select_prompt(prompts, prompt)
    seeds = images.loc[images["prompt_index"] == index, "seed"].tolist()
    if seed is not None and seed not in seeds:
        raise UsageError(
            f"The prompt has no image with seed {seed}. Its {len(seeds)} seeds are between "
            f"{min(seeds)} and {max(seeds)}."
        )
    return id_, index


def _select_cell(reader: RunReader, wanted: str) -> str:
    methods = {str(row["cell"]): str(row["method"]) for row in reader.cells}
    if wanted in methods:
        return wanted
    matching = [cell for cell, method in methods.items() if method == wanted]
    if len(matching) == 1:
        return matching[0]
    if matching:
        shown = join_names([f"'{cell}'" for cell in matching[:8]])
        raise UsageError(
            f"'{wanted}' matches {len(matching)} cells. Pass the id of one, such as {shown}."
        )
    known = dict.fromkeys([*methods, *methods.values()])
    raise UsageError(f"The run has no cell or method '{wanted}'.{did_you_mean(wanted, known)}")


def _select_prompt(prompts: dict[int, str], wanted: str) -> int:
    if wanted.isdecimal() and len(wanted) < 20:  # no number has thousands of digits
        if int(wanted) in prompts:
            return int(wanted)
        raise UsageError(
            f"The run has no prompt {wanted}: indices are {min(prompts)} to {max(prompts)}."
        )
    for index, text in prompts.items():
        if text == wanted:
            return index
    near = did_you_mean(wanted, prompts.values())
    raise UsageError(f"The run has no prompt '{wanted:.200}'.{near}")


def recompute(reader: RunReader, cell: str) -> dict[str, float]:
    """Recompute a cell's metrics, NaN where undefined, from its features and the judge's replies.

    A diversity is the mean of the metric over prompts, a score is the mean over scored images, and
    a product is diversity × mean score. Metrics whose code is not installed are left out.
    """
    found = {"diversity": _mean_diversity(reader, cell, lambda images: diversity)}
    for column, metric in reader.extra_metrics.items():
        found[column] = _mean_diversity(reader, cell, partial(reader.references.bound, metric))
    for score in reader.scores:
        found[score.column] = _mean_score(reader, cell, score.column)
        found[f"div_{score.column}"] = found["diversity"] * found[score.column]
    return found


def _mean_diversity(
    reader: RunReader, cell: str, metric_for: Callable[[pd.DataFrame], BoundMetric]
) -> float:
    features = reader.features(cell)
    if features is None:
        return math.nan
    prompts = reader.images(cell).groupby("prompt_index", sort=False)
    values = [metric_for(rows)(features.of(rows["image_id"])).value for _, rows in prompts]
    return _mean([value for value in values if value is not None])


def _mean_score(reader: RunReader, cell: str, column: str) -> float:
    """Return the mean over images of the mean over the repeats of each."""
    replies = reader.replies(cell)
    images = reader.images(cell)
    by_image = [
        [row["scores"][column] for row in replies.get(image, ()) if row["scores"] is not None]
        for image in zip(images["image_id"], images["sha256"], strict=True)
    ]
    return _mean([_mean(scores) for scores in by_image if scores])


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def is_close(table_value: float, recomputed: float) -> bool:
    """Return whether a value of the table and the recomputed one are equal, or both undefined."""
    tolerance = TOLERANCE * max(1.0, abs(table_value))
    return bool(np.isclose(recomputed, table_value, rtol=0.0, atol=tolerance, equal_nan=True))
