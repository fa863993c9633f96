"""Scoring during generation: finished images are scored while others are made.

A server judges, and another process extracts features, so generation keeps the random numbers,
default precision and working folder of this process to itself.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from autolora_eval._devices import choose_device, choose_dtype
from autolora_eval._progress import Progress
from autolora_eval.config.gpu_memory import RESERVE, model_memory
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import feature_settings
from autolora_eval.generation.model_on_device import ModelOnDevice, card_bytes, room_bytes
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import FeaturesRecord, JudgeRecord
from autolora_eval.scoring.features import (
    Batch,
    Extracted,
    FeatureMaker,
    FeatureSettings,
    extract_whole_batches,
)
from autolora_eval.scoring.judgement_store import JudgementKey
from autolora_eval.scoring.judging import JudgeSettings, PendingJudgement, judge_images

if TYPE_CHECKING:
    from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

# Between searches for new images. A run that has nothing to make ends before the first one.
PAUSE_SECONDS = 5.0


class _Scorer(Protocol):
    def cancel(self) -> None: ...

    def close(self) -> None: ...


S = TypeVar("S", bound=_Scorer)
R = TypeVar("R", FeaturesRecord, JudgeRecord)


class Background(ABC, Generic[S]):
    """Scores new images of a run in a thread, from `start` to the end of the block.

    The scores are stored as their stage stores them. The stage then finds them and makes the rest.
    A failure only ends the thread: the stage tries again, and reports the problem.

    Attributes:
        counts: the scores that were made here, by their name in the stage's record.
        seconds: how long it took.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        # Absolute: third-party code runs meanwhile, which may change the working folder.
        self._folder = RunFolder(folder.path.absolute())
        self._scorer: S | None = None
        self._seen: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def _open(self) -> S | None:
        """Return the scorer; None if images are not scored during generation."""

    @abstractmethod
    def _score(self, scorer: S, manifest: RunManifest) -> None:
        """Score the new images of some cells."""

    def start(self) -> None:
        """Start the thread; a second call does nothing. The manifest must have the settings."""
        if self._thread.ident is None:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and wait for work in flight; after an error, cancel it."""
        self._stopped.set()
        if error is not None and self._scorer is not None:
            self._scorer.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    def added_to(self, started: float, record: R) -> tuple[float, R]:
        """Return the stage's start and record, including what was made here."""
        counts = {name: getattr(record, name) + n for name, n in self.counts.items()}
        counts["reused"] = max(0, record.reused - self.counts.total())
        return started - self.seconds, record.model_copy(update=counts)

    def _run(self) -> None:
        try:
            if self._stopped.wait(PAUSE_SECONDS) or (scorer := self._open()) is None:
                return
            with closing(scorer):
                self._scorer = scorer
                while not self._stopped.is_set():
                    began = time.thread_time()
                    self._score_new(scorer)
                    # Each time, images of a cell are hashed again: use at most 10% of a core.
                    self._stopped.wait(max(PAUSE_SECONDS, 9 * (time.thread_time() - began)))
        except Exception:  # the stage tries again, and reports the problem
            return

    def _score_new(self, scorer: S) -> None:
        """Score the images of the cells that have new ones."""
        manifest, started = self._folder.read_manifest(), time.monotonic()
        files = {cell.id: self._folder.metadata(cell.id) for cell in manifest.cells}
        changed = {name: file.stat().st_mtime_ns for name, file in files.items() if file.is_file()}
        new = [cell for cell in manifest.cells if self._seen.get(cell.id) != changed.get(cell.id)]
        if new:
            self._seen = changed
            self._score(scorer, manifest.model_copy(update={"cells": new}))
            self.seconds += time.monotonic() - started


class BackgroundJudging(Background["OpenAIJudge"]):
    """Has a server judge new images.

    Attributes:
        settings: how images are judged; None if they are not judged during generation.
        record: the judge's record so far; None if no image was judged.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self.settings: JudgeSettings | None = None
        self.record: JudgeRecord | None = None
        self._asked: set[tuple[str, JudgementKey]] = set()

    def noted_in(self, manifest: RunManifest) -> RunManifest:
        """Return the manifest with the judge's record, if there is one."""
        return manifest.model_copy(update={"judge": self.record}) if self.record else manifest

    def _open(self) -> OpenAIJudge | None:
        if self.settings is None:
            return None
        from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

        return OpenAIJudge(self.settings.config, self.settings.rubric)

    def _score(self, scorer: OpenAIJudge, manifest: RunManifest) -> None:
        assert self.settings is not None
        record = judge_images(
            self.settings, manifest, self._folder, scorer, Progress(), self._not_asked
        )
        self.record = record
        self.counts.update(done=record.done, cached=record.cached)

    def _not_asked(self, item: PendingJudgement) -> bool:
        """Return True for a question's first time: only the stage repeats failed calls."""
        key = item.cell, JudgementKey(item.image.id, item.image.sha256, item.repeat)
        if self._stopped.is_set() or key in self._asked:
            return False
        self._asked.add(key)
        return True


class BackgroundFeatures(Background["ExtractorProcess"]):
    """Has another process extract the features of new images.

    Attributes:
        settings: how features are extracted; None if they are not extracted during generation.
    """

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        super().__init__(folder)
        self.settings: FeatureSettings | None = None
        self._plan = plan

    def _open(self) -> ExtractorProcess | None:
        """Start the process, unless this is a CPU, which it would slow down, or a full GPU."""
        if self.settings is None or not (share := free_gpu_share(self._plan)):
            return None
        self._key = self.settings.key
        return ExtractorProcess(self._plan.benchmark.file, self._key, share)

    def _score(self, scorer: ExtractorProcess, manifest: RunManifest) -> None:
        assert self.settings is not None
        size, stopped = self.settings.batch_size, self._stopped.is_set
        for n in extract_whole_batches(scorer, self._key, size, manifest, self._folder, stopped):
            self.counts.update(done=n)


class ExtractorProcess:
    """Extracts features in a new process, which ends with this one, however this one ends.

    A process of `multiprocessing` would run the user's script a second time.

    Args:
        benchmark: the benchmark file.
        key: the extractor's.
        gpu_share: the share of a CUDA device's memory that it may take, at most 1.
    """

    def __init__(self, benchmark: Path, key: str, gpu_share: float) -> None:
        code = f"import sys; from {__name__} import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            # -P: a module in the working folder must not hide a library
            [sys.executable, "-P", "-c", code, str(benchmark.resolve()), key, str(gpu_share)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C must reach only this process
        )

    def __call__(self, batch: Batch) -> Extracted:
        """Return the result of a batch.

        Raises:
            EOFError, OSError: if the process has failed or was cancelled.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(batch, self._process.stdin)
        self._process.stdin.flush()
        extracted: Extracted = pickle.load(self._process.stdout)
        return extracted

    def cancel(self) -> None:
        """End the process from another thread, in which a call then raises."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self.cancel()
        with suppress(OSError), self._process:  # waits for it, and closes the pipes
            pass


def serve(benchmark: str, key: str, gpu_share: str) -> None:
    """Extract the batches of the process that started this one, until it closes the pipe."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries must not get into the results
    settings = feature_settings(make_plan(load_benchmark(benchmark)))
    if settings.key != key:
        return  # a file has changed since the process was started
    if (device := choose_device(settings.device)).startswith("cuda"):
        limit_memory(device, float(gpu_share))
    extract = FeatureMaker(settings)
    with suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(extract(pickle.load(sys.stdin.buffer)), out)
            out.flush()


def limit_memory(device: str, share: float) -> None:
    """Let this process take at most a share of a CUDA device's memory."""
    import torch

    # The index, or None for the current device: 'cuda' without an index is refused here.
    torch.cuda.set_per_process_memory_fraction(share, torch.device(device).index)


def free_gpu_share(plan: Plan) -> float:
    """Return the share of the GPU's memory that generation leaves free; 0 if it is not known.

    It is known for guiders on a CUDA device whose models stay there. A judge's server may use a
    part of the same device.
    """
    spec = plan.benchmark.spec
    device = choose_device(spec.device)
    if not device.startswith("cuda") or any(cell.method.kind == "sampler" for cell in plan.cells):
        return 0.0
    dtype = choose_dtype(spec.dtype, device)
    peak = 0
    for model in plan.benchmark.models.values():
        memory = model_memory(model, dtype)
        if memory is None or model.spec.offload != "none":
            return 0.0
        batching = ModelOnDevice.of(plan, model, device, dtype).guidance_batching
        peak = max(peak, memory.batched(batching).peak(spec.batch_size))
    room = room_bytes(device) - peak - 2 * RESERVE  # one for each process
    return max(0.0, room / card_bytes(device))
