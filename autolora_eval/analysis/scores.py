"""Join what the stages wrote: one row per image, the features of those images, and timings."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from autolora_eval._errors import as_damaged
from autolora_eval._files import Json
from autolora_eval.runs.columns import write_csv
from autolora_eval.runs.feature_file import CellFeatures, read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import MADE_ALONE, SECONDS, CellImage, cell_images
from autolora_eval.runs.manifest import RunManifest, rows_of_images
from autolora_eval.runs.records import CellRecord
from autolora_eval.scoring.diversity import Floats
from autolora_eval.scoring.judgement_store import (
    JudgementFile,
    JudgementKey,
    judgements_by_image,
)
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import Rubric

NOT_JUDGED = "not_judged"
MISSING = "missing_image"
EXPECTED = "_expected"
SECONDS_PER_IMAGE = "seconds_per_image"
N_MADE_ALONE = "n_made_alone"


def join_scores(manifest: RunManifest, folder: RunFolder) -> tuple[pd.DataFrame, dict[str, Floats]]:
    """Return one row per image of a run, also without a file, features or judgement.

    Returns:
        A table with the columns cell, model, method, the parameters, prompt_index, prompt, seed,
        image_id, file, sha256, nfe, one column per score (the mean over repeats; null if
        unscored), one `<score>_expected` each if there are any, and unscored_reason (null if
        scored). And by cell, the scores of each repeat, float64 [columns, repeats, N], NaN where a
        reply has none.
    """
    columns, ratings = manifest.score_columns, dict[str, Floats]()
    # A table of each cell: a million rows as objects of Python would take gigabytes.
    frame = stacked([_cell_scores(manifest, cell, folder, ratings) for cell in manifest.cells])
    # Only a judge that was asked for log-probabilities has expected scores.
    expected = [f"{column}{EXPECTED}" for column in columns]
    frame = frame.drop(columns=[column for column in expected if frame[column].isna().all()])
    numbers = [column for column in [*columns, *expected] if column in frame]
    types = dict.fromkeys(numbers, "float64") | {"unscored_reason": "string"}
    return frame.astype(types), ratings


def _cell_scores(
    manifest: RunManifest, cell: CellRecord, folder: RunFolder, ratings: dict[str, Floats]
) -> pd.DataFrame:
    """Return one row per image of a cell, a score being the mean over repeats; add its ratings."""
    images, names = cell_images(manifest, cell, folder), manifest.score_columns
    values, reasons = _judged(manifest, cell, folder, images)
    ratings[cell.id] = values[0].transpose(0, 2, 1).copy()
    with np.errstate(invalid="ignore"):
        scores, expected = np.nansum(values, axis=-1) / (~np.isnan(values)).sum(axis=-1)
    fixed = {"cell": cell.id, "model": cell.model, "method": cell.method, **cell.parameters}
    ids = pd.Series([image.id for image in images])
    # Lists of equal values, or of long texts, would take 300 MB for a million images.
    return pd.DataFrame(
        {
            **{name: pd.Series([value]).array.repeat(len(images)) for name, value in fixed.items()},
            "prompt_index": [image.prompt_index for image in images],
            "prompt": [image.prompt for image in images],
            "seed": [image.seed for image in images],
            "image_id": ids,
            "file": f"images/{cell.id}/" + ids,
            "sha256": [image.sha256 for image in images],
            "nfe": [image.nfe for image in images],
            **dict(zip(names, scores, strict=True)),
            **{f"{name}{EXPECTED}": one for name, one in zip(names, expected, strict=True)},
            "unscored_reason": reasons,
        }
    )


def _judged(
    manifest: RunManifest, cell: CellRecord, folder: RunFolder, images: Sequence[CellImage]
) -> tuple[Floats, list[str | None]]:
    """Return scores and expected scores of a cell, [2, columns, N, repeats], and reasons, [N].

    Arrays, and no rows: a million judgements as objects of Python would take gigabytes.
    """
    judge, rubric, names = manifest.judge, rubric_of(manifest), manifest.score_columns
    n_repeats = 1 if judge is None else judge.repeats
    values = np.full((2, len(names), len(images), n_repeats), np.nan)
    is_scored = np.zeros((len(images), n_repeats), dtype=bool)
    reasons = np.full((len(images), n_repeats), NOT_JUDGED, dtype=object)
    places = {image.id: n for n, image in enumerate(images) if image.problem is None}
    rows = () if judge is None else JudgementFile(folder.judgements(cell.id)).rows(judge.key)
    for row in rows:
        image_id, sha256, repeat = JudgementKey.of(row)
        n = places.get(image_id)
        if n is None or images[n].sha256 != sha256 or not 0 <= repeat < n_repeats:
            continue
        said = as_said(row, rubric)  # the last row of a repeat counts
        reasons[n, repeat], is_scored[n, repeat] = said["reason"], said["scores"] is not None
        found = (said["scores"], said.get("expected")) if is_scored[n, repeat] else (None, None)
        for kind, numbers in enumerate(found):
            given = [(numbers or {}).get(name) for name in names]
            values[kind, :, n, repeat] = np.asarray(given, dtype=np.float64)  # None becomes NaN
    whys: list[str | None] = [None] * len(images)
    for place in map(int, np.flatnonzero(~is_scored.any(axis=1)) if names else ()):
        asked = (reason for reason in reasons[place] if reason != NOT_JUDGED)
        whys[place] = images[place].problem or next(asked, NOT_JUDGED)
    return values, whys


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables stacked; a column that is empty in one table has its type from the others."""
    columns = dict.fromkeys(column for table in tables for column in map(str, table))
    found = pd.concat([table.dropna(axis=1, how="all") for table in tables], ignore_index=True)
    return found.assign(**{c: None for c in columns if c not in found})[list(columns)]


def records(table: pd.DataFrame) -> list[Json]:
    """Return a table as one mapping per row."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def cell_judgements(
    manifest: RunManifest, folder: RunFolder, cell: str, image_ids: Container[str] | None = None
) -> dict[tuple[str, str | None], list[Json]]:
    """Return the judgements of a cell that count, by (image id, SHA-256), in order of repeat.

    Of all images by default, otherwise of those with these ids.
    """
    judge = manifest.judge
    if judge is None:
        return {}
    rubric = rubric_of(manifest)
    found = judgements_by_image(
        row
        for row in JudgementFile(folder.judgements(cell)).rows(judge.key)
        if row["repeat"] < judge.repeats and (image_ids is None or row["image_id"] in image_ids)
    )
    return {image: [as_said(row, rubric) for row in rows] for image, rows in found.items()}


def rubric_of(manifest: RunManifest) -> Rubric | None:
    """Return the rubric of a run; None without a judge, or if its text is not recorded."""
    found = manifest.rubric
    with as_damaged(Path("manifest.json")):
        return Rubric.model_validate(found.model_dump()) if found and found.text else None


def as_said(row: Json, rubric: Rubric | None) -> Json:
    """Return a judgement with scores parsed again from the judge's reply.

    A judgement without scores has none, whatever was said.
    """
    if rubric is None or row["scores"] is None:
        return row
    said = parse_reply(row.get("raw") or "", rubric)
    return row | {"scores": said.scores, "reason": said.reason}


def scored_features(folder: RunFolder, cell: str, images: pd.DataFrame) -> CellFeatures:
    """Return the features of a cell, without those of replaced images."""
    features = read_features(folder.features(cell))
    return features.unchanged(zip(images["image_id"], images["sha256"], strict=True))


def with_image_errors(
    images: pd.DataFrame, features: CellFeatures, cell: CellRecord, folder: RunFolder
) -> pd.DataFrame:
    """Return a cell's scores with a column image_error: why an image has no features, else null."""
    failed = {
        str(row["file_name"]): str(row["reason"])
        for row in rows_of_images(folder.failed_images(cell.id))
        if row["settings_key"] == cell.settings_key
    }
    have = set(features.ids)
    errors = []
    for id_ in images["image_id"]:
        why = features.failed.get(id_, MISSING)
        why = failed.get(id_, why) if why == MISSING else why
        errors.append(None if id_ in have else why)
    return images.assign(image_error=pd.array(errors, dtype="string"))


def write_timings(manifest: RunManifest, folder: RunFolder) -> None:
    """Write timings.csv: for each cell, the median of the seconds that its images took.

    The median, since the first batch also warms the machine up. Null where no time was taken, as
    for images that were made elsewhere. Times are of the machine, so no other table has them.
    """
    rows = []
    for cell in manifest.cells:
        taken, n_alone = list[float](), 0
        for row in folder.image_rows(cell):
            n_alone += MADE_ALONE in row
            if row.get(SECONDS) is not None:
                taken.append(row[SECONDS])
        rows.append(
            {
                "cell": cell.id,
                "model": cell.model,
                "method": cell.method,
                "n_timed": len(taken),
                N_MADE_ALONE: n_alone,
                SECONDS_PER_IMAGE: pd.Series(taken, dtype="float64").median(),
            }
        )
    frame = pd.DataFrame(rows)
    write_csv(folder.timings, frame, "%.4g")


def one_type_a_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with columns of mixed types as text: a Parquet column has one type.

    Two methods may use one parameter name for values of different types.
    """
    mixed: dict[str, pd.Series] = {}
    for name in map(str, frame):
        if not pd.api.types.is_object_dtype(frame[name]):
            continue
        types = set(map(type, frame[name].dropna()))
        if len(types) > 1 and types != {int, float}:
            mixed[name] = frame[name].map(str, na_action="ignore")
    return frame.assign(**mixed)
