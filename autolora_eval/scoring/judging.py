"""The judging stage: one judgement for each image, written as replies arrive."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from autolora_eval._devices import choose_device, free_memory
from autolora_eval._files import Json, cache_folder, content_hash, require_space
from autolora_eval._progress import Advance, Progress
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import CellImage, cell_images
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import JudgeRecord
from autolora_eval.scoring.judge import Judge, Reply, Request
from autolora_eval.scoring.judgement_store import (
    JudgementCache,
    JudgementFile,
    JudgementKey,
    JudgementStatus,
    reply_key,
)
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.reply import MAX_REPLY, expected_scores, parse_reply
from autolora_eval.scoring.rubric import Question, Rubric
from autolora_eval.sources.identity import identity
from autolora_eval.sources.model_source import Source

if TYPE_CHECKING:
    from autolora_eval.scoring.judges.transformers_judge import TransformersJudge

# Settings that influence neither question nor reply, only how the judge is reached. The arguments
# of a launched server are covered by `launched_identity`.
_CONNECTION_SETTINGS = frozenset(
    (
        *("rubric", "base_url", "api_key_env", "concurrency", "timeout", "max_retries", "repeats"),
        *("give_up_after", "launch", "vllm_python", "launch_command", "launch_args"),
        *("launch_timeout", "cache"),
    )
)
# Increased when questions or the parsing of replies change, so that finished judging is repeated.
VERSION = 3
MAX_MODEL_NAME = 200  # characters kept of a model's name
# What the record of the judge has a field for; the rest goes to its `settings`.
_RECORDED = ("model", "identity", "temperature", "constraint", "served_by", "server_version")
# What the cache keeps of a judgement.
_CACHED = frozenset(("raw", "reason", "expected", "model", "latency_seconds", "image"))
NOT_JUDGED = JudgementStatus(final=False, scored=False, attempts=0)


class PendingJudgement(NamedTuple):
    """A judgement that is still missing."""

    cell: str
    image: CellImage
    repeat: int
    attempts: int


@dataclass(frozen=True)
class JudgeSettings:
    """How images are judged.

    Attributes:
        config: the benchmark's `judge`.
        rubric: the rubric.
        source: the model of an in-process judge; None for a server's.
        device: device of an in-process judge: `auto` or a torch device.
    """

    config: JudgeConfig
    rubric: Rubric
    source: Source | None = None
    device: str = "auto"

    @property
    def request_key(self) -> str:
        """The content hash of what the benchmark asks for, independent of the server."""
        asked: Json = self.config.model_dump(mode="json", exclude=set(_CONNECTION_SETTINGS))
        if self.config.launch:
            from autolora_eval.scoring.judges.vllm_command import launched_identity

            asked |= launched_identity(self.config)
        if self.config.backend == "transformers" and self.source is not None:
            device = choose_device("auto") if self.device == "auto" else self.device
            asked |= {"identity": identity(self.source), "device": device}
        return content_hash(asked | {"rubric": self.rubric.sha256, "version": VERSION})


@contextlib.contextmanager
def served(
    config: JudgeConfig, log: Path, say: Callable[[str], None]
) -> Iterator[list[str] | None]:
    """Serve the judge while the block runs, if the benchmark asks for it; its output goes to `log`.

    Yields:
        The server's address in a list; None if no server is launched.
    """
    if not config.launch:
        yield None
        return
    from autolora_eval.scoring.judges.vllm_server import launched_server

    free_memory()  # of generation and features, so that the server can use it
    with launched_server(config, log, say) as base_url:
        yield [base_url]


def open_judge(settings: JudgeSettings, base_urls: list[str] | None = None) -> Judge:
    """Return the judge. Models are loaded and servers called at the first question.

    The addresses are by default those of the benchmark.
    """
    if settings.config.backend == "openai":
        from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

        return OpenAIJudge(settings.config, settings.rubric, base_urls)
    return transformers_judge(settings)


def transformers_judge(settings: JudgeSettings) -> TransformersJudge:
    """Return the judge in this process. Its model is loaded at the first question."""
    from autolora_eval.scoring.judges.transformers_judge import TransformersJudge

    assert settings.source is not None
    device = choose_device(settings.device)
    return TransformersJudge(settings.config, settings.source, device, settings.rubric)


def judge_missing(
    settings: JudgeSettings,
    manifest: RunManifest,
    folder: RunFolder,
    progress: Progress,
    opened: Callable[[JudgeSettings, list[str] | None], Judge] = open_judge,
) -> JudgeRecord:
    """Judge as `judge_images` does; launch and open the judge only if an image needs it."""
    if judged := completed_judging(settings, manifest, folder):
        return judged
    with (
        served(settings.config, folder.judge_log, progress.say) as urls,
        contextlib.closing(opened(settings, urls)) as judge,
    ):
        return judge_images(settings, manifest, folder, judge, progress)


def judge_images(
    settings: JudgeSettings,
    manifest: RunManifest,
    folder: RunFolder,
    judge: Judge,
    progress: Progress,
    wanted: Callable[[PendingJudgement], bool] = lambda item: True,
) -> JudgeRecord:
    """Judge every image of a run that has no judgement by this judge and rubric yet.

    A question is left out if `wanted` returns False.

    Returns:
        The manifest's section `judge`: identity of judge and rubric, and counts.

    Raises:
        AutoLoRAEvalError: if the judge becomes unavailable. Finished judgements are kept.
    """
    asked, config, rubric = judge.identity(), settings.config, settings.rubric
    key = judge_key(asked, rubric)
    counts: Counter[str] = Counter(done=0, reused=0, cached=0, unscored=0)
    pending = deque(_pending(config.repeats, manifest, folder, key, counts))
    with contextlib.closing(JudgementCache(cache_folder() if config.cache else None)) as cache:
        writer = _JudgementWriter(folder, rubric, key, cache, counts, progress, wanted)
        with progress.task("Judging", len(pending)) as advance:
            try:
                for group in judge.replies(writer.requests(pending, advance)):
                    writer.write(group)
                    advance(len(group), f"{counts['unscored']} unscored")
            finally:
                writer.flush()
                for cell in manifest.cells:
                    ids = (job.file for job in manifest.jobs())
                    JudgementFile(folder.judgements(cell.id)).compact(ids)
    if cache.problem:
        progress.say(f"the cache of earlier replies is not used: {cache.problem}")
    record = _record(settings, {**asked, **judge.facts()}, key)
    return record.model_copy(update={"cache_problem": cache.problem, **counts})


def _record(settings: JudgeSettings, facts: Json, key: str) -> JudgeRecord:
    """Return the record of judge and rubric, without counts."""
    known: Json = {"model": settings.config.model, **facts}
    return JudgeRecord(
        **{name: known.pop(name) for name in _RECORDED if name in known},
        settings=known,
        rubric_name=settings.rubric.name,
        rubric_sha256=settings.rubric.sha256,
        repeats=settings.config.repeats,
        key=key,
        request_key=settings.request_key,
    )


def completed_judging(
    settings: JudgeSettings, manifest: RunManifest, folder: RunFolder
) -> JudgeRecord | None:
    """Return the manifest's section `judge` if every image was judged, else None.

    Asks no server and opens no model.
    """
    recorded, repeats = manifest.judge, settings.config.repeats
    if recorded is None or recorded.request_key != settings.request_key:
        return None
    counts: Counter[str] = Counter(done=0, reused=0, cached=0, unscored=0)
    if next(_pending(repeats, manifest, folder, recorded.key, counts), None) is not None:
        return None
    return recorded.model_copy(update={"repeats": repeats, **counts})


def judge_key(asked: Json, rubric: Rubric) -> str:
    """Return the content hash of all that determines a judgement, except image and prompt."""
    model = dict(asked.get("identity", {}))
    if model.get("kind") != "hub":
        model.pop("name", None)  # a folder is identified by its content
    return content_hash({**asked, "identity": model, "rubric": rubric.sha256})


def judgement(image: CellImage, reply: Reply, rubric: Rubric, key: str, repeat: int = 0) -> Json:
    """Return the row of a judgements file for one reply, which the rubric parses."""
    scores, reason, raw, expected = None, reply.reason, None, None
    if reply.text is not None:
        raw = _encodable(reply.text)
        parsed = parse_reply(raw, rubric, truncated=reply.truncated)
        scores, reason = parsed.scores, parsed.reason
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
        "detail": None if reply.detail is None else _encodable(reply.detail),
        # Complete if it has scores, since the tables parse it again.
        "raw": raw if raw is None or scores is not None else raw[:MAX_REPLY],
        "model": _encodable(reply.model)[:MAX_MODEL_NAME],
        "latency_seconds": round(reply.latency, 4),
        "image": reply.sent,
        "cached": False,
        "judge_key": key,
        "attempt": reply.attempts,
    }


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON may contain but UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _pending(
    repeats: int, manifest: RunManifest, folder: RunFolder, key: str, counts: Counter[str]
) -> Iterator[PendingJudgement]:
    """Yield the missing judgements, and count the existing ones."""
    for cell in manifest.cells:
        status = JudgementFile(folder.judgements(cell.id)).status(key)
        for image in cell_images(manifest, cell, folder):
            if image.problem:  # the tables say why
                counts["unscored"] += repeats
                continue
            for repeat in range(repeats):
                found = status.get(JudgementKey(image.id, image.sha256, repeat), NOT_JUDGED)
                if found.final:
                    counts["reused"] += 1
                    counts["unscored"] += not found.scored
                else:
                    yield PendingJudgement(cell.id, image, repeat, found.attempts)


@dataclass
class _JudgementWriter:
    """Takes replies from the cache or the judge, and writes them to the cells' files."""

    folder: RunFolder
    rubric: Rubric
    key: str
    cache: JudgementCache
    counts: Counter[str]
    progress: Progress
    wanted: Callable[[PendingJudgement], bool]

    def __post_init__(self) -> None:
        self._shown: set[str | None] = set()
        self._from_cache: list[tuple[PendingJudgement, Json]] = []

    def requests(self, pending: deque[PendingJudgement], advance: Advance) -> Iterator[Request]:
        """Yield a request for each judgement that is not in the cache; consumes `pending`."""
        while pending:
            item = pending.popleft()
            if not self.wanted(item):
                continue
            question = self.rubric.question(item.image.prompt)
            row = self._cached(item, question)
            if row is None:
                yield Request(item.image.path, question, item.repeat, item)
                continue
            self._from_cache.append((item, row))
            advance(1, f"{self.counts['unscored']} unscored")
            if len(self._from_cache) >= 256:
                self.flush()

    def write(self, group: Sequence[tuple[Request, Reply]]) -> None:
        """Write replies to disk and store them in the cache."""
        rows, cacheable = [], []
        for request, reply in group:
            item = request.tag
            assert isinstance(item, PendingJudgement)
            row = judgement(item.image, reply, self.rubric, self.key, item.repeat)
            rows.append((item, row | {"attempt": item.attempts + reply.attempts}))
            self._show_detail(row)
            if reply.text is not None and len(reply.text) <= MAX_REPLY:
                kept = {name: row[name] for name in _CACHED}
                cacheable.append((self._cache_key(item, request.question), kept))
        self._append(rows)
        self.counts["done"] += len(rows)
        self.cache.put(cacheable)

    def _show_detail(self, row: Json) -> None:
        """Show the server's message about a failed call, once for each reason."""
        if row["detail"] is not None and row["reason"] not in self._shown:
            self._shown.add(row["reason"])
            self.progress.say(
                f"the judge's server refuses a call ({row['reason']}): {row['detail']}"
            )

    def flush(self) -> None:
        """Write the judgements that were taken from the cache."""
        self._append(self._from_cache)
        self.counts["cached"] += len(self._from_cache)
        self._from_cache = []

    def _append(self, rows: Sequence[tuple[PendingJudgement, Json]]) -> None:
        by_cell: dict[str, list[Json]] = {}
        for item, row in rows:
            by_cell.setdefault(item.cell, []).append(row)
            self.counts["unscored"] += row["scores"] is None
        for cell, found in by_cell.items():
            JudgementFile(self.folder.judgements(cell)).append(found)
        require_space(self.folder.path)

    def _cached(self, item: PendingJudgement, question: Question) -> Json | None:
        """Return the row for a reply of an earlier run to the same question, or None."""
        kept = self.cache.get(self._cache_key(item, question))
        if kept is None or not kept.keys() >= _CACHED:
            return None
        if not (isinstance(kept["raw"], str) and isinstance(kept["model"], str)):
            return None  # damaged: ask again
        # Parse again, since the parser may have improved.
        reply = Reply(kept["raw"], None, kept["reason"] == "truncated", kept["model"], 0.0)
        row = judgement(item.image, reply, self.rubric, self.key, item.repeat)
        measured = {name: kept[name] for name in ("expected", "latency_seconds", "image")}
        return row | measured | {"cached": True, "attempt": item.attempts}

    def _cache_key(self, item: PendingJudgement, question: Question) -> str:
        assert item.image.sha256 is not None
        return reply_key(self.key, item.image.sha256, question, item.repeat)
