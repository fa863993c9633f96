"""The stage that judges: images in, a judgement of each out, written as it comes."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from autolora_eval._devices import choose_device
from autolora_eval._files import Json, content_hash
from autolora_eval._progress import Advance, Progress
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import CellImage, cell_images
from autolora_eval.scoring.judgement_store import (
    JudgementCache,
    JudgementFile,
    JudgementKey,
    JudgementStatus,
    cache_folder,
    reply_key,
)
from autolora_eval.scoring.judges.base import Judge, Reply, Request
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.launched_identity import launched_identity
from autolora_eval.scoring.reply import MAX_REPLY, expected_scores, parse_reply
from autolora_eval.scoring.rubric import Rubric

# What decides neither question nor reply, only how the judge is reached, and what of a launched
# server is told by `launched_identity`.
_WAYS_TO_REACH = frozenset(
    (
        *("rubric", "base_url", "api_key_env", "concurrency", "timeout", "max_retries", "repeats"),
        *("give_up_after", "launch", "vllm_python", "launch_command", "launch_args"),
        *("launch_timeout", "cache"),
    )
)
MAX_NAME = 200  # letters of a model's name that are kept
NOT_JUDGED = JudgementStatus(final=False, scored=False, attempts=0)


class PendingJudgement(NamedTuple):
    """A judgement that is still to be had."""

    cell: Cell
    image: CellImage
    repeat: int
    attempts: int


def open_judge(plan: Plan, base_urls: list[str] | None = None) -> Judge:
    """Return the benchmark's judge; nothing is loaded or asked before its first question.

    Args:
        plan: whose judge.
        base_urls: where it is served, if not where the benchmark says.
    """
    spec, rubric = _spec(plan), _rubric(plan)
    if spec.backend == "openai":
        from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

        return OpenAIJudge(spec, rubric, base_urls)
    from autolora_eval.scoring.judges.transformers_judge import TransformersJudge

    source = plan.benchmark.judge
    assert source is not None
    return TransformersJudge(spec, source, choose_device(plan.benchmark.spec.device), rubric)


def judge_images(plan: Plan, folder: RunFolder, judge: Judge, progress: Progress) -> Json:
    """Judge every image of the plan that has no judgement by this judge and rubric yet.

    Args:
        plan: whose images.
        folder: where images are, and judgements go.
        judge: who judges.
        progress: is told of each judgement.

    Returns:
        What judge and rubric are and how much was done, for the manifest.

    Raises:
        AutoLoRAEvalError: the judge is gone. What it judged so far is kept.
    """
    what, rubric, spec = judge.identity(), _rubric(plan), _spec(plan)
    key = judge_key(what, rubric)
    counts: Counter[str] = Counter(done=0, reused=0, cached=0, unscored=0)
    todo = deque(_todo(plan, folder, key, counts))
    with contextlib.closing(JudgementCache(cache_folder() if spec.cache else None)) as cache:
        work = _Judging(folder, rubric, key, cache, counts)
        with progress.task("Judging", len(todo)) as advance:
            try:
                for group in judge.replies(work.uncached(todo, advance)):
                    work.write(group)
                    advance(len(group), f"{counts['unscored']} unscored")
            finally:
                work.flush()
                for cell in plan.cells:
                    ids = (job.file for job in plan.jobs)
                    JudgementFile(folder.judgements(cell.id)).compact(ids)
    if cache.problem:
        progress.say(f"the cache of earlier runs' replies was left out: {cache.problem}")
    return {
        "model": spec.model,
        **what,
        **judge.facts(),
        "rubric_name": rubric.name,
        "rubric_sha256": rubric.sha256,
        "repeats": spec.repeats,
        "key": key,
        "request_key": request_key(plan),
        **({"cache_problem": cache.problem} if cache.problem else {}),
        **counts,
    }


def completed_judging(plan: Plan, folder: RunFolder) -> Json | None:
    """Return the manifest's account of a server's judging that is complete, or None.

    With it nothing need be asked, so that a finished run needs no server. A judge in this process
    is looked at in any case, since its files may have changed.
    """
    if plan.benchmark.rubric is None or _spec(plan).backend != "openai":
        return None
    recorded: Json = folder.read_manifest().get("judge") or {}
    if recorded.get("request_key") != request_key(plan):
        return None
    counts: Counter[str] = Counter(done=0, reused=0, cached=0, unscored=0)
    if any(True for _ in _todo(plan, folder, recorded["key"], counts)):
        return None
    return {**recorded, **counts}


def request_key(plan: Plan) -> str:
    """Return the content key of what the benchmark asks of a judge, whoever answers."""
    settings = _spec(plan).model_dump(mode="json", exclude=set(_WAYS_TO_REACH))
    launched = launched_identity(_spec(plan))
    return content_hash({**settings, **launched, "rubric": _rubric(plan).sha256})


def judge_key(what: Json, rubric: Rubric) -> str:
    """Return the content key of all that decides a judgement but the image and its prompt."""
    identity = dict(what.get("identity", {}))
    if identity.get("kind") != "hub":
        identity.pop("name", None)
    return content_hash({**what, "identity": identity, "rubric": rubric.sha256})


def judgements_by_image(path: Path, key: str) -> dict[tuple[str, str | None], list[Json]]:
    """Return the judgements of this judge and rubric by (image id, SHA-256), in order of repeat.

    Those whose call failed, which a later run asks again, are among them.

    Args:
        path: a cell's judgements.
        key: of judge and rubric.
    """
    found: dict[tuple[str, str | None], dict[int, Json]] = {}
    for row in JudgementFile(path).rows(key):
        repeats = found.setdefault((row["image_id"], row["sha256"]), {})
        repeats[int(row.get("repeat", 0))] = row
    return {image: [rows[n] for n in sorted(rows)] for image, rows in found.items()}


def judgement(image: CellImage, reply: Reply, rubric: Rubric, key: str, repeat: int = 0) -> Json:
    """Return one row of a cell's judgements."""
    scores, reason, raw, expected = None, reply.reason, None, None
    if reply.text is not None:
        raw = _writable(reply.text)
        verdict = parse_reply(raw, rubric)
        scores, reason = verdict.scores, verdict.reason
        if scores is None and reply.truncated:
            reason = "truncated"
        if scores is not None and reply.tokens:
            expected = expected_scores(raw, reply.tokens, rubric)
    return {
        "image_id": image.id,
        "sha256": image.sha256,
        "prompt": image.prompt,
        "seed": image.seed,
        "repeat": repeat,
        "scores": scores,
        "expected": expected,
        "reason": reason,
        "raw": None if raw is None else raw[:MAX_REPLY],
        "model": _writable(reply.model)[:MAX_NAME],
        "latency_seconds": round(reply.latency, 4),
        "image": reply.sent,
        "cached": False,
        "judge_key": key,
        "attempt": reply.attempts,
    }


def _writable(text: str) -> str:
    """Return a text without half surrogate pairs, which JSON can hold, and a file cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _todo(
    plan: Plan, folder: RunFolder, key: str, counts: Counter[str]
) -> Iterator[PendingJudgement]:
    """Yield what is not judged yet; count what is."""
    repeats = _spec(plan).repeats
    for cell in plan.cells:
        known = JudgementFile(folder.judgements(cell.id)).known(key)
        for image in cell_images(plan, cell, folder):
            for repeat in range(repeats):
                found = known.get(JudgementKey(image.id, image.sha256, repeat).digest, NOT_JUDGED)
                if found.final:
                    counts["reused"] += 1
                    counts["unscored"] += not found.scored
                else:
                    yield PendingJudgement(cell, image, repeat, found.attempts)


@dataclass
class _Judging:
    """Writes what comes; takes from the cache what is there."""

    folder: RunFolder
    rubric: Rubric
    key: str
    cache: JudgementCache
    counts: Counter[str]

    def __post_init__(self) -> None:
        self._from_cache: list[tuple[PendingJudgement, Json]] = []

    def uncached(self, todo: deque[PendingJudgement], advance: Advance) -> Iterator[Request]:
        """Yield a request for each judgement that no earlier run has had; empties `todo`."""
        while todo:
            item = todo.popleft()
            question = self.rubric.question(item.image.prompt)
            row = self._cached(item)
            if row is None:
                yield Request(item.image.path, question, item.repeat, item)
                continue
            self._from_cache.append((item, row))
            advance(1, f"{self.counts['unscored']} unscored")
            if len(self._from_cache) >= 256:
                self.flush()

    def write(self, group: Sequence[tuple[Request, Reply]]) -> None:
        """Write replies, durably, and keep them in the cache."""
        rows, kept = [], []
        for request, reply in group:
            item = request.tag
            assert isinstance(item, PendingJudgement)
            row = judgement(item.image, reply, self.rubric, self.key, item.repeat)
            rows.append((item, row | {"attempt": item.attempts + reply.attempts}))
            whole = reply.text is not None and len(reply.text) <= MAX_REPLY
            if whole and item.image.sha256 is not None:
                kept.append((self._cache_key(item), row))
        self._append(rows)
        self.counts["done"] += len(rows)
        self.cache.put((key, {name: row[name] for name in _KEPT}) for key, row in kept)

    def flush(self) -> None:
        """Write what came from the cache."""
        self._append(self._from_cache)
        self.counts["cached"] += len(self._from_cache)
        self._from_cache = []

    def _append(self, rows: Sequence[tuple[PendingJudgement, Json]]) -> None:
        by_cell: dict[str, list[Json]] = {}
        for item, row in rows:
            by_cell.setdefault(item.cell.id, []).append(row)
            self.counts["unscored"] += row["scores"] is None
        for cell, found in by_cell.items():
            JudgementFile(self.folder.judgements(cell)).append(found)

    def _cached(self, item: PendingJudgement) -> Json | None:
        """Return the row of a reply that an earlier run has had to the same question."""
        if item.image.sha256 is None:
            return None
        kept = self.cache.get(self._cache_key(item))
        if kept is None or not kept.keys() >= _KEPT:
            return None
        if not (isinstance(kept["raw"], str) and isinstance(kept["model"], str)):
            return None  # not as `write` has put it there: asked again
        # Read anew: a parser that has learnt since reads old replies too.
        reply = Reply(kept["raw"], None, kept["reason"] == "truncated", kept["model"], 0.0)
        row = judgement(item.image, reply, self.rubric, self.key, item.repeat)
        told = {name: kept[name] for name in ("expected", "latency_seconds", "image")}
        return row | told | {"cached": True, "attempt": item.attempts}

    def _cache_key(self, item: PendingJudgement) -> str:
        assert item.image.sha256 is not None
        question = self.rubric.question(item.image.prompt)
        return reply_key(self.key, item.image.sha256, question, item.repeat)


_KEPT = frozenset(("raw", "reason", "expected", "model", "latency_seconds", "image"))


def _spec(plan: Plan) -> JudgeConfig:
    spec = plan.benchmark.spec.judge
    assert spec is not None
    return spec


def _rubric(plan: Plan) -> Rubric:
    rubric = plan.benchmark.rubric
    assert rubric is not None
    return rubric
