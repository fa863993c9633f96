"""The result table: one row a cell, as CSV, Markdown, LaTeX and Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import Json, atomic_write, write_text
from autolora_eval._text import format_swept_value
from autolora_eval.analysis.cell_estimates import (
    Estimates,
    References,
    cell_estimates,
    prompt_diversities,
    prompt_mean_products,
)
from autolora_eval.analysis.comparisons import baseline_cells, compare_with_baseline
from autolora_eval.analysis.metric_columns import Measure, measures
from autolora_eval.analysis.reliability import write_reliability
from autolora_eval.analysis.scores import (
    failed_image_reasons,
    join_scores,
    one_type_a_column,
    planned_features,
    with_image_errors,
)
from autolora_eval.analysis.sentences import with_sentences
from autolora_eval.analysis.table_layout import Results, choose_layout
from autolora_eval.analysis.table_text import latex, markdown
from autolora_eval.analysis.timings import write_timings
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.config.sweep_grid import fields_of
from autolora_eval.runs.folder import RunFolder


def write_tables(plan: Plan, folder: RunFolder, judge_key: str | None) -> Json:
    """Join what the stages wrote into scores, diversities, table and comparisons.

    Args:
        plan: what was run.
        folder: where everything is.
        judge_key: content key of judge and rubric; None without a judge.

    Returns:
        Counts for the manifest.
    """
    scores = join_scores(plan, folder, judge_key)
    features = planned_features(folder, scores)
    scores = with_image_errors(scores, features, failed_image_reasons(plan, folder))
    extra = list(plan.benchmark.diversity.values())
    references = References(reference_cells(plan), scores, features.get)
    prompts = prompt_diversities(scores, features, extra, references)
    rubric = plan.benchmark.rubric
    columns = [] if rubric is None else list(rubric.scores)
    estimates = {
        cell.id: cell_estimates(
            scores[scores["cell"] == cell.id],
            prompts[prompts["cell"] == cell.id],
            features[cell.id],
            columns,
            extra,
            references,
        )
        for cell in plan.cells
    }
    shown = _measures(plan)
    rows = [_row(cell, scores, prompts, estimates[cell.id], shown) for cell in plan.cells]
    # Methods differ in their parameters: those of all stand before what was measured.
    parameters = dict.fromkeys(name for cell in plan.cells for name in cell.columns)
    columns_in_order = dict.fromkeys(("cell", "model", "method", *parameters, *rows[0]))
    table = _with_published(pd.DataFrame(rows, columns=list(columns_in_order)), plan)
    unit = "prompt" if scores["prompt_index"].nunique() > 1 else "seed"
    comparisons = compare_with_baseline(
        plan.cells, estimates, plan.benchmark.spec.baseline_method, unit
    )
    comparisons = with_sentences(comparisons, plan.cells, shown)
    _write_frames(folder, scores, prompts, table, comparisons)
    _write_readable(plan, folder, table, shown, _reasons(scores, prompts, table, shown))
    write_reliability(plan, folder, scores, judge_key)
    write_timings(plan, folder)
    return {
        "images": len(scores),
        "missing": int(scores["image_error"].notna().sum()),
        "unscored": int(scores["unscored_reason"].notna().sum()),
    }


def _row(
    cell: Cell,
    scores: pd.DataFrame,
    prompts: pd.DataFrame,
    estimates: Estimates,
    shown: Sequence[Measure],
) -> dict[str, Any]:
    images = scores[scores["cell"] == cell.id]
    spread = prompts[prompts["cell"] == cell.id]
    row: dict[str, Any] = {
        "cell": cell.id,
        "model": cell.model.name,
        "method": cell.method.name,
        **cell.columns,
        "n_images": len(images),
        "n_missing": int(images["image_error"].notna().sum()),
        "n_unscored": int(images["unscored_reason"].notna().sum()),
        "n_undefined_prompts": int(spread["diversity"].isna().sum()),
        "nfe": _passes(cell, images),
    }
    for measure in shown:
        estimate, column = estimates[measure.column], measure.column
        # Few units make wide t-intervals: what no measurement can give is cut off.
        low, high = np.clip(estimate.interval(), measure.low, measure.high)
        row |= {column: estimate.value, f"{column}_low": low, f"{column}_high": high}
    scores_shown = [measure.column for measure in shown if measure.kind == "score"]
    return row | prompt_mean_products(images, spread, scores_shown)


def _passes(cell: Cell, images: pd.DataFrame) -> float | None:
    """Return the passes of a cell's images: declared, or else the mean of those counted."""
    if cell.method.definition.nfe_is_exact:
        return cell.nfe
    counted = pd.to_numeric(images["nfe"]).dropna()
    if counted.empty:
        return None
    mean = float(counted.mean())
    return int(mean) if mean.is_integer() else mean


def reference_cells(plan: Plan) -> dict[str, str]:
    """Return the cell that each other's diversity is compared with, where a measure does that."""
    reference = plan.benchmark.spec.diversity_reference
    return {} if reference is None else baseline_cells(plan.cells, reference)


def _measures(plan: Plan) -> list[Measure]:
    rubric = plan.benchmark.rubric
    stated = [measure.to_json() for measure in plan.benchmark.diversity.values()]
    return measures({} if rubric is None else rubric.scores, stated)


def check_published(plan: Plan) -> None:
    """Check that the published values can stand beside ours, before anything is generated.

    Raises:
        UsageError: they cannot.
    """
    if plan.benchmark.published is not None:
        _read_published(plan)


def _read_published(plan: Plan) -> tuple[pd.DataFrame, list[str]]:
    """Return the published values, `x` renamed to `x_published`, and what names a row.

    Raises:
        UsageError: the file cannot be read, lacks a column `method` or one that would tell
            the points of a sweep apart, has one that is not measured, or two rows for one cell.
    """
    file = plan.benchmark.published
    assert file is not None
    try:
        published = pd.read_csv(file, dtype={"model": str, "method": str})
    except ValueError as error:  # also pandas' own for a file that is empty or no CSV
        raise UsageError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    measured = [measure.column for measure in _measures(plan)]
    numbered = [key for cell in plan.cells for key in cell.columns if key != "guider"]
    keys = [key for key in dict.fromkeys(("model", "method", *numbered)) if key in published]
    values = [column for column in published if column not in keys]
    strange = [str(column) for column in values if column not in (*measured, "nfe")]
    if "method" not in keys or strange:
        problem = (
            f"column '{strange[0]}' is none of the table's" if strange else "no column 'method'"
        )
        near = did_you_mean(strange[0], measured) if strange else ""
        raise UsageError(f"{file}: {problem}.{near}")
    numbers = [column for column in published if column not in ("model", "method")]
    words = [column for column in numbers if not pd.api.types.is_numeric_dtype(published[column])]
    if words:
        raise UsageError(f"{file}: column '{words[0]}' holds something else than numbers.")
    _refuse_one_for_many(plan, keys)
    twice = published[published.duplicated(keys)]
    if len(twice):
        raise UsageError(f"{file}: two rows for {', '.join(map(str, twice.iloc[0][keys]))}.")
    return published.rename(columns={column: f"{column}_published" for column in values}), keys


def _refuse_one_for_many(plan: Plan, keys: Sequence[str]) -> None:
    """Refuse published values that would stand beside every value of a sweep."""
    for cell in plan.cells:
        for name in cell.point:
            lacking = [key for key in fields_of(name) if key not in keys]
            if lacking and len(plan.benchmark.sweep.values[name]) > 1:
                raise UsageError(
                    f"{plan.benchmark.published}: no column '{lacking[0]}', so that one row would "
                    f"stand beside every value of sweep.{name}. Add the column, empty where a "
                    "method has no such parameter."
                )


def _with_published(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Put published values beside ours: `x` of the file becomes the column `x_published`."""
    if plan.benchmark.published is None:
        return table
    published, keys = _read_published(plan)
    # A parameter that no cell has is a column of None, which is no number to be merged on.
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
    frames = {
        folder.diversity: prompts,
        folder.table("csv"): table,
        folder.comparisons: comparisons,
    }
    for target, frame in frames.items():
        # 12 digits: more than any measurement here has, and stable under a last bit's change.
        write_text(target, frame.to_csv(index=False, float_format="%.12g", lineterminator="\n"))


def _write_readable(
    plan: Plan,
    folder: RunFolder,
    table: pd.DataFrame,
    shown: Sequence[Measure],
    reasons: Mapping[tuple[str, str], str],
) -> None:
    sweep = {
        name: [format_swept_value(value) for value in values]
        for name, values in plan.benchmark.sweep.values.items()
    }
    points = {
        cell.id: {name: format_swept_value(value) for name, value in cell.point.items()}
        for cell in plan.cells
    }
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    layout = choose_layout(Results(rows, shown, sweep, points, reasons))
    write_text(folder.table("md"), markdown(layout))
    write_text(folder.table("tex"), latex(layout))


def _reasons(
    scores: pd.DataFrame, prompts: pd.DataFrame, table: pd.DataFrame, shown: Sequence[Measure]
) -> dict[tuple[str, str], str]:
    """Return why a cell has no value of a measure: the most frequent reason of its images."""
    frames = {"diversity": (prompts, "reason"), "score": (scores, "unscored_reason")}
    extra = [f"{measure.column}_reason" for measure in shown if measure.kind == "extra"]
    frames |= {column: (prompts, column) for column in extra}
    most = {kind: _reasons_of(frame, column) for kind, (frame, column) in frames.items()}
    found: dict[tuple[str, str], str] = {}
    for row in table.to_dict("records"):
        for measure in shown:
            # A product lacks what its diversity lacks, or else what its score does.
            of_score = measure.kind == "score" or (
                measure.kind == "product" and bool(np.isfinite(row["diversity"]))
            )
            lacking = "score" if of_score else "diversity"
            why = most[f"{measure.column}_reason" if measure.kind == "extra" else lacking]
            if row["cell"] in why:
                found[row["cell"], measure.column] = why[row["cell"]]
    return found


def _reasons_of(frame: pd.DataFrame, column: str) -> dict[str, str]:
    """Return the most frequent reason of each cell that has one."""
    found = frame.dropna(subset=[column]).groupby("cell")[column].agg(_most_frequent)
    return {str(cell): reason for cell, reason in found.items()}


def _most_frequent(reasons: pd.Series[str]) -> str:
    return str(reasons.value_counts(sort=True).index[0])
