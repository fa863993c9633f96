"""The stage that judges: images in, one judgement an image out, each written as it comes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from autolora_eval.devices import choose_device
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json, content_key, read_jsonl, write_jsonl
from autolora_eval.images import CellImage, cell_images
from autolora_eval.plan import Plan
from autolora_eval.progress import Advance, Progress
from autolora_eval.rubric import Rubric
from autolora_eval.run_folder import RunFolder
from autolora_eval.scoring.judges.base import Judge, Reply, Request, is_transient
from autolora_eval.scoring.reply import parse_reply


def open_judge(plan: Plan) -> Judge:
    """Return the benchmark's judge; nothing is loaded or asked before its first question."""
    spec = plan.benchmark.spec.judge
    assert spec is not None
    if spec.backend == "openai":
        from autolora_eval.scoring.judges.openai_server import OpenAIJudge

        return OpenAIJudge(spec)
    from autolora_eval.scoring.judges.in_process import TransformersJudge

    assert plan.benchmark.judge is not None
    return TransformersJudge(spec, plan.benchmark.judge, choose_device(plan.benchmark.spec.device))


def judge_images(plan: Plan, folder: RunFolder, judge: Judge, progress: Progress) -> Json:
    """Judge every image of the plan that has no judgement by this judge and rubric yet.

    Args:
        plan: whose images.
        folder: where images are, and judgements go.
        judge: who judges.
        progress: is told of each image.

    Returns:
        What judge and rubric are and how much was done, for the manifest.
    """
    rubric = plan.benchmark.rubric
    assert rubric is not None
    what = judge.identity()
    key = judge_key(what, rubric)
    spec = plan.benchmark.spec.judge
    assert spec is not None
    manifest: Json = {"model": spec.model, **what, "rubric_name": rubric.name}
    manifest |= {"rubric_sha256": rubric.sha256, "key": key, "done": 0, "reused": 0, "unscored": 0}
    with progress.task("Judging", plan.n_images) as advance:
        for cell in plan.cells:
            path = folder.judgements(cell.id)
            images = cell_images(plan, cell, folder)
            known = final_judgements(path, key)
            todo = [image for image in images if (image.id, image.sha256) not in known]
            advance(len(images) - len(todo))
            _judge_cell(judge, rubric, key, todo, path, advance)
            _rewrite(path, images)
            rows = final_judgements(path, key, transient=True)
            manifest["done"] += len(todo)
            manifest["reused"] += len(images) - len(todo)
            manifest["unscored"] += sum(
                rows[image.id, image.sha256]["scores"] is None for image in images
            )
    return manifest


def judge_key(what: Json, rubric: Rubric) -> str:
    """Return the content key of all that decides a judgement but the image and its prompt."""
    identity = dict(what.get("identity", {}))
    if identity.get("kind") != "hub":
        identity.pop("reference", None)
    return content_key({**what, "identity": identity, "rubric": rubric.sha256})


def final_judgements(
    path: Path, key: str, *, transient: bool = False
) -> dict[tuple[str, str | None], Json]:
    """Return the judgements of this judge and rubric by (image id, SHA-256 of the image).

    Args:
        path: a cell's judgements.
        key: of judge and rubric.
        transient: also those whose call failed, which a later run asks again.
    """
    return {
        (row["image_id"], row["sha256"]): row
        for row in read_jsonl(path)
        if row["judge_key"] == key and (transient or not is_transient(row["reason"]))
    }


def judgement(image: CellImage, reply: Reply, rubric: Rubric, key: str) -> Json:
    """Return one row of a cell's judgements."""
    scores, reason, raw = None, reply.reason, None
    if reply.text is not None:
        # Half a surrogate pair, which JSON can hold, is no text that a file can.
        raw = reply.text.encode("utf-8", "replace").decode("utf-8")
        verdict = parse_reply(raw, rubric)
        scores, reason = verdict.scores, verdict.reason
        if scores is None and reply.truncated:
            reason = "truncated"
    return {
        "image_id": image.id,
        "sha256": image.sha256,
        "prompt": image.prompt,
        "seed": image.seed,
        "scores": scores,
        "reason": reason,
        "raw": raw,
        "model": reply.model,
        "latency_seconds": round(reply.latency, 4),
        "judge_key": key,
    }


def _judge_cell(
    judge: Judge,
    rubric: Rubric,
    key: str,
    images: Sequence[CellImage],
    path: Path,
    advance: Advance,
) -> None:
    failed = final_judgements(path, key, transient=True)
    for start in range(0, len(images), judge.batch_size):
        batch = images[start : start + judge.batch_size]
        requests = [Request(image.path, rubric.question(image.prompt)) for image in batch]
        replies = judge.ask(requests)
        if len(replies) != len(batch):
            raise AutoLoRAEvalError(f"the judge gave {len(replies)} replies to {len(batch)} images")
        rows = [
            judgement(image, reply, rubric, key)
            | {"attempt": 1 + failed.get((image.id, image.sha256), {}).get("attempt", 0)}
            for image, reply in zip(batch, replies, strict=True)
        ]
        _append(path, rows)
        advance(len(batch))


def _append(path: Path, rows: Iterable[Json]) -> None:
    """Append rows durably: a killed run repeats no finished call.

    A last line that a killed writer left torn is ended first, so that it spoils no new row.
    """
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.truncate(_end_of_last_line(path))
        for row in rows:
            stream.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def _end_of_last_line(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _rewrite(path: Path, images: Sequence[CellImage]) -> None:
    """Put the rows into the order of the plan, the last of each key only."""
    latest = {(row["image_id"], row["sha256"], row["judge_key"]): row for row in read_jsonl(path)}
    place = {image.id: index for index, image in enumerate(images)}
    rows = sorted(latest.values(), key=lambda row: place.get(row["image_id"], len(place)))
    if rows != read_jsonl(path):
        write_jsonl(path, rows)
