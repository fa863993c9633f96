"""The metrics of a run, as columns of its tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import DiversityMetricRecord, ScoreRecord


@dataclass(frozen=True)
class Metric:
    """A column of the result table.

    Attributes:
        display_name: in figures and reports.
        label: short form for table heads.
        kind: equation (8), a judged score, the product of the two, or another diversity metric,
            which stands beside equation (8) and is in no product.
    """

    column: str
    display_name: str
    label: str
    kind: Literal["diversity", "score", "product", "extra"]
    higher_is_better: bool
    low: float
    high: float
    source: str

    @property
    def arrow(self) -> str:
        """The direction as an arrow for table heads."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def has_product(self) -> bool:
        """True for a score with a Div-X.

        If lower scores are better, or scores can be negative, a greater product may mean more
        diversity or worse images.
        """
        return self.kind == "score" and self.higher_is_better and self.low >= 0.0


DIVERSITY = Metric(
    column="diversity",
    display_name="Diversity",
    label="Div",
    kind="diversity",
    higher_is_better=True,
    low=0.0,
    high=2.0,
    source="AutoLoRA paper, equation (8)",
)


def metrics_of(
    scores: Mapping[str, ScoreRecord], extra: Iterable[DiversityMetricRecord] = ()
) -> list[Metric]:
    """Return the metrics of a run: diversity, each score, each product, the other diversities."""
    judged = [_score(column, score) for column, score in scores.items()]
    products = [_product(score) for score in judged if score.has_product]
    return [DIVERSITY, *judged, *products, *map(_extra, extra)]


def run_metrics(manifest: RunManifest) -> list[Metric]:
    """Return the metrics of a run, in the order of its tables."""
    scores = {} if manifest.rubric is None else manifest.rubric.scores
    return metrics_of(scores, manifest.diversity_metrics.values())


def _score(column: str, score: ScoreRecord) -> Metric:
    return Metric(
        column=column,
        display_name=score.display_name,
        label=column.upper(),
        kind="score",
        higher_is_better=score.higher_is_better,
        low=score.min,
        high=score.max,
        source="the judge's rubric",
    )


def _product(score: Metric) -> Metric:
    return Metric(
        column=f"div_{score.column}",
        display_name=f"Diversity × {score.display_name}",
        label=f"Div-{score.label}",
        kind="product",
        higher_is_better=True,
        low=0.0,
        high=DIVERSITY.high * score.high,
        source="AutoLoRA paper, section 4: Div-X = Diversity × mean X, at the level of the cell",
    )


def _extra(metric: DiversityMetricRecord) -> Metric:
    return Metric(
        column=metric.name,
        display_name=metric.display_name,
        label=metric.label,
        kind="extra",
        higher_is_better=metric.higher_is_better,
        low=-math.inf if metric.low is None else metric.low,
        high=math.inf if metric.high is None else metric.high,
        source=metric.source,
    )
