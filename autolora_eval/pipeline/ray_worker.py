"""The code that runs in the processes of a Ray cluster, for the engine `ray`.

The run folder is on the machine that runs the command. Ray carries images to and from the others.
"""

from __future__ import annotations

import os
import pickle
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import feature_settings, judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.features import Batch, FeatureMaker
from autolora_eval.scoring.judging import judge_key, transformers_judge

if TYPE_CHECKING:
    from autolora_eval.scoring.judges.config import Reply, Request

# (unit, function that fetches a file of the run folder) → the unit with the fetched files.
At = Callable[[Any, Callable[[Path], Path]], Any]
# The result of a unit, and the files that the machine of the command does not have yet.
Done = tuple[Any, dict[str, bytes]]


class Task(NamedTuple):
    """The task of all processes, sent to them as bytes.

    Attributes:
        maker: (plan, run folder, *arguments) → function of a unit of work.
        arguments: as above.
        at: fetches the files of a unit; None if units have no files.
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
    at: At | None
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
    """Does units of work on a machine that has no run folder.

    Args:
        task: the task.
        plan: the plan of the run.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self._task = task
        self._scratch = TemporaryDirectory(prefix="autolora-eval-")
        self._folder = Path(self._scratch.name).resolve()
        self._do = task.maker(plan, RunFolder(self._folder / "made"), *task.arguments)

    def __call__(self, unit: Any) -> Done:  # noqa: ANN401
        """Fetch the files of a unit, do it, and return what it wrote."""
        made = self._folder / "made"
        try:
            done = self._do(self._task.at(unit, self._fetch) if self._task.at else unit)
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
    """A process of the cluster: an actor of Ray Data.

    Args:
        task: a pickled `Task`.
    """

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


def batch_at(batch: Batch, fetch: Callable[[Path], Path]) -> Batch:
    """Return a batch with the folders of its fetched images."""
    return [
        one if one.problem else replace(one, folder=fetch(one.path).parents[1]) for one in batch
    ]


def requests_at(requests: list[Request], fetch: Callable[[Path], Path]) -> list[Request]:
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
