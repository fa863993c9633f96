"""What is measured: one declaration a measure feeds tables, figures, comparisons and report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autolora_eval.scoring.rubric import Score


@dataclass(frozen=True)
class Measure:
    """A column of the result table.

    Attributes:
        column: its name.
        display_name: in figures and reports.
        label: short form for table heads.
        kind: equation (8), a judged score, the product of the two, or another measure of diversity,
            which stands beside equation (8) and is in no product.
        higher_is_better: direction.
        low: least possible value.
        high: greatest possible value.
        source: where it is defined.
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


DIVERSITY = Measure(
    column="diversity",
    display_name="Diversity",
    label="Div",
    kind="diversity",
    higher_is_better=True,
    low=0.0,
    high=2.0,
    source="AutoLoRA paper, equation (8)",
)


def measures(scores: Mapping[str, Score], extra: Iterable[Mapping[str, Any]] = ()) -> list[Measure]:
    """Return the measures of a run: diversity, each judged score, each product, and the extra ones.

    Args:
        scores: the rubric's scores by column; empty without a judge.
        extra: the measures of diversity that the benchmark asks for, as `DiversityMetric.stated`
            has them, and as the manifest records them.
    """
    judged = [_score(column, score) for column, score in scores.items()]
    return [DIVERSITY, *judged, *(_product(score) for score in judged), *map(_extra, extra)]


def _score(column: str, score: Score) -> Measure:
    return Measure(
        column=column,
        display_name=score.display_name,
        label=column.upper(),
        kind="score",
        higher_is_better=score.higher_is_better,
        low=score.min,
        high=score.max,
        source="the judge's rubric",
    )


def _product(score: Measure) -> Measure:
    return Measure(
        column=f"div_{score.column}",
        display_name=f"Diversity × {score.display_name}",
        label=f"Div-{score.label}",
        kind="product",
        higher_is_better=score.higher_is_better,
        low=min(0.0, DIVERSITY.high * score.low),
        high=DIVERSITY.high * score.high,
        source="AutoLoRA paper, section 4: Div-X = Diversity × mean X, at the level of the cell",
    )


def _extra(stated: Mapping[str, Any]) -> Measure:
    low, high = stated.get("low"), stated.get("high")
    return Measure(
        column=str(stated["name"]),
        display_name=str(stated["display_name"]),
        label=str(stated["label"]),
        kind="extra",
        higher_is_better=bool(stated["higher_is_better"]),
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        source=str(stated["source"]),
    )
