"""What is measured: one declaration a measure feeds tables, figures, comparisons and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autolora_eval.rubric import Score


@dataclass(frozen=True)
class Measure:
    """A column of the result table.

    Attributes:
        column: its name.
        display_name: in figures and reports.
        label: short form for table heads.
        kind: equation (8), a judged score, or the product of the two.
        higher_is_better: direction.
        low: least possible value.
        high: greatest possible value.
        source: where it is defined.
    """

    column: str
    display_name: str
    label: str
    kind: Literal["diversity", "score", "product"]
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


def measures(scores: Mapping[str, Score]) -> list[Measure]:
    """Return the measures of a run: diversity, each judged score, and each product.

    Args:
        scores: the rubric's scores by column; empty without a judge.
    """
    judged = [_score(column, score) for column, score in scores.items()]
    return [DIVERSITY, *judged, *(_product(score) for score in judged)]


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
