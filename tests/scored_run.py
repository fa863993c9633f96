"""A run folder with chosen features and scores, written by the product's own writers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from autolora_eval._pipeline import state_plan
from autolora_eval.analysis.tables import write_tables
from autolora_eval.config.plan import Plan
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images
from autolora_eval.scoring import features as feature_stage
from autolora_eval.scoring.judgement_store import JudgementFile
from autolora_eval.scoring.judges.base import Reply
from autolora_eval.scoring.judging import judgement

KEY = "judge-and-rubric"
Place = tuple[str, int, int]  # cell, place of the prompt, seed


def picture(place: Place, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture that no other place has."""
    cell, prompt_index, seed = place
    rng = np.random.default_rng([*cell.encode(), prompt_index, seed])
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def write_images(plan: Plan, folder: RunFolder, missing: Iterable[Place] = ()) -> None:
    """Write all images of a plan but the missing."""
    absent = set(missing)
    for cell in plan.cells:
        dataset = ImageDataset.open(folder, cell, "settings")
        jobs = [job for job in plan.jobs if (cell.id, job.prompt_index, job.seed) not in absent]
        places = [(cell.id, job.prompt_index, job.seed) for job in jobs]
        dataset.write(jobs, map(picture, places), cell.nfe, [{}] * len(jobs))


def write_features(plan: Plan, folder: RunFolder, vectors: Callable[[Place], Any]) -> None:
    """Write features; a place whose vector is None has none."""
    for cell in plan.cells:
        images = cell_images(plan, cell, folder)
        known, failed = {}, {}
        for image in images:
            vector = vectors((cell.id, image.prompt_index, image.seed))
            if image.sha256 is None or vector is None:
                failed[image.id] = "missing_image" if image.sha256 is None else "corrupt_image"
            else:
                known[image.id, image.sha256] = np.asarray(vector, dtype=np.float32)
        feature_stage._write(folder.features(cell.id), images, known, failed, "extractor")


def write_judgements(
    plan: Plan, folder: RunFolder, scores: Callable[[Place], Mapping[str, float] | str | None]
) -> None:
    """Write judgements: scores by key of the reply, a reason, or None for not judged."""
    rubric = plan.benchmark.rubric
    assert rubric is not None
    for cell in plan.cells:
        rows = []
        for image in cell_images(plan, cell, folder):
            given = scores((cell.id, image.prompt_index, image.seed))
            if image.sha256 is None:
                given = "missing_image"
            if given is None:
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


def scored(plan: Plan, folder: RunFolder) -> RunFolder:
    """Write images, features, judgements and tables of a plan."""
    assert plan.benchmark.rubric is not None
    keys = [score.key for score in plan.benchmark.rubric.scores.values()]
    state_plan(plan, folder, "a sweep", {})
    write_images(plan, folder)
    write_features(plan, folder, vector)
    write_judgements(
        plan, folder, lambda p: {key: float((len(p[0]) + p[1] + p[2]) % 6) for key in keys}
    )
    write_tables(plan, folder, KEY)
    return folder
