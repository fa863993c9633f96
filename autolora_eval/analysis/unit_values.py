"""What each prompt, or each seed of a single prompt, contributes to the metrics of a cell."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from autolora_eval.analysis.estimates import (
    Estimate,
    mean_estimate,
    product_estimate,
    ratio_estimate,
)


def unit_values(
    scores: pd.DataFrame,
    diversity: pd.DataFrame,
    columns: Sequence[str],
    extra: Sequence[str] = (),
) -> dict[str, pd.DataFrame]:
    """Return what each sampling unit contributes to a cell's metrics, as comparisons count it.

    Of prompts these are diversity, mean scores and, for products, the jackknife's pseudo-values;
    of one prompt's seeds the scores alone, since one image has no diversity.

    Args:
        scores: one row an image.
        diversity: one row a cell and prompt.
        columns: the judge's scores.
        extra: the other diversity metrics.

    Returns:
        For each metric a table of units by cells; NaN where a unit has no value.
    """
    if diversity["prompt_index"].nunique() < 2:
        frame = scores[["seed", "cell", *columns]].set_index(["seed", "cell"])
        return {column: frame[column].unstack("cell") for column in columns}
    spread = diversity.pivot(index="prompt_index", columns="cell", values="diversity")
    units: list[Hashable] = list(spread.index)
    groups = scores.groupby(["prompt_index", "cell"])
    # Of each score by cell: what its images sum up to, and how many have it.
    sums, counts = (
        {
            column: getattr(groups[column], how)()
            .unstack("cell")
            .reindex(index=units, columns=spread.columns)
            .fillna(0)
            for column in columns
        }
        for how in ("sum", "count")
    )
    found: dict[str, dict[str, dict[Hashable, float]]] = {}
    for cell in spread.columns:
        of_cell = mean_estimate(spread[cell].to_numpy(), units)
        _note(found, "diversity", cell, of_cell)
        for column in columns:
            score = ratio_estimate(sums[column][cell], counts[column][cell], units)
            _note(found, column, cell, score)
            _note(found, f"div_{column}", cell, product_estimate(of_cell, score))
    others = {
        metric: diversity.pivot(index="prompt_index", columns="cell", values=metric)
        for metric in extra
        if metric in diversity
    }
    return others | {
        metric: pd.DataFrame(cells).reindex(units).astype("float64")
        for metric, cells in found.items()
    }


def _note(
    found: dict[str, dict[str, dict[Hashable, float]]], metric: str, cell: str, estimate: Estimate
) -> None:
    found.setdefault(metric, {})[cell] = estimate.pseudo_values()


def sorted_differences(values: pd.DataFrame, cell: str, baseline: str) -> npt.NDArray[np.float64]:
    """Return the differences of the units that both cells have, lowest first, float64 [n].

    Args:
        values: of one metric, units by cells.
        cell: what is compared.
        baseline: what it is compared with.
    """
    if cell not in values or baseline not in values:
        return np.zeros(0)
    differences = (values[cell] - values[baseline]).to_numpy(dtype=np.float64)
    return np.sort(differences[np.isfinite(differences)])
