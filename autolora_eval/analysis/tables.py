"""The result table, with one row per cell, as CSV, Markdown, LaTeX and Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import atomic_write, write_text
from autolora_eval._text import format_swept_value
from autolora_eval.analysis.cell_estimates import (
    Estimates,
    References,
    cell_estimates,
    prompt_diversities,
    prompt_mean_products,
)
from autolora_eval.analysis.comparisons import baseline_cells, compare_with_baseline, with_sentences
from autolora_eval.analysis.metrics import Metric, run_metrics
from autolora_eval.analysis.reliability import write_reliability
from autolora_eval.analysis.scores import (
    join_scores,
    one_type_a_column,
    records,
    scored_features,
    with_image_errors,
    write_timings,
)
from autolora_eval.analysis.table_layout import Results, choose_layout, latex, markdown
from autolora_eval.runs.columns import write_csv
from autolora_eval.runs.feature_file import CellFeatures
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import CellRecord, CountsRecord
from autolora_eval.scoring.diversity_metric import DiversityMetric


def write_tables(
    manifest: RunManifest,
    folder: RunFolder,
    metrics: Sequence[DiversityMetric] = (),
    published: Path | None = None,
) -> CountsRecord:
    """Join what the stages wrote into scores, diversities, table and comparisons; count images."""
    cells, shown = manifest.cells, run_metrics(manifest)
    joined, ratings = join_scores(manifest, folder)
    rows, image_errors, prompts, estimates = _evaluated(manifest, folder, joined, metrics)
    scores = joined.assign(image_error=image_errors)
    # Methods differ in their parameters: those of all come before what was measured.
    parameters = dict.fromkeys(name for cell in cells for name in cell.parameters)
    columns = dict.fromkeys(("cell", "model", "method", *parameters, *rows[0]))
    table = pd.DataFrame(rows, columns=list(columns))
    if published is not None:
        table = _with_published(table, published, manifest)
    unit = "prompt" if scores["prompt_index"].nunique() > 1 else "seed"
    comparisons = compare_with_baseline(cells, estimates, manifest.benchmark.baseline, unit)
    comparisons = with_sentences(comparisons, cells, shown)
    _write_frames(folder, scores, prompts, table, comparisons)
    _write_readable(manifest, folder, table, shown, missing_reasons(scores, prompts, table, shown))
    write_reliability(manifest, folder, scores, ratings)
    write_timings(manifest, folder)
    return CountsRecord(
        images=len(scores),
        missing=int(scores["image_error"].notna().sum()),
        unscored=int(scores["unscored_reason"].notna().sum()),
    )


def _evaluated(
    manifest: RunManifest,
    folder: RunFolder,
    joined: pd.DataFrame,
    metrics: Sequence[DiversityMetric],
) -> tuple[list[dict[str, object]], pd.Series, pd.DataFrame, dict[str, Estimates]]:
    """Return the table's rows, the error of each image, rows by prompt, and estimates by cell.

    The features of at most two cells are in memory at once.
    """
    shown = run_metrics(manifest)
    # Without the long column that no estimate needs: a cell may have a million images.
    images_of = joined.drop(columns="file").groupby("cell", sort=False).get_group

    @lru_cache(maxsize=2)  # the cell's and its reference's
    def features(cell: str) -> CellFeatures:
        return scored_features(folder, cell, images_of(cell))

    references = References(reference_cells(manifest), joined, features)
    rows, image_errors, prompts = [], [], []
    estimates: dict[str, Estimates] = {}
    for cell in manifest.cells:
        own = features(cell.id)
        images = with_image_errors(images_of(cell.id), own, cell, folder)
        spread = prompt_diversities(images, own, metrics, references)
        found = cell_estimates(images, spread, own, manifest.score_columns, metrics, references)
        estimates[cell.id] = {metric.column: found[metric.column] for metric in shown}
        rows.append(_row(cell, images, spread, estimates[cell.id], shown))
        image_errors.append(images["image_error"])
        prompts.append(spread)
    return rows, pd.concat(image_errors), pd.concat(prompts, ignore_index=True), estimates


def _row(
    cell: CellRecord,
    images: pd.DataFrame,
    spread: pd.DataFrame,
    estimates: Estimates,
    shown: Sequence[Metric],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cell": cell.id,
        "model": cell.model,
        "method": cell.method,
        **cell.parameters,
        "n_images": len(images),
        "n_missing": int(images["image_error"].notna().sum()),
        "n_unscored": int(images["unscored_reason"].notna().sum()),
        "n_undefined_prompts": int(spread["diversity"].isna().sum()),
        "nfe": cell.nfe if cell.nfe is not None else _counted_nfe(images),
    }
    for metric in shown:
        estimate, column = estimates[metric.column], metric.column
        # Few units make wide t-intervals: values outside the metric's range are cut off.
        low, high = np.clip(estimate.interval(), metric.low, metric.high)
        row |= {column: estimate.value, f"{column}_low": low, f"{column}_high": high}
    with_product = [metric.column for metric in shown if metric.has_product]
    return row | prompt_mean_products(images, spread, with_product)


def _counted_nfe(images: pd.DataFrame) -> float | None:
    counted = pd.to_numeric(images["nfe"]).dropna()
    if counted.empty:
        return None
    mean = float(counted.mean())
    return int(mean) if mean.is_integer() else mean


def reference_cells(manifest: RunManifest) -> dict[str, str]:
    """Return for each cell the one whose images are its reference set, if metrics need any."""
    reference = manifest.benchmark.diversity_reference
    return {} if reference is None else baseline_cells(manifest.cells, reference)


def read_published(file: Path, manifest: RunManifest) -> tuple[pd.DataFrame, list[str]]:
    """Return published values, column `x` renamed to `x_published`, and the columns of their key.

    Raises:
        UsageError: if the file cannot be read, has no column `method` or no column for a swept
            parameter, has a column that the table does not have, or two rows for one cell.
    """
    try:
        names = {"model": str, "method": str}  # such as "NA", which pandas reads as a missing value
        published = pd.read_csv(file, dtype=names, keep_default_na=False, na_values=[""])
    except ValueError as error:  # also pandas' own for a file that is empty or not a CSV file
        raise UsageError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    measured = [metric.column for metric in run_metrics(manifest)]
    parameters = [key for cell in manifest.cells for key in cell.parameters if key != "guider"]
    keys = [key for key in dict.fromkeys(("model", "method", *parameters)) if key in published]
    values = [column for column in published if column not in keys]
    strange = [str(column) for column in values if column not in (*measured, "nfe")]
    if "method" not in keys:
        raise UsageError(f"{file}: no column 'method'.")
    if strange:
        near = did_you_mean(strange[0], measured)
        raise UsageError(f"{file}: column '{strange[0]}' is not a column of the table.{near}")
    numbers = [column for column in published if column not in ("model", "method")]
    words = [column for column in numbers if not pd.api.types.is_numeric_dtype(published[column])]
    if words:
        raise UsageError(
            f"{file}: column '{words[0]}' holds values that are not numbers. Leave a missing value "
            "empty."
        )
    _check_swept_columns(file, manifest, keys)
    twice = published[published.duplicated(keys)]
    if len(twice):
        raise UsageError(f"{file}: two rows for {', '.join(map(str, twice.iloc[0][keys]))}.")
    return published.rename(columns={column: f"{column}_published" for column in values}), keys


def _check_swept_columns(file: Path, manifest: RunManifest, keys: Sequence[str]) -> None:
    """Refuse published values that would be shown beside every value of a sweep."""
    for name, swept in manifest.sweep.items():
        lacking = [column for column in swept.columns if column not in keys]
        is_taken = any(name in cell.point for cell in manifest.cells)
        if lacking and is_taken and len(swept.values) > 1:
            raise UsageError(
                f"{file}: no column '{lacking[0]}', so that one row would stand beside every value "
                f"of sweep.{name}. Add the column, empty where a method has no such parameter."
            )


def _with_published(table: pd.DataFrame, file: Path, manifest: RunManifest) -> pd.DataFrame:
    published, keys = read_published(file, manifest)
    # A parameter that no cell has is a column of None, which cannot be merged on as a number.
    numbers = {key: pd.to_numeric(table[key]) for key in keys if key not in ("model", "method")}
    return table.assign(**numbers).merge(published, on=keys, how="left", validate="many_to_one")


def _write_frames(
    folder: RunFolder,
    scores: pd.DataFrame,
    prompts: pd.DataFrame,
    table: pd.DataFrame,
    comparisons: pd.DataFrame,
) -> None:
    for target, frame in {folder.scores: scores, folder.table("parquet"): table}.items():
        with atomic_write(target) as path:
            one_type_a_column(frame).to_parquet(path, index=False)
    # 12 digits: more than any measurement here has, and stable under a last bit's change.
    write_csv(folder.diversity, prompts, "%.12g")
    write_csv(folder.table("csv"), table, "%.12g")
    write_csv(folder.comparisons, comparisons, "%.12g")


def _write_readable(
    manifest: RunManifest,
    folder: RunFolder,
    table: pd.DataFrame,
    shown: Sequence[Metric],
    reasons: Mapping[tuple[str, str], str],
) -> None:
    sweep = {
        name: [format_swept_value(value) for value in swept.values]
        for name, swept in manifest.sweep.items()
    }
    points = {
        cell.id: {name: format_swept_value(value) for name, value in cell.point.items()}
        for cell in manifest.cells
    }
    layout = choose_layout(Results(records(table), shown, sweep, points, reasons))
    write_text(folder.table("md"), markdown(layout))
    write_text(folder.table("tex"), latex(layout))


def missing_reasons(
    scores: pd.DataFrame, prompts: pd.DataFrame, table: pd.DataFrame, shown: Sequence[Metric]
) -> dict[tuple[str, str], str]:
    """Return why a cell has no value of a metric: the most frequent reason of its images."""
    frames = {"diversity": (prompts, "reason"), "score": (scores, "unscored_reason")}
    extra = [f"{metric.column}_reason" for metric in shown if metric.kind == "extra"]
    frames |= {column: (prompts, column) for column in extra}
    most = {
        kind: frame.dropna(subset=[column]).groupby("cell")[column].agg(_most_frequent).to_dict()
        for kind, (frame, column) in frames.items()
    }
    found: dict[tuple[str, str], str] = {}
    for row in table.to_dict("records"):
        for metric in shown:
            # The reason of a missing product is that of its diversity or of its score.
            of_score = metric.kind == "score" or (
                metric.kind == "product" and bool(np.isfinite(row["diversity"]))
            )
            lacking = "score" if of_score else "diversity"
            why = most[f"{metric.column}_reason" if metric.kind == "extra" else lacking]
            if row["cell"] in why:
                found[row["cell"], metric.column] = why[row["cell"]]
    return found


def _most_frequent(reasons: pd.Series[str]) -> str:
    return str(reasons.value_counts().index[0])
