"""The code that runs in the processes of a Ray cluster, for the engine `ray`.

The run folder is on the machine that runs the command. Ray carries images to and from the others.
Every batch has the settings of the local engine, and images do not depend on their neighbours: the
bytes are the same. These processes write image files only. The one that runs the command writes the
lists of images: a batch that was lost, or made twice, changes nothing.
"""

from __future__ import annotations

import os
import pickle
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from autolora_eval._devices import free_memory, image_libraries, is_out_of_memory
from autolora_eval._errors import AutoLoRAEvalError, UsageError, release_frames
from autolora_eval._files import Json, content_hash
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.config.stage_inputs import feature_settings, judge_settings
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.model_on_device import ModelOnDevice
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import ImageJob
from autolora_eval.scoring.features import Batch, FeatureMaker
from autolora_eval.scoring.judging import judge_key, transformers_judge

if TYPE_CHECKING:
    from autolora_eval.generation.guider_backend import GuidedModel
    from autolora_eval.generation.sampler_api import SamplerPipeline
    from autolora_eval.generation.sampler_backend import SampledCell
    from autolora_eval.scoring.judge import Reply, Request

# (unit, function that fetches a file of the run folder) → the unit with the fetched files.
WithFiles = Callable[[Any, Callable[[Path], Path]], Any]
# The result of a unit, and its new files for the machine that runs the command.
Done = tuple[Any, dict[str, bytes]]


class Task(NamedTuple):
    """The task of all processes, sent to them as bytes.

    Attributes:
        maker: (plan, run folder, *arguments) → function of a unit of work.
        arguments: as above.
        with_files: fetches the files of a unit; None if units have no files.
        benchmark: the benchmark file.
        limits: `limit_prompts` and `limit_seeds`.
        output: the run folder.
        node: Ray's name of the machine that has it.
        files: the name of the actor `Files` on it.
        directory: the working directory of the command.
        variables: this package's environment variables, without the judge's key.
    """

    maker: Callable[..., Callable[[Any], Any]]
    arguments: tuple[object, ...]
    with_files: WithFiles | None
    benchmark: Path
    limits: tuple[int | None, int | None]
    output: Path
    node: str
    files: str
    directory: Path
    variables: dict[str, str]

    def begin(self) -> Callable[[Any], Done]:
        """Load the benchmark and return the function that does a unit."""
        import ray

        os.environ.update(self.variables)
        if self.directory.is_dir():
            os.chdir(self.directory)
        if not self.benchmark.is_file():
            raise AutoLoRAEvalError(
                f"the machine '{platform.node()}' does not have the benchmark '{self.benchmark}'. "
                "Put it and the files that it names on all machines of the cluster, under the "
                "same paths."
            )
        plan = make_plan(load_benchmark(self.benchmark), *self.limits)
        if ray.get_runtime_context().get_node_id() != self.node:
            return _Elsewhere(self, plan)
        do = self.maker(plan, RunFolder(self.output), *self.arguments)
        return lambda unit: (do(unit), {})


class _Elsewhere:
    """Does units of work on a machine that has no run folder."""

    def __init__(self, task: Task, plan: Plan) -> None:
        self._task = task
        self._scratch = TemporaryDirectory(prefix="autolora-eval-")
        self._folder = Path(self._scratch.name).resolve()
        self._do = task.maker(plan, RunFolder(self._folder / "made"), *task.arguments)

    def __call__(self, unit: Any) -> Done:  # noqa: ANN401
        """Fetch the files of a unit, do it, and return what it wrote."""
        made = self._folder / "made"
        try:
            if self._task.with_files is not None:
                unit = self._task.with_files(unit, self._fetch)
            done = self._do(unit)
            paths = (path for path in made.rglob("*") if path.is_file())
            return done, {path.relative_to(made).as_posix(): path.read_bytes() for path in paths}
        finally:
            for folder in self._folder.iterdir():
                shutil.rmtree(folder)

    def _fetch(self, file: Path) -> Path:
        import ray

        here = self._folder / "fetched" / file.relative_to(self._task.output)
        data: Any = ray.get(ray.get_actor(self._task.files).read.remote(file))
        if data is not None:
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_bytes(data)
        return here


class Files:
    """The files of the run folder, on the machine that has it: an actor of Ray."""

    def read(self, file: Path) -> bytes | None:
        """Return the bytes of a file; None if it does not exist."""
        return file.read_bytes() if file.is_file() else None


class Worker:
    """A process of the cluster: an actor of Ray Data."""

    def __init__(self, task: bytes) -> None:
        self._task = task
        self._do: Callable[[Any], Done] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Do one unit of work. An error with a message is a result, so that Ray does not retry."""
        try:
            if self._do is None:
                self._do = pickle.loads(self._task).begin()
            done = True, self._do(pickle.loads(batch["unit"][0]))
        except AutoLoRAEvalError as error:
            done = False, (isinstance(error, UsageError), str(error))
        return {"done": [pickle.dumps(done)]}


def feature_maker(plan: Plan, folder: RunFolder, key: str) -> FeatureMaker:
    """Return the function that extracts batches in a process of the cluster.

    Raises:
        AutoLoRAEvalError: if the extractor here has another key.
    """
    settings = feature_settings(plan)
    _require_same(settings.key, key, "extractor")
    return FeatureMaker(settings)


def batch_with_files(batch: Batch, fetch: Callable[[Path], Path]) -> Batch:
    """Return a batch with the folders of its fetched images."""
    return [
        one if one.problem else replace(one, folder=fetch(one.path).parents[1]) for one in batch
    ]


def requests_with_files(requests: list[Request], fetch: Callable[[Path], Path]) -> list[Request]:
    """Return requests with the paths of their fetched images."""
    return [replace(one, image=fetch(one.image)) for one in requests]


def _require_same(here: str, there: str, what: str) -> None:
    if here != there:
        raise AutoLoRAEvalError(
            f"the machine '{platform.node()}' has another {what} than the one that runs the "
            "command. Use the same files and packages on all machines."
        )


def replier(plan: Plan, folder: RunFolder, key: str) -> Callable[[list[Request]], list[Reply]]:
    """Return the function that answers requests in a process of the cluster.

    Raises:
        AutoLoRAEvalError: if the judge here has another key.
    """
    settings = judge_settings(plan)
    judge = transformers_judge(settings)
    _require_same(judge_key(judge.identity(), settings.rubric), key, "judge")
    return lambda requests: [reply for group in judge.replies(requests) for _, reply in group]


# ---- Images: each process makes shares of whole batches


class Share(NamedTuple):
    """Images of one cell to be made: a batch of a guider, or one image of a sampler."""

    cell: str
    settings_key: str
    jobs: Sequence[ImageJob]
    is_empty: bool  # the cell, before the run


class Made(NamedTuple):
    """The result of a share."""

    cell: str
    rows: list[Json]
    failures: dict[str, str]  # why an image could not be made, by `file_name`
    error: str | None  # why the model or a guider failed
    pipeline: Json  # what the manifest records about the pipeline


@dataclass
class _UnlistedImages(ImageDataset):
    """The images of a cell that this process made. Another process writes their lists."""

    failed: dict[str, str] = field(default_factory=dict)
    was_empty: bool = True
    error: str | None = None  # why its guider was stopped

    @property
    def is_empty(self) -> bool:
        """Whether this process knows of no image of these settings."""
        return self.was_empty and super().is_empty

    def _write_rows(self) -> None:
        """Keep the rows, to be sent."""

    def record_failures(self, reasons: Mapping[str, str]) -> None:
        """Keep the failures, to be sent."""
        self.failed |= reasons

    def made(self, jobs: Sequence[ImageJob], error: str | None, pipeline: Json) -> Made:
        """Return what is sent of a share."""
        rows = [self.rows[job.file] for job in jobs if job.file in self.rows]
        failed = {job.file: self.failed[job.file] for job in jobs if job.file in self.failed}
        return Made(self.cell.id, rows, failed, error, pipeline)


class ShareMaker:
    """Makes shares of one model's images with the model loaded once.

    Args:
        plan: the plan of the run.
        folder: the run folder, or one whose files are brought there.
        libraries: the versions of libraries that this machine must have.
        model: the name of the model.
        device: the torch device.
        dtype: the precision.
        batching: which predictions share a pass; a smaller GPU here must not decide otherwise.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        libraries: str,
        model: str,
        device: str,
        dtype: str,
        batching: GuidanceBatching,
    ) -> None:
        if libraries != image_libraries():
            raise AutoLoRAEvalError(
                f"the machine '{platform.node()}' has {image_libraries()}, and the one that runs "
                f"the command {libraries}. Use the same packages on all machines."
            )
        self._folder = folder
        self._here = ModelOnDevice.of(plan, plan.benchmark.models[model], device, dtype, batching)
        self._cells = {cell.id: cell for cell in self._here.cells}
        self._datasets: dict[str, _UnlistedImages] = {}
        self._failed: str | None = None
        self._guided: GuidedModel | None = None
        self._sampled: SampledCell | None = None
        self._pipeline: SamplerPipeline | None = None

    def __call__(self, share: Share) -> Made:
        """Make the images of a share; none after the model or the cell's guider has failed.

        Raises:
            AutoLoRAEvalError: if this machine has other files of the model.
        """
        cell = self._cells[share.cell]
        if content_hash(self._here.settings(cell)) != share.settings_key:
            raise AutoLoRAEvalError(
                f"cell '{cell.id}': the machine '{platform.node()}' has other files of the model "
                f"'{cell.model.name}' or of the method, or another benchmark, than the one "
                "that runs the command. Use the same files on all machines."
            )
        dataset = self._datasets.setdefault(
            cell.id,
            _UnlistedImages(self._folder, cell, share.settings_key, was_empty=share.is_empty),
        )
        make = self._sample if cell.method.kind == "sampler" else self._guide
        if self._failed is None:
            try:
                return make(dataset, share.jobs)
            except Exception as error:
                if is_out_of_memory(error):
                    self._failed = str(self._here.out_of_memory(cell.method.kind))
                elif isinstance(error, AutoLoRAEvalError):  # the model cannot be loaded
                    self._failed = str(error)
                else:
                    raise
        return dataset.made(share.jobs, self._failed, {})

    def _guide(self, dataset: _UnlistedImages, jobs: Sequence[ImageJob]) -> Made:
        from autolora_eval.generation.guider_backend import GuidedModel

        if self._guided is None:
            self._guided = GuidedModel(self._here)
        if dataset.error is None:
            failures = self._guided.make([(dataset, jobs)], _no_progress)
            dataset.error = str(failures[0]) if failures else None
        return dataset.made(jobs, dataset.error, self._guided.pipeline.description())

    def _sample(self, dataset: _UnlistedImages, jobs: Sequence[ImageJob]) -> Made:
        from autolora_eval.generation.sampler_api import SamplerPipeline
        from autolora_eval.generation.sampler_backend import SampledCell

        cell, last = dataset.cell, self._sampled
        if self._pipeline is None or last is None or last.dataset.cell.method is not cell.method:
            self._pipeline = None  # that of the last sampler
            free_memory()
            self._pipeline = SamplerPipeline(self._here.model, *self._here.torch_place())
        one = last if last is not None and last.dataset.cell is cell else SampledCell(dataset, jobs)
        one.jobs = jobs
        one.fill(self._pipeline, _no_progress)
        release_frames(one.first_error)
        self._sampled = one
        loaded = self._pipeline.loaded
        return dataset.made(jobs, None, {} if loaded is None else loaded.description())


def _no_progress(n: int, note: str = "") -> None:
    """Stand for the progress, which advances where the images are recorded."""
