"""The join: images, judgements and parameters as one row an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from autolora_eval.files import Json
from autolora_eval.images import CellImage, cell_images
from autolora_eval.plan import Cell, Plan
from autolora_eval.run_folder import RunFolder
from autolora_eval.scoring.feature_file import CellFeatures, read_features
from autolora_eval.scoring.judgements import final_judgements

NOT_JUDGED = "not_judged"


def join_scores(plan: Plan, folder: RunFolder, judge_key: str | None) -> pd.DataFrame:
    """Return one row an image of the plan, those without file, features or judgement included.

    Args:
        plan: whose images.
        folder: where images and judgements are.
        judge_key: content key of judge and rubric; None without a judge.

    Returns:
        Columns cell, model, method, the parameters, prompt_index, prompt, seed, image_id, file,
        sha256, nfe, one column a score (null if unscored) and unscored_reason (null if scored).
    """
    rubric = plan.benchmark.rubric
    columns = [] if rubric is None else list(rubric.scores)
    rows = []
    for cell in plan.cells:
        judged: dict[tuple[str, str | None], Json] = {}
        if judge_key is not None:
            judged = final_judgements(folder.judgements(cell.id), judge_key, transient=True)
        for image in cell_images(plan, cell, folder):
            rows.append(_row(cell, image, judged.get((image.id, image.sha256)), columns))
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(columns, "float64") | {"unscored_reason": "string"})


def _row(
    cell: Cell, image: CellImage, judgement: Mapping[str, Any] | None, columns: list[str]
) -> dict[str, Any]:
    scores = dict.fromkeys(columns, None) if judgement is None else judgement["scores"] or {}
    reason = None
    if columns:
        reason = NOT_JUDGED if judgement is None else judgement["reason"]
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
        **{column: scores.get(column) for column in columns},
        "unscored_reason": reason,
    }


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


def with_image_errors(scores: pd.DataFrame, features: Mapping[str, CellFeatures]) -> pd.DataFrame:
    """Return the scores with a column image_error: why an image has no features, null if it has.

    Args:
        scores: from `join_scores`.
        features: from `planned_features`.
    """
    have = {cell: set(found.ids) for cell, found in features.items()}
    errors = [
        None if id_ in have[cell] else features[cell].failed.get(id_, "missing_image")
        for cell, id_ in zip(scores["cell"], scores["image_id"], strict=True)
    ]
    return scores.assign(image_error=pd.array(errors, dtype="string"))
