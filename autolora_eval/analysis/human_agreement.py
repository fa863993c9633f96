"""Agreement of the judge with people who rated the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from autolora_eval._errors import UsageError
from autolora_eval._files import sha256_file
from autolora_eval.analysis.estimates import (
    Indices,
    Interval,
    bootstrap_interval,
    unit_members,
)
from autolora_eval.analysis.human_ratings import IMAGE, RATER, read_ratings
from autolora_eval.analysis.reliability import ALL, ordinal_alpha, sampling_units
from autolora_eval.runs.columns import write_csv
from autolora_eval.runs.folder import Run
from autolora_eval.runs.records import AgreementRecord
from autolora_eval.scoring.diversity import Floats

# The values of the column `compared`: the scores that are compared with human ratings.
JUDGE, EXPECTED, RATERS = "judge", "expected", "raters"
COLUMNS = (
    *("score", "compared", "cell", "statistic", "value", "low", "high"),
    *("n_images", "unit", "n_units", "reason"),
)
# Columns of this module only. A rubric's score name starts with a letter, so it cannot clash.
PEOPLE, NTH = "_people", "_nth"


def spearman(x: Floats, y: Floats) -> float:
    """Return Spearman's ρ; NaN if either is constant."""
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def kendall(x: Floats, y: Floats) -> float:
    """Return Kendall's τ-b, which corrects for ties; NaN if either is constant."""
    return float(stats.kendalltau(x, y, variant="b", method="asymptotic").statistic)


def quadratic_kappa(x: Floats, y: Floats) -> float:
    """Return κ with quadratic weights (Cohen 1968).

    κ = 1 − mean_i (x_i − y_i)² / mean_ij (x_i − y_j)², where the mean over all pairs is
    var x + var y + (x̄ − ȳ)². For values that are not integers, this is Lin's concordance
    correlation coefficient (1989), which generalizes κ. It is NaN if all of x and y are equal.
    """
    chance = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    if chance == 0.0:
        return float("nan")
    return float(1.0 - ((x - y) ** 2).mean() / chance)


def bias(x: Floats, y: Floats) -> float:
    """Return the mean difference of the judge, x, from people, y."""
    return float((x - y).mean())


def exact_rate(x: Floats, y: Floats) -> float:
    """Return the share of equal values; NaN unless all values are integers."""
    if not (np.mod(x, 1.0) == 0.0).all() or not (np.mod(y, 1.0) == 0.0).all():
        return float("nan")
    return float((x == y).mean())


def within_one_rate(x: Floats, y: Floats) -> float:
    """Return the share of values at most 1 apart, with a tolerance of 1e-9 for rounding."""
    return float((np.abs(x - y) <= 1.0 + 1e-9).mean())


@dataclass(frozen=True)
class Statistic:
    """A statistic of the judge's and people's scores of the same images, float [n] each.

    Attributes:
        label: name in tables.
        head: short name for the head of a column.
        undefined: reason if the value is NaN although there are enough images.
        signed: whether to write the sign of positive values.
    """

    label: str
    head: str
    function: Callable[[Floats, Floats], float]
    min_images: int = 1
    undefined: str = ""
    signed: bool = False


_CONSTANT = "all scores of the judge, or all of people, are equal"
STATISTICS = {
    "spearman": Statistic("Spearman's ρ", "ρ", spearman, 3, _CONSTANT),
    "kendall": Statistic("Kendall's τ-b", "τ-b", kendall, 3, _CONSTANT),
    "kappa": Statistic("Weighted κ", "κ", quadratic_kappa, 3, _CONSTANT),
    "bias": Statistic("Judge − people", "Judge − people", bias, signed=True),
    "exact": Statistic("Equal", "Equal", exact_rate, undefined="defined for integers only"),
    "within_one": Statistic("Within 1", "Within 1", within_one_rate),
}
RATERS_ALPHA = "raters_alpha"
# By how much the expected score is closer to people than the judge's score, in mean distance.
NEARER = "nearer"


def statistic_label(row: Mapping[Any, Any]) -> tuple[str, bool]:
    """Return the label of a row of the table, and whether its value is written with its sign."""
    if row["statistic"] == RATERS_ALPHA:
        return "Raters' own α", False
    if row["statistic"] == NEARER:
        return "Closer than the score by", True
    statistic = STATISTICS[row["statistic"]]
    return statistic.label, statistic.signed


@dataclass(frozen=True)
class HumanAgreement:
    """The agreement of a run's judge with people.

    Attributes:
        table: the columns of `COLUMNS`, one row per score and statistic, each with its 95%
            interval over prompts, or over images if there is one prompt. `compared` is the
            `judge`, its `expected` score, or the `raters` among themselves. Undefined values are
            NaN with a reason.
        n_ratings: number of rows of the ratings file.
    """

    table: pd.DataFrame
    n_ratings: int
    n_images: int
    n_raters: int


def agreement(run: Run, ratings: str | Path) -> HumanAgreement:
    """Return how well the judge of a run agrees with people.

    The ratings that several people gave one image are averaged. Their own agreement,
    Krippendorff's α, shows how much agreement can be expected of the judge.
    """
    rubric = run.manifest.rubric
    if rubric is None:
        raise UsageError(f"'{run.folder.path}' has no judge's scores to compare with ratings.")
    rated = read_ratings(Path(ratings), run.scores, rubric.scores)
    rows = [
        row for column in rated.columns.drop([IMAGE, RATER]) for row in _rows(run, rated, column)
    ]
    return HumanAgreement(
        table=pd.DataFrame(rows, columns=list(COLUMNS)),
        n_ratings=len(rated),
        n_images=int(rated[IMAGE].nunique()),
        n_raters=int(rated[RATER].nunique()),
    )


def write_agreement(run: Run, ratings: Path) -> HumanAgreement:
    """Write agreement.csv of a run, and the file and the counts behind it into the manifest.

    Nothing is written if the run has no judge, or the ratings do not fit the run.
    """
    found = agreement(run, ratings)
    write_csv(run.folder.agreement, found.table, "%.12g")
    record = AgreementRecord(
        ratings_file=ratings.name,
        ratings_sha256=sha256_file(ratings),
        ratings=found.n_ratings,
        images=found.n_images,
        raters=found.n_raters,
        scores_sha256=sha256_file(run.folder.scores),
    )
    run.folder.update_manifest(agreement=record)
    return found


def _rows(run: Run, ratings: pd.DataFrame, column: str) -> Iterator[dict[str, Any]]:
    people = ratings.groupby(IMAGE)[column].mean().dropna()
    images = run.scores.iloc[people.index].assign(**{PEOPLE: people.to_numpy()})
    judge = {"score": column, "compared": JUDGE}
    judged = images.dropna(subset=[column])
    for name in STATISTICS:
        yield judge | _row(name, judged, column)
    if judged["cell"].nunique() > 1:
        # A judge that is kinder to one method biases the comparison.
        for cell, of_cell in judged.groupby("cell", sort=False):
            yield judge | _row("bias", of_cell, column) | {"cell": cell}
    if f"{column}_expected" in images:
        expected = images.dropna(subset=[f"{column}_expected"])
        for row in _expected_rows(expected, column):
            yield {"score": column, "compared": EXPECTED} | row
    if ratings[RATER].nunique() > 1:
        row = _raters_row(ratings.dropna(subset=[column]), column, run.scores)
        yield {"score": column, "compared": RATERS} | row


def _expected_rows(images: pd.DataFrame, column: str) -> Iterator[dict[str, Any]]:
    for name in STATISTICS:
        yield _row(name, images, f"{column}_expected")
    both = images.dropna(subset=[column])
    people = both[PEOPLE].to_numpy()
    distance = np.abs(both[column].to_numpy() - people)
    closer_by = distance - np.abs(both[f"{column}_expected"].to_numpy() - people)
    mean = Statistic("", "", lambda x, _: float(x.mean()))
    yield _estimate(NEARER, mean, closer_by, people, both)


def _row(name: str, images: pd.DataFrame, column: str) -> dict[str, Any]:
    x, y = (images[source].to_numpy(dtype=np.float64) for source in (column, PEOPLE))
    return _estimate(name, STATISTICS[name], x, y, images)


def _estimate(
    name: str, statistic: Statistic, x: Floats, y: Floats, images: pd.DataFrame
) -> dict[str, Any]:
    """Return a statistic with its interval, or the reason why it is undefined."""
    if len(x) < statistic.min_images:
        needed = f"needs at least {statistic.min_images} images with score and rating"
        return _table_row(name, float("nan"), Interval(reason=f"{needed}, has {len(x)}"), images)
    value = statistic.function(x, y)
    if np.isnan(value):
        return _table_row(name, value, Interval(reason=statistic.undefined), images)
    unit, units = sampling_units(images)
    members = unit_members(units)

    def of_resample(drawn: Indices) -> float:
        rows = np.concatenate([members[n] for n in drawn])
        return statistic.function(x[rows], y[rows])

    return _table_row(name, value, bootstrap_interval(of_resample, len(members), unit), images)


def _raters_row(ratings: pd.DataFrame, column: str, scores: pd.DataFrame) -> dict[str, Any]:
    # One row per rating of an image: α does not depend on which person gave which rating.
    nth = ratings.groupby(IMAGE).cumcount()
    matrix = ratings.assign(**{NTH: nth}).pivot(index=NTH, columns=IMAGE, values=column)
    matrix = matrix.loc[:, matrix.notna().sum() > 1]
    images = scores.iloc[matrix.columns]
    if images.empty:
        none = Interval(reason="no image was rated by two people")
        return _table_row(RATERS_ALPHA, float("nan"), none, images)
    return _table_row(RATERS_ALPHA, *ordinal_alpha(matrix.to_numpy(), images), images)


def _table_row(name: str, value: float, interval: Interval, images: pd.DataFrame) -> dict[str, Any]:
    unit, units = sampling_units(images)
    return {
        "cell": ALL,
        "statistic": name,
        "value": value,
        "low": interval.low,
        "high": interval.high,
        "n_images": len(images),
        "unit": unit,
        "n_units": len(set(units)),
        "reason": interval.reason,
    }
