"""How far the judge agrees with people who rated the same images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from scipy import stats

from autolora_eval._errors import UsageError
from autolora_eval._files import Json, sha256_file, write_text
from autolora_eval.analysis.estimates import (
    Indices,
    Interval,
    bootstrap_interval,
    no_interval,
    unit_members,
)
from autolora_eval.analysis.human_ratings import IMAGE, RATER, read_ratings
from autolora_eval.analysis.reliability import (
    ALL,
    alpha_interval,
    krippendorff_alpha,
    sampling_units,
)
from autolora_eval.runs.folder import Run, RunFolder, open_run
from autolora_eval.scoring.diversity import Floats
from autolora_eval.scoring.rubric import Score

# No score can be called so: a score's name begins with a letter.
PEOPLE, NTH = "_people", "_nth"
VERDICT, EXPECTED, RATERS = "verdict", "expected", "raters"
COLUMNS = (
    *("score", "compared", "cell", "statistic", "value", "low", "high"),
    *("n_images", "unit", "n_units", "reason"),
)
Pairwise = Callable[[Floats, Floats], float]


def spearman(x: Floats, y: Floats) -> float:
    """Return Spearman's ρ, the correlation of mid-ranks, by scipy; NaN if either is constant."""
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def kendall(x: Floats, y: Floats) -> float:
    """Return Kendall's τ-b, which corrects for ties, by scipy; NaN if either is constant."""
    return float(stats.kendalltau(x, y, variant="b", method="asymptotic").statistic)


def quadratic_kappa(x: Floats, y: Floats) -> float:
    """Return κ with quadratic weights (Cohen 1968).

    κ = 1 − mean_i (x_i − y_i)² / mean_ij (x_i − y_j)², where the mean over all pairs is
    var x + var y + (x̄ − ȳ)². Of values that are not whole numbers it is Lin's concordance
    correlation coefficient (1989), which κ is a case of.

    Args:
        x: float [n].
        y: float [n].

    Returns:
        In [−1, 1]; NaN where all of x and y are one value.
    """
    chance = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    if chance == 0.0:
        return float("nan")
    return float(1.0 - ((x - y) ** 2).mean() / chance)


def bias(x: Floats, y: Floats) -> float:
    """Return the mean difference of the judge, x, from people, y, both float [n]."""
    return float((x - y).mean())


def exact_rate(x: Floats, y: Floats) -> float:
    """Return the share of equal values; NaN unless all are whole numbers, both float [n]."""
    if not (np.mod(x, 1.0) == 0.0).all() or not (np.mod(y, 1.0) == 0.0).all():
        return float("nan")
    return float((x == y).mean())


def within_one_rate(x: Floats, y: Floats) -> float:
    """Return the share of values at most 1 apart, both float [n]; 1e-9 is left to rounding."""
    return float((np.abs(x - y) <= 1.0 + 1e-9).mean())


@dataclass(frozen=True)
class Statistic:
    """A way to compare the judge with people.

    Attributes:
        label: in tables.
        head: at the head of a narrow column.
        function: of the judge's and people's values of the same images.
        least: images that it takes.
        undefined: why it has no value although it has the images.
        signed: of either sign, and told with it.
    """

    label: str
    head: str
    function: Pairwise
    least: int = 1
    undefined: str = ""
    signed: bool = False


_CONSTANT = "constant: of the judge's values or people's, all are the same"
STATISTICS = {
    "spearman": Statistic("Spearman's ρ", "ρ", spearman, 3, _CONSTANT),
    "kendall": Statistic("Kendall's τ-b", "τ-b", kendall, 3, _CONSTANT),
    "kappa": Statistic("Weighted κ", "κ", quadratic_kappa, 3, _CONSTANT),
    "bias": Statistic("Judge − people", "Judge − people", bias, signed=True),
    "exact": Statistic("Equal", "Equal", exact_rate, undefined="told of whole numbers only"),
    "within_one": Statistic("Within 1", "Within 1", within_one_rate),
}
RATERS_ALPHA = "raters_alpha"
# How much nearer to people the expected score is than the verdict: the fall of the mean distance.
NEARER = "nearer"


def described(row: Mapping[Any, Any]) -> tuple[str, bool]:
    """Return what a row tells, for tables, and whether its value is told with its sign."""
    if row["statistic"] == RATERS_ALPHA:
        return "Raters' own α", False
    if row["statistic"] == NEARER:
        return "Nearer than verdict by", True
    statistic = STATISTICS[row["statistic"]]
    where = "" if row["cell"] == ALL else f" in {row['cell']}"
    return f"{statistic.label}{where}", statistic.signed


def agreement(run: Run, ratings: str | Path) -> pd.DataFrame:
    """Return how far the judge of a run agrees with people.

    Several people's ratings of an image are averaged; how far they agree among themselves is told
    as Krippendorff's α, by which the judge's agreement with them is to be read.

    Args:
        run: a finished run with judge.
        ratings: CSV of ratings; see `human_ratings.read_ratings`.

    Returns:
        The columns of `COLUMNS`, one row a score and statistic, each with its 95 % interval over
        prompts, or over images where there is one prompt; `compared` is the judge's `verdict`,
        its `expected` score, or the `raters` among themselves. Undefined is NaN with a reason.

    Raises:
        UsageError: the run has no judge, or the ratings do not fit it.
    """
    return _compare(run, read_ratings(Path(ratings), run.scores, judged_scores(run)))


def write_agreement(path: Path, ratings: Path) -> tuple[RunFolder, pd.DataFrame, Json]:
    """Write agreement.csv of a run, and what it rests on into its manifest.

    Args:
        path: the run folder.
        ratings: CSV of ratings.

    Returns:
        The folder, the table, and the counts.

    Raises:
        UsageError: it is no finished run with a judge, or the ratings do not fit it.
    """
    from autolora_eval.runs.manifest import update_manifest

    run = open_run(path)
    rated = read_ratings(ratings, run.scores, judged_scores(run))
    table = _compare(run, rated)
    counts: Json = {
        "ratings_file": ratings.name,
        "ratings_sha256": sha256_file(ratings),
        "ratings": len(rated),
        "images": int(rated[IMAGE].nunique()),
        "raters": int(rated[RATER].nunique()),
        "scores_sha256": sha256_file(run.folder.scores),
    }
    text = table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    write_text(run.folder.agreement, text)
    update_manifest(run.folder, agreement=counts)
    return run.folder, table, counts


def judged_scores(run: Run) -> dict[str, Score]:
    """Return the scores of a run's judge, by column.

    Raises:
        UsageError: it has none.
    """
    rubric = run.manifest.get("rubric")
    stated = rubric.get("scores") if isinstance(rubric, dict) else None
    try:
        scores = {
            column: Score.model_validate(score)
            for column, score in (stated or {}).items()
            if column in run.scores
        }
    except ValidationError as error:
        raise run.folder.refused() from error
    if not scores:
        raise UsageError(f"'{run.folder.path}' has no judge's scores that people could agree with.")
    return scores


def _compare(run: Run, ratings: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for column in ratings.columns.drop([IMAGE, RATER]):
        people = ratings.groupby(IMAGE)[column].mean().dropna()
        images = run.scores.iloc[people.index].assign(**{PEOPLE: people.to_numpy()})
        rows += (
            {"score": column, "compared": VERDICT, **row} for row in _statistics(images, column)
        )
        if f"{column}_expected" in images:
            rows += (
                {"score": column, "compared": EXPECTED, **row}
                for row in _of_expected(images, column)
            )
        if ratings[RATER].nunique() > 1:
            row = _raters(ratings.dropna(subset=[column]), column, run.scores)
            rows.append({"score": column, "compared": RATERS, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _statistics(images: pd.DataFrame, column: str) -> Iterator[dict[str, Any]]:
    """Yield every statistic over all images, and the bias in each cell where there are several."""
    both = images.dropna(subset=[column])
    for name in STATISTICS:
        yield _row(name, both, column)
    if both["cell"].nunique() > 1:
        for cell, of_cell in both.groupby("cell", sort=False):
            yield _row("bias", of_cell, column) | {"cell": cell}


def _of_expected(images: pd.DataFrame, column: str) -> Iterator[dict[str, Any]]:
    """Yield every statistic of the expected score, and how much nearer to people it is."""
    expected = f"{column}_expected"
    both = images.dropna(subset=[expected])
    for name in STATISTICS:
        yield _row(name, both, expected)
    both = both.dropna(subset=[column])
    people = both[PEOPLE].to_numpy()
    fall = np.abs(both[column].to_numpy() - people) - np.abs(both[expected].to_numpy() - people)
    mean = Statistic("", "", lambda x, _: float(x.mean()))
    yield _measured(NEARER, mean, fall, people, both)


def _row(name: str, images: pd.DataFrame, column: str) -> dict[str, Any]:
    x, y = (images[of].to_numpy(dtype=np.float64) for of in (column, PEOPLE))
    return _measured(name, STATISTICS[name], x, y, images)


def _measured(
    name: str, statistic: Statistic, x: Floats, y: Floats, images: pd.DataFrame
) -> dict[str, Any]:
    unit, units = sampling_units(images)
    value, reason = float("nan"), None
    if len(x) < statistic.least:
        least = f"{statistic.least} images" if statistic.least > 1 else "an image"
        reason = f"needs at least {least} with score and rating, has {len(x)}"
    else:
        value = statistic.function(x, y)
        reason = statistic.undefined if np.isnan(value) else None
    within = no_interval("") if reason else _interval(statistic.function, x, y, unit, units)
    return _told(name, value, within, reason, images, (unit, units))


def _interval(
    function: Pairwise, x: Floats, y: Floats, unit: str, units: Sequence[Hashable]
) -> Interval:
    members = unit_members(units)

    def of_drawn(drawn: Indices) -> float:
        rows = np.concatenate([members[n] for n in drawn])
        return function(x[rows], y[rows])

    return bootstrap_interval(of_drawn, len(members), unit)


def _raters(ratings: pd.DataFrame, column: str, scores: pd.DataFrame) -> dict[str, Any]:
    """Return how far people agree among themselves: α does not ask who of them gave a rating."""
    nth = ratings.groupby(IMAGE).cumcount()
    matrix = ratings.assign(**{NTH: nth}).pivot(index=NTH, columns=IMAGE, values=column)
    matrix = matrix.loc[:, matrix.notna().sum() > 1]
    images = scores.iloc[matrix.columns]
    unit, units = sampling_units(images)
    within = no_interval("no image was rated by two people")
    if images.empty:
        return _told(RATERS_ALPHA, float("nan"), within, None, images, (unit, units))
    alpha = krippendorff_alpha(matrix.to_numpy())
    if alpha.reason is None:
        within = alpha_interval(matrix.to_numpy(), units, unit)
    return _told(RATERS_ALPHA, alpha.value, within, alpha.reason, images, (unit, units))


def _told(
    name: str,
    value: float,
    within: Interval,
    reason: str | None,
    images: pd.DataFrame,
    of: tuple[str, Sequence[Hashable]],
) -> dict[str, Any]:
    return {
        "cell": ALL,
        "statistic": name,
        "value": value,
        "low": within.low,
        "high": within.high,
        "n_images": len(images),
        "unit": of[0],
        "n_units": len(set(of[1])),
        "reason": reason or within.reason,
    }
