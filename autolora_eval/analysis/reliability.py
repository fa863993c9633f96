"""Reliability of the judge: agreement of repeated judgements, and unscored images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from autolora_eval.analysis.estimates import Indices, Interval, bootstrap_interval
from autolora_eval.runs.columns import write_csv
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.scoring.diversity import Floats

# The value of the column `cell` in rows that cover all cells.
ALL = "all"
# Reliable data are commonly asked to reach α = .800. Krippendorff calls .667 "the lowest
# conceivable limit" for tentative conclusions (Content Analysis, 2nd ed. 2004, p. 241).
TENTATIVE_ALPHA = 0.667
MAX_ELEMENTS = 50_000_000  # of [N, V] and [V, V]

COLUMNS = (
    *("cell", "score", "n_images", "n_asked", "n_valid", "n_repeated", "unit", "n_units"),
    *("alpha", "alpha_low", "alpha_high", "exact_agreement", "mean", "expected_mean", "reason"),
)


def ordinal_alpha(ratings: Floats, images: pd.DataFrame) -> tuple[float, Interval]:
    """Return Krippendorff's α for ordinal data, and its 95% bootstrap interval.

    α = 1 − D_o/D_e, observed over expected disagreement (Krippendorff, Content Analysis, 2nd ed.
    2004, chapter 11). The levels are the values that occur; unused levels do not change α.

    Args:
        ratings: float [k, N], one row per rater or repeat, NaN where there is no rating.
        images: their rows, [N], with a column prompt_index. Whole sampling units are resampled.

    Returns:
        The value and its interval. Both are NaN with a reason if no image has two ratings, or if
        all ratings are equal, because then no disagreement is expected.
    """
    paired = _paired(ratings)
    values = np.unique(paired[~np.isnan(paired)])
    reason = None
    if not values.size:
        reason = "no image has two ratings"
    elif values.size == 1:
        reason = f"all ratings are {values[0]:g}"
    elif max(paired.shape[1], values.size) * values.size > MAX_ELEMENTS:
        reason = f"too many different values ({values.size:,})"
    if reason:
        return float("nan"), Interval(reason=reason)
    unit, units = sampling_units(images)
    value = alpha_of_coincidences(coincidences(paired, values))
    return value, _alpha_interval(ratings, values, units, unit)


def _paired(ratings: Floats) -> Floats:
    """Return the images with at least two ratings; agreement is defined only for them."""
    return ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]


def coincidences(ratings: Floats, values: Floats) -> Floats:
    """Return the coincidence matrix o_ck = Σ_u (pairs c–k of ratings of u)/(m_u − 1), [V, V].

    Args:
        ratings: float [k, N]. Images with fewer than m_u = 2 ratings are ignored.
        values: the levels in order, [V].
    """
    counts = (_paired(ratings)[:, :, None] == values).sum(axis=0).astype(np.float64)  # [N, V]
    weighted = counts / (counts.sum(axis=1, keepdims=True) - 1.0)
    return np.asarray(weighted.T @ counts - np.diag(weighted.sum(axis=0)))


def alpha_of_coincidences(observed: Floats) -> float:
    """Return ordinal α of a coincidence matrix, fast enough for thousands of resamples.

    With n_c = Σ_k o_ck and the mid-ranks r_c = Σ_{g≤c} n_g − n_c/2, the ordinal distance of two
    levels is (r_c − r_k)², and α = 1 − (n−1) Σ o_ck (r_c − r_k)² / Σ n_c n_k (r_c − r_k)². It is
    NaN if fewer than two levels occur.
    """
    n = observed.sum(axis=1)
    ranks = np.cumsum(n) - n / 2
    distances = (ranks[:, None] - ranks) ** 2
    expected = float(n @ distances @ n)
    if expected <= 0.0:
        return float("nan")
    return float(1.0 - (n.sum() - 1.0) * (observed * distances).sum() / expected)


def _alpha_interval(
    ratings: Floats, values: Floats, units: Sequence[Hashable], unit: str
) -> Interval:
    """Return the 95% bootstrap interval of ordinal α, resampling whole sampling units, [N]."""
    repeated = (~np.isnan(ratings)).sum(axis=0) >= 2
    kinds, by_kind = _kinds_of_units(ratings[:, repeated], values, np.asarray(units)[repeated])
    # Coincidences add up, so a resample is a weighted sum: no ratings are copied.
    total = np.tensordot(np.bincount(kinds, minlength=len(by_kind)), by_kind, axes=1)
    without = np.asarray([alpha_of_coincidences(total - one) for one in by_kind])

    def statistic(drawn: Indices) -> float:
        times = np.bincount(kinds[drawn], minlength=len(by_kind))
        return alpha_of_coincidences(np.tensordot(times, by_kind, axes=1))

    return bootstrap_interval(statistic, len(kinds), unit, without=without[kinds])


def _kinds_of_units(
    ratings: Floats, values: Floats, units: npt.NDArray[Any]
) -> tuple[Indices, Floats]:
    """Return the kind of each sampling unit, [n], and the coincidences of each kind, [K, V, V].

    Single images have few kinds, since they have few different sets of ratings. Prompts are each
    a kind of its own.
    """
    places = np.sort(np.searchsorted(values, ratings), axis=0)  # NaN comes after all values
    sets, set_of = np.unique(places, axis=1, return_inverse=True)
    levels = np.append(values, np.nan)
    of_set = np.stack([coincidences(levels[one][:, None], values) for one in sets.T])
    unit_of, names = pd.factorize(units)
    if len(names) == len(units):
        return set_of, of_set
    weights = of_set.reshape(len(of_set), -1).T[:, set_of]  # [V·V, N]
    sums = [np.bincount(unit_of, weights=row, minlength=len(names)) for row in weights]
    by_unit = np.stack(sums, axis=1).astype(np.float64)
    return np.arange(len(names)), by_unit.reshape(len(names), *of_set.shape[1:])


def exact_agreement(ratings: Floats) -> float:
    """Return the share of images whose ratings are all equal; NaN if no image has two."""
    paired = _paired(ratings)
    if not paired.shape[1]:
        return float("nan")
    return float((np.nanmax(paired, axis=0) == np.nanmin(paired, axis=0)).mean())


def unscored_by_reason(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the number of unscored images of each cell, by reason.

    Returns:
        Columns cell, reason, n_unscored, n_images (of the cell) and share; one row per cell and
        reason that occurs. Cells keep their order; the most frequent reason comes first.
    """
    rows: list[dict[str, Any]] = []
    for cell, images in scores.groupby("cell", sort=False):
        counted = images["unscored_reason"].dropna().value_counts()
        for reason, n in sorted(counted.items(), key=lambda item: (-item[1], str(item[0]))):
            row = {"cell": cell, "reason": reason, "n_unscored": int(n), "n_images": len(images)}
            rows.append(row | {"share": int(n) / len(images)})
    return pd.DataFrame(rows, columns=["cell", "reason", "n_unscored", "n_images", "share"])


def write_reliability(
    manifest: RunManifest, folder: RunFolder, scores: pd.DataFrame, ratings: Mapping[str, Floats]
) -> None:
    """Write reliability.csv and unscored.csv; without a judge, remove them."""
    if manifest.judge is None:
        for path in (folder.reliability, folder.unscored):
            path.unlink(missing_ok=True)
        return
    write_csv(folder.reliability, reliability(scores, ratings, manifest.score_columns), "%.12g")
    write_csv(folder.unscored, unscored_by_reason(scores), "%.12g")


def reliability(
    scores: pd.DataFrame, ratings: Mapping[str, Floats], columns: Sequence[str]
) -> pd.DataFrame:
    """Return the agreement of the judge's repeats, by score and cell and over all cells.

    Args:
        scores: one row per image.
        ratings: by cell, the scores of each repeat, float64 [columns, repeats, N].
        columns: the scores.

    Returns:
        The columns of `COLUMNS`: number of images, of scores asked for and given, and of images
        with at least two; α with its interval; the share of images whose scores are all equal;
        the mean score and mean expected score; and why α or its interval is missing.
    """
    numbers = [
        *("prompt_index", "sha256"),
        *(c for c in map(str, scores) if c.removesuffix("_expected") in columns),
    ]
    cells = {str(cell): rows[numbers] for cell, rows in scores.groupby("cell", sort=False)}
    every = np.concatenate([ratings[cell] for cell in cells], axis=-1)
    rows = []
    for n, column in enumerate(columns):
        rows += [_row(cell, column, own, ratings[cell][n]) for cell, own in cells.items()]
        rows.append(_row(ALL, column, scores, every[n]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def sampling_units(images: pd.DataFrame) -> tuple[str, list[Hashable]]:
    """Return the kind of the sampling unit, and the unit of each image.

    The unit is the prompt if there are several prompts, else the image.
    """
    if images["prompt_index"].nunique() > 1:
        return "prompt", images["prompt_index"].tolist()
    return "image", list(range(len(images)))


def _row(cell: str, column: str, images: pd.DataFrame, ratings: Floats) -> dict[str, Any]:
    unit, units = sampling_units(images)
    alpha, interval = ordinal_alpha(ratings, images)
    expected = f"{column}_expected"
    return {
        "cell": cell,
        "score": column,
        "n_images": len(images),
        "n_asked": len(ratings) * int(images["sha256"].notna().sum()),
        "n_valid": int((~np.isnan(ratings)).sum()),
        "n_repeated": _paired(ratings).shape[1],
        "unit": unit,
        "n_units": len(set(units)),
        "alpha": alpha,
        "alpha_low": interval.low,
        "alpha_high": interval.high,
        "exact_agreement": exact_agreement(ratings),
        "mean": images[column].mean(),
        "expected_mean": images[expected].mean() if expected in images else np.nan,
        "reason": interval.reason,
    }
