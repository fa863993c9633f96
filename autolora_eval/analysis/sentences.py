"""Metrics as columns of a table, and comparisons with the baseline as one sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from autolora_eval._text import (
    Sentences,
    as_finite_float,
    format_swept_value,
    point_label,
    sanitize,
)
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import CellRecord, DiversityMetricRecord, ScoreRecord


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


SIGNIFICANCE = 0.05
Row = Mapping[str, Any]
Ends = tuple[float | None, float | None]
Outcome = Literal["higher", "lower", "unclear", "no interval", "not compared"]
say = Sentences("comparisons")


@dataclass(frozen=True)
class Comparison:
    """A row of comparisons.csv.

    Attributes:
        difference: The method's value minus the baseline's.
        interval: The ends of the 95% interval.
        p: The p-value after Holm's correction.
        unit: What the differences are paired over: "prompt" or "seed".
        units_ahead: On how many units the method is higher, or lower if the difference is
            significantly below zero; None if a unit has no value of its own.
        ties: On how many units both are equal.
        units_needed: Number of units for 80% power at this effect size, rounded up.
    """

    metric: Metric
    method: str
    baseline: str
    difference: float | None
    interval: Ends
    p: float | None
    unit: str
    n_units: int
    units_ahead: int | None
    ties: int
    units_needed: int | None

    @property
    def metric_name(self) -> str:
        """The metric's name on one line."""
        return sanitize(self.metric.display_name)

    @property
    def outcome(self) -> Outcome:
        """The direction of the difference; "unclear" if its interval contains 0."""
        return _outcome(self.difference, *self.interval)

    @property
    def may_be_chance(self) -> bool:
        """True if the difference does not survive the correction for multiple comparisons."""
        return self.p is not None and self.p >= SIGNIFICANCE

    @property
    def is_significant(self) -> bool:
        """True if both the interval and the corrected p-value show a difference."""
        return self.outcome in ("higher", "lower") and not self.may_be_chance

    @property
    def size(self) -> float:
        """The absolute difference."""
        return abs(self.difference or 0.0)

    @property
    def size_interval(self) -> Ends:
        """The interval of the absolute difference, for an interval that does not contain 0."""
        low, high = sorted(abs(end or 0.0) for end in self.interval)
        return low, high


def read_comparison(row: Row, metric: Metric, method: str, baseline: str) -> Comparison:
    """Return a row of comparisons.csv as typed values."""
    difference, low, high = (as_finite_float(row.get(key)) for key in ("difference", "low", "high"))
    needed, unit = as_finite_float(row.get("units_for_power_80")), row.get("unit")
    return Comparison(
        metric=metric,
        method=sanitize(method),
        baseline=sanitize(baseline),
        difference=difference,
        interval=(low, high),
        p=as_finite_float(row.get("p_holm")),
        unit=sanitize(unit) if isinstance(unit, str) and unit else "unit",
        n_units=int(as_finite_float(row.get("n_units")) or 0),
        units_ahead=_units_ahead(row, metric, _outcome(difference, low, high)),
        ties=round(as_finite_float(row.get("n_ties")) or 0),
        units_needed=round_up(int(needed)) if needed else None,
    )


def _outcome(difference: float | None, low: float | None, high: float | None) -> Outcome:
    if difference is None:
        return "not compared"
    if low is None or high is None:
        return "no interval"
    if low <= 0.0 <= high:
        return "unclear"
    return "higher" if low > 0.0 else "lower"


def _units_ahead(row: Row, metric: Metric, outcome: Outcome) -> int | None:
    """Return on how many units the method is ahead.

    A unit has no value of its own for a product of cell means, and for diversity over seeds or
    groups of seeds, since a single image has no diversity.
    """
    rate, n, ties = (as_finite_float(row.get(key)) for key in ("win_rate", "n_units", "n_ties"))
    by_unit = metric.kind == "score" or (metric.kind != "product" and row.get("unit") == "prompt")
    if not by_unit or rate is None or not n or ties is None:
        return None
    # The table has the share of units where the method is higher, with ties counted as half.
    return round((1.0 - rate if outcome == "lower" else rate) * n - 0.5 * ties)


def round_up(n: int) -> int:
    """Round up to two significant digits: the effect size is itself an estimate."""
    step = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // step) * step


def with_sentences(
    comparisons: pd.DataFrame, cells: Sequence[CellRecord], metrics: Sequence[Metric]
) -> pd.DataFrame:
    """Return the comparisons with a column `sentence`."""
    by_id = {cell.id: cell for cell in cells}
    by_column = {metric.column: metric for metric in metrics}
    several_models = len({cell.model for cell in cells}) > 1
    sentences = []
    for row in comparisons.to_dict("records"):
        cell, base = by_id[row["cell"]], by_id[row["baseline_cell"]]
        shared = {name: value for name, value in cell.point.items() if name in base.point}
        models = [cell.model] if several_models else []
        where = sanitize(", ".join([*models, *([_at(shared)] if shared else [])]))
        named = {str(key): value for key, value in row.items()}
        metric = by_column[row["metric"]]
        found = read_comparison(named, metric, _name(cell, base), _name(base, cell))
        sentences.append(say.sentence(found, where))
    return comparisons.assign(sentence=pd.array(sentences, dtype="string"))


def _name(cell: CellRecord, other: CellRecord) -> str:
    """Return a method's name, with the swept parameters that only it takes."""
    own = {name: value for name, value in cell.point.items() if name not in other.point}
    return f"{cell.method} ({_at(own)})" if own else cell.method


def _at(point: Mapping[str, Any]) -> str:
    return point_label({name: format_swept_value(value) for name, value in point.items()})
