"""Judging beside generation: a server judges the images that are there while others are made."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Self

from autolora_eval._progress import Progress
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import JudgeRecord
from autolora_eval.scoring.judgement_store import JudgementKey
from autolora_eval.scoring.judging import JudgeSettings, PendingJudgement, judge_images

if TYPE_CHECKING:
    from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

# Between looks for new images. A run that has nothing to make ends before the first.
PAUSE_SECONDS = 5.0


class BackgroundJudging:
    """Judges new images of a run in a thread, from `start` to the end of the block.

    The judgements are stored as by the judging stage, which finds them and asks for the rest.
    Whatever fails here only ends this: the stage asks again, and reports the problem.

    Args:
        folder: the run folder.

    Attributes:
        settings: how images are judged; None if they are not judged meanwhile.
        record: the judge, as of the last look at the images; None if none was judged.
        done: the judgements that the server gave.
        cached: the judgements that were taken from the cache.
        seconds: how long judging took.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.settings: JudgeSettings | None = None
        self.record: JudgeRecord | None = None
        self.done, self.cached, self.seconds = 0, 0, 0.0
        # The working folder may change: third-party code runs meanwhile.
        self._folder = RunFolder(folder.path.absolute())
        self._judge: OpenAIJudge | None = None
        self._asked: set[tuple[str, JudgementKey]] = set()
        self._seen: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judging", daemon=True)

    def start(self) -> None:
        """Begin, once the manifest has the settings of the images; a second call does nothing."""
        if self.settings is not None and self._thread.ident is None:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ask nothing more, and wait for the calls in flight; after an error, cancel them."""
        self._stopped.set()
        if error is not None and self._judge is not None:
            self._judge.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    def noted_in(self, manifest: RunManifest) -> RunManifest:
        """Return the manifest with the judge that was asked here, if one was."""
        return manifest.model_copy(update={"judge": self.record}) if self.record else manifest

    def added_to(self, started: float, judged: JudgeRecord) -> tuple[float, JudgeRecord]:
        """Return the stage's beginning and record, with what was judged here as a part of it."""
        counts = {
            "done": judged.done + self.done,
            "cached": judged.cached + self.cached,
            "reused": max(0, judged.reused - self.done - self.cached),
        }
        return started - self.seconds, judged.model_copy(update=counts)

    def _run(self) -> None:
        settings = self.settings
        if self._stopped.wait(PAUSE_SECONDS) or settings is None:
            return
        from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

        try:
            with closing(OpenAIJudge(settings.config, settings.rubric)) as judge:
                self._judge = judge
                self._judge_new(settings, judge)
                while not self._stopped.wait(PAUSE_SECONDS):
                    self._judge_new(settings, judge)
        except Exception:  # the judging stage asks again, and says what is wrong
            return

    def _judge_new(self, settings: JudgeSettings, judge: OpenAIJudge) -> None:
        """Judge the images of the cells that have new ones."""
        manifest, started = self._folder.read_manifest(), time.monotonic()
        files = {cell.id: self._folder.metadata(cell.id) for cell in manifest.cells}
        changed = {name: file.stat().st_mtime_ns for name, file in files.items() if file.is_file()}
        new = [cell for cell in manifest.cells if self._seen.get(cell.id) != changed.get(cell.id)]
        if not new:
            return
        self._seen = changed
        some = manifest.model_copy(update={"cells": new})
        record = judge_images(settings, some, self._folder, judge, Progress(), self._not_asked)
        self.record = record
        self.done, self.cached = self.done + record.done, self.cached + record.cached
        self.seconds += time.monotonic() - started

    def _not_asked(self, item: PendingJudgement) -> bool:
        """Return whether to ask: each question once, as a failed call is the stage's to repeat."""
        key = item.cell, JudgementKey(item.image.id, item.image.sha256, item.repeat)
        if self._stopped.is_set() or key in self._asked:
            return False
        self._asked.add(key)
        return True
