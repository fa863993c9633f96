"""The join: images, judgements and parameters as one row an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from autolora_eval._files import Json, iterate_jsonl
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.runs.feature_file import CellFeatures, read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import CellImage, cell_images
from autolora_eval.scoring.judgement_store import judgements_by_image

NOT_JUDGED = "not_judged"
MISSING = "missing_image"
EXPECTED = "_expected"


def join_scores(plan: Plan, folder: RunFolder, judge_key: str | None) -> pd.DataFrame:
    """Return one row an image of the plan, those without file, features or judgement included.

    Args:
        plan: whose images.
        folder: where images and judgements are.
        judge_key: content key of judge and rubric; None without a judge.

    Returns:
        Columns cell, model, method, the parameters, prompt_index, prompt, seed, image_id, file,
        sha256, nfe, one column a score (the mean of its verdicts; null if unscored), one
        `<score>_expected` each if there are any, and unscored_reason (null if scored).
    """
    rubric = plan.benchmark.rubric
    columns = [] if rubric is None else list(rubric.scores)
    judge = plan.benchmark.spec.judge
    repeats = 0 if judge is None else judge.repeats
    rows = []
    for cell in plan.cells:
        judged: dict[tuple[str, str | None], list[Json]] = {}
        if judge_key is not None:
            judged = judgements_by_image(folder.judgements(cell.id), judge_key)
        for image in cell_images(plan, cell, folder):
            found = judged.get((image.id, image.sha256), [])
            found = [row for row in found if row.get("repeat", 0) < repeats]
            rows.append(_row(cell, image, found, columns))
    frame = pd.DataFrame(rows)
    # Only a judge that was asked for log-probabilities has any.
    expected = [f"{column}{EXPECTED}" for column in columns]
    frame = frame.drop(columns=[column for column in expected if frame[column].isna().all()])
    numbers = [column for column in [*columns, *expected] if column in frame]
    return frame.astype(dict.fromkeys(numbers, "float64") | {"unscored_reason": "string"})


def _row(
    cell: Cell, image: CellImage, judgements: Sequence[Mapping[str, Any]], columns: list[str]
) -> dict[str, Any]:
    """Return the row of an image; a score is the mean of its verdicts."""
    scored = [judgement for judgement in judgements if judgement["scores"] is not None]
    reason = None
    if columns and not scored:
        reason = judgements[0]["reason"] if judgements else NOT_JUDGED
    expected = [judgement["expected"] for judgement in scored if judgement.get("expected")]
    return {
        "cell": cell.id,
        "model": cell.model.name,
        "method": cell.method.name,
        **cell.columns,
        "prompt_index": image.prompt_index,
        "prompt": image.prompt,
        "seed": image.seed,
        "image_id": image.id,
        "file": f"images/{cell.id}/{image.id}",
        "sha256": image.sha256,
        "nfe": image.nfe,
        **{column: _mean_of([row["scores"] for row in scored], column) for column in columns},
        **{f"{column}{EXPECTED}": _mean_of(expected, column) for column in columns},
        "unscored_reason": reason,
    }


def _mean_of(verdicts: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """Return the mean of a score over the verdicts that have it; None if none has."""
    values = [verdict[column] for verdict in verdicts if verdict.get(column) is not None]
    return sum(values) / len(values) if values else None


def planned_features(folder: RunFolder, scores: pd.DataFrame) -> dict[str, CellFeatures]:
    """Return the features of each cell of the scores, those of its very images only.

    Args:
        folder: where features are.
        scores: from `join_scores`.
    """
    found = {}
    for cell, rows in scores.groupby("cell", sort=False):
        features = read_features(folder.features(str(cell)))
        wanted = set(zip(rows["image_id"], rows["sha256"], strict=True))
        keep = [
            index
            for index, pair in enumerate(zip(features.ids, features.sha256, strict=True))
            if pair in wanted
        ]
        found[str(cell)] = CellFeatures(
            ids=[features.ids[index] for index in keep],
            sha256=[features.sha256[index] for index in keep],
            matrix=features.matrix[keep],
            failed=features.failed,
            key=features.key,
        )
    return found


def failed_image_reasons(plan: Plan, folder: RunFolder) -> dict[tuple[str, str], str]:
    """Return why samplers made no image, by cell and image id; of the cells' present settings."""
    found = {}
    for cell in plan.cells:
        key = folder.settings_key(cell.id)
        for row in iterate_jsonl(folder.failed_images(cell.id)):
            if row["settings_key"] == key:
                found[cell.id, str(row["file_name"])] = str(row["reason"])
    return found


def with_image_errors(
    scores: pd.DataFrame,
    features: Mapping[str, CellFeatures],
    failed_images: Mapping[tuple[str, str], str] | None = None,
) -> pd.DataFrame:
    """Return the scores with a column image_error: why an image has no features, null if it has.

    Args:
        scores: from `join_scores`.
        features: from `planned_features`.
        failed_images: from `failed_image_reasons`.
    """
    have = {cell: set(found.ids) for cell, found in features.items()}
    errors = []
    for cell, id_ in zip(scores["cell"], scores["image_id"], strict=True):
        why = features[cell].failed.get(id_, MISSING)
        why = (failed_images or {}).get((cell, id_), why) if why == MISSING else why
        errors.append(None if id_ in have[cell] else why)
    return scores.assign(image_error=pd.array(errors, dtype="string"))


def one_type_a_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns of several types are text, since Parquet has one type each.

    Methods of different authors may call parameters the same and mean other things by them.
    """
    mixed: dict[str, pd.Series] = {}
    for name in map(str, frame):
        if not pd.api.types.is_object_dtype(frame[name]):
            continue
        types = set(map(type, frame[name].dropna()))
        if len(types) > 1 and types != {int, float}:
            mixed[name] = frame[name].map(str, na_action="ignore")
    return frame.assign(**mixed)
