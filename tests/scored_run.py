"""A run folder with chosen features and scores, written by the product's own writers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from json_lines import read_jsonl
from PIL import Image

from autolora_eval._files import sha256_bytes, write_jsonl
from autolora_eval._progress import Progress
from autolora_eval.analysis.tables import write_tables
from autolora_eval.config.plan import Plan
from autolora_eval.config.stage_inputs import feature_settings, judge_settings, planned_manifest
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.runs.folder import RunFolder, checksums
from autolora_eval.runs.images import cell_images
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import (
    CountsRecord,
    FeaturesRecord,
    JudgeRecord,
    LoraRecord,
    ModelRecord,
    SourceRecord,
)
from autolora_eval.scoring import features as feature_stage
from autolora_eval.scoring.judge import Judge, Reply
from autolora_eval.scoring.judgement_store import JudgementFile
from autolora_eval.scoring.judging import judge_images, judgement

KEY = "judge-and-rubric"
SETTINGS = "5e771295"
EXTRACTOR = FeaturesRecord(
    model="dino", key="extractor", identity=SourceRecord(name="dino", kind="hub"), dtype="float32"
)
Place = tuple[str, int, int]  # cell, place of the prompt, seed


def picture(place: Place, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture that no other place has."""
    cell, prompt_index, seed = place
    rng = np.random.default_rng([*cell.encode(), prompt_index, seed])
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


MODEL = ModelRecord(
    pipeline=SourceRecord(name="pipeline", kind="folder", sha256="1" * 64),
    loras=[LoraRecord(name="lora", kind="file", sha256="2" * 64)],
    size=(16, 16),
    device="cpu",
    dtype="float32",
)


def manifest_of(
    plan: Plan, folder: RunFolder, judge: str | None = KEY, **sections: Any
) -> RunManifest:
    """Return the manifest of a run whose images `write_images` wrote, judged under a key.

    What the run folder's manifest says of judge and features is kept.
    """
    manifest = planned_manifest(plan, folder)
    cells = [cell.model_copy(update={"settings_key": SETTINGS}) for cell in manifest.cells]
    rubric, config = plan.benchmark.rubric, plan.benchmark.spec.judge
    record = None
    if rubric is not None and config is not None and judge is not None:
        record = manifest.judge or JudgeRecord(
            model="someone", key=judge, rubric_name=rubric.name, rubric_sha256=rubric.sha256
        )
        record = record.model_copy(update={"key": judge, "repeats": config.repeats})
    features = manifest.features or EXTRACTOR
    models = dict.fromkeys(plan.benchmark.models, MODEL) | manifest.models
    known = {"cells": cells, "judge": record, "features": features, "models": models}
    return manifest.model_copy(update=known | sections)


def write_manifest(
    plan: Plan, folder: RunFolder, judge: str | None = KEY, **sections: Any
) -> RunManifest:
    """Write the manifest of a run whose images `write_images` wrote, judged under a key."""
    folder.write_manifest(manifest_of(plan, folder, judge, **sections))
    return folder.read_manifest()


def tables(plan: Plan, folder: RunFolder, judge: str | None = KEY) -> CountsRecord:
    """Write manifest and tables of a run whose images were judged under a key."""
    manifest = write_manifest(plan, folder, judge)
    metrics = list(plan.benchmark.diversity.values())
    counts = write_tables(manifest, folder, metrics, plan.benchmark.published)
    written = checksums(folder, manifest)
    folder.update_manifest(counts=counts, checksums=written, are_tables_outdated=False)
    return counts


def accept_tables(folder: RunFolder) -> None:
    """Record the tables of a run as they are now."""
    folder.update_manifest(checksums=checksums(folder, folder.read_manifest()))


def judge_plan(
    plan: Plan, folder: RunFolder, judge: Judge, progress: Progress | None = None
) -> JudgeRecord:
    """Judge the images of a plan that `write_images` wrote."""
    manifest = manifest_of(plan, folder)
    return judge_images(judge_settings(plan), manifest, folder, judge, progress or Progress())


def extract(plan: Plan, folder: RunFolder) -> FeaturesRecord:
    """Extract the features of a plan's images that `write_images` wrote, and record it."""
    manifest = manifest_of(plan, folder)
    settings = feature_settings(plan)
    record = feature_stage.extract_features(settings, manifest, folder, Progress())
    folder.write_manifest(manifest.model_copy(update={"features": record}))
    return record


def write_images(plan: Plan, folder: RunFolder, missing: Iterable[Place] = ()) -> None:
    """Write all images of a plan but the missing."""
    absent = set(missing)
    for cell in plan.cells:
        dataset = ImageDataset.open(folder, cell, SETTINGS)
        jobs = [job for job in plan.jobs if (cell.id, job.prompt_index, job.seed) not in absent]
        places = [(cell.id, job.prompt_index, job.seed) for job in jobs]
        dataset.write(jobs, map(picture, places), cell.nfe, [{}] * len(jobs))


def replace_image(folder: RunFolder, cell: str, file: str, data: bytes) -> None:
    """Replace an image file, and its hash in the metadata."""
    (folder.images(cell) / file).write_bytes(data)
    rows = read_jsonl(folder.metadata(cell))
    for row in rows:
        if row["file_name"] == file:
            row["sha256"] = sha256_bytes(data)
    write_jsonl(folder.metadata(cell), rows)


def write_features(plan: Plan, folder: RunFolder, vectors: Callable[[Place], Any]) -> None:
    """Write features; a place whose vector is None has none."""
    manifest = manifest_of(plan, folder)
    for cell in manifest.cells:
        images = cell_images(manifest, cell, folder)
        known, failed = {}, {}
        for image in images:
            vector = vectors((cell.id, image.prompt_index, image.seed))
            if image.problem or image.sha256 is None or vector is None:
                failed[image.id] = image.problem or "corrupt_image"
            else:
                known[image.id, image.sha256] = np.asarray(vector, dtype=np.float32)
        feature_stage._write(folder.features(cell.id), images, known, failed, "extractor")


def write_judgements(
    plan: Plan, folder: RunFolder, scores: Callable[[Place], Mapping[str, float] | str | None]
) -> None:
    """Write judgements: scores by key of the reply, a reason, or None for not judged."""
    rubric = plan.benchmark.rubric
    assert rubric is not None
    manifest = manifest_of(plan, folder)
    for cell in manifest.cells:
        rows = []
        for image in cell_images(manifest, cell, folder):
            given = scores((cell.id, image.prompt_index, image.seed))
            if image.problem or given is None:
                continue
            text, reason = (None, given) if isinstance(given, str) else (json.dumps(given), None)
            reply = Reply(text, reason, False, "someone", 0.1)
            rows.append(judgement(image, reply, rubric, KEY))
        JudgementFile(folder.judgements(cell.id)).append(rows)


def vector(place: Place, dim: int = 6) -> np.ndarray:
    """A feature vector of a place, around one that all have."""
    cell, prompt_index, seed = place
    rng = np.random.default_rng([*cell.encode(), prompt_index, seed])
    return np.asarray(1.0 + rng.normal(size=dim), dtype=np.float32)


def scored(
    plan: Plan,
    folder: RunFolder,
    missing: Iterable[Place] = (),
    vectors: Callable[[Place], Any] = vector,
    scores: Callable[[Place], Mapping[str, float] | str | None] | None = None,
) -> RunFolder:
    """Write images, features, judgements and tables of a plan; see the writers of each."""
    assert plan.benchmark.rubric is not None
    keys = [score.key for score in plan.benchmark.rubric.scores.values()]

    def usual_scores(place: Place) -> dict[str, float]:
        return {key: float((len(place[0]) + place[1] + place[2]) % 6) for key in keys}

    write_images(plan, folder, missing)
    write_features(plan, folder, vectors)
    write_judgements(plan, folder, scores or usual_scores)
    tables(plan, folder)
    return folder
