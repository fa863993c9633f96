"""The engine `ray`: the work of a run, spread over the processes of a Ray cluster.

Ray Data starts the processes, hands out the work, and does it again where a process or a machine
was lost. Each process loads the benchmark and its model once. It calls what the local engine calls.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from autolora_eval._devices import choose_device, require
from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._sources import first_line
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.stage_inputs import feature_settings, judge_settings
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.features import Batch, Extracted, FeatureMaker, extractor_key
from autolora_eval.scoring.judging import (
    JudgeSettings,
    judge_key,
    open_judge,
    transformers_judge,
)

if TYPE_CHECKING:
    from autolora_eval._progress import Advance
    from autolora_eval.config.inputs import ResolvedModel
    from autolora_eval.generation.stage import CellWork, GenerationResult
    from autolora_eval.scoring.judges.config import Judge, Reply, Request

U = TypeVar("U")
R = TypeVar("R")
# A process on a GPU mostly waits for it.
_CPUS_BESIDE_A_GPU = 0.5
_OWN_VARIABLES = "AUTOLORA_EVAL_"


class _Task(NamedTuple):
    """What a process of the cluster is to do, sent to it as bytes.

    Attributes:
        maker: what does a unit of work: a class of this package.
        arguments: those of its constructor, after the plan and the run folder.
        benchmark: the benchmark file.
        limits: `limit_prompts` and `limit_seeds`.
        output: the run folder.
        directory: where the command runs.
        variables: this package's variables of the environment, without the judge's key.
    """

    maker: Callable[..., Callable[[Any], Any]]
    arguments: tuple[object, ...]
    benchmark: Path
    limits: tuple[int | None, int | None]
    output: Path
    directory: Path
    variables: dict[str, str]

    def begin(self) -> Callable[[Any], Any]:
        """Load what the work needs."""
        os.environ.update(self.variables)
        if self.directory.is_dir():
            os.chdir(self.directory)
        folder = RunFolder(self.output)
        if not folder.manifest.is_file():
            raise AutoLoRAEvalError(
                f"the machine '{platform.node()}' does not see the run folder '{self.output}'. Put "
                "it on a disk that all machines of the cluster share, under the same path."
            )
        plan = make_plan(load_benchmark(self.benchmark), *self.limits)
        return self.maker(plan, folder, *self.arguments)


class _Worker:
    """A process of the cluster: an actor of Ray Data.

    Args:
        task: a pickled `_Task`.
    """

    def __init__(self, task: bytes) -> None:
        self._task = task
        self._do: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Do one unit of work. Errors that are messages are results: Ray does not try again."""
        try:
            if self._do is None:
                self._do = pickle.loads(self._task).begin()
            done = True, self._do(pickle.loads(batch["unit"][0]))
        except AutoLoRAEvalError as error:
            done = False, (isinstance(error, UsageError), str(error))
        return {"done": [pickle.dumps(done)]}


EngineName = Literal["local", "ray"]


class RayEngine:
    """Spreads work over a Ray cluster, which is started at the first need.

    Args:
        plan: the plan of the run.
        folder: the run folder, which all machines of the cluster see under this path.
        limits: `limit_prompts` and `limit_seeds`.
        address: address of an existing cluster. Default: as `ray.init()` has it, which is a new
            cluster of this machine unless `RAY_ADDRESS` names another one.

    Raises:
        MissingDependencyError: if Ray is not installed.
        UsageError: if the benchmark names one of several GPUs.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        limits: tuple[int | None, int | None],
        address: str | None = None,
    ) -> None:
        require("ray", "ray")
        device = plan.benchmark.spec.device
        if ":" in device:
            raise UsageError(
                f"'device: {device}' names one GPU, and --engine ray takes all of them: write "
                f"'device: {device.partition(':')[0]}', or leave out --engine."
            )
        self.plan, self.folder, self.limits, self.address = plan, folder, limits, address

    def make_images(
        self,
        model: ResolvedModel,
        work: Sequence[CellWork],
        device: str,
        dtype: str,
        batch_size: int,
        result: GenerationResult,
        advance: Advance,
    ) -> list[AutoLoRAEvalError]:
        """Make the missing images of a model; as the function that `stage.generate` takes."""
        from autolora_eval.generation.share import make_elsewhere

        spread = partial(self.spread, device=device)
        return make_elsewhere(spread, model, work, device, dtype, batch_size, result, advance)

    def extract(self, key: str, batches: Sequence[Batch]) -> Iterator[Extracted]:
        """Extract features; as the function that `extract_features` takes."""
        device = choose_device(self.plan.benchmark.spec.device)
        there = [[replace(one, folder=one.folder.resolve()) for one in batch] for batch in batches]
        return self.spread(_feature_maker, (key,), there, device, ordered=True)

    def judge(self, settings: JudgeSettings, urls: list[str] | None) -> Judge:
        """Return the judge. One on a server is asked by this process: its servers share the work.

        Args:
            settings: the judge and its rubric.
            urls: server addresses, by default those of the benchmark.
        """
        if settings.config.backend == "openai":
            return open_judge(settings, urls)
        return _SpreadJudge(settings, self)

    def spread(
        self,
        maker: Callable[..., Callable[[U], R]],
        arguments: tuple[object, ...],
        units: Sequence[U],
        device: str,
        *,
        ordered: bool = False,
    ) -> Iterator[R]:
        """Yield what a maker makes of each unit of work.

        Args:
            maker: a class or function that takes the plan, the run folder and the arguments, and
                returns what does a unit. It is called once in each process.
            arguments: as above.
            units: the work. A unit that is done twice must leave the same files.
            device: the torch device of a process: there is one process for each GPU, or for each
                processor that Ray counts.
            ordered: yield in the order of the units, and not as they are done.

        Raises:
            AutoLoRAEvalError: if a unit fails, or the cluster cannot do the work.
        """
        if not units:
            return
        self._connect()
        import ray
        import ray.exceptions
        from ray.data import ActorPoolStrategy, DataContext

        kind = "GPU" if device.startswith("cuda") else "CPU"
        n = int(ray.cluster_resources().get(kind, 0))
        if n == 0:
            raise AutoLoRAEvalError(
                f"the Ray cluster has no {kind}, and the run is for the device '{device}'. Start "
                "its nodes with --num-gpus or --num-cpus, or set another 'device' in the benchmark."
            )
        gpu = {"num_gpus": 1, "num_cpus": _CPUS_BESIDE_A_GPU}
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = ordered
        task = pickle.dumps(self._task(maker, arguments))
        # A block for each unit: it is recorded as soon as it is done.
        blocks = ray.data.from_items(
            [{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=len(units)
        )
        results = blocks.map_batches(
            _Worker,
            batch_size=1,
            fn_constructor_args=(task,),
            compute=ActorPoolStrategy(size=min(n, len(units))),
            **(gpu if kind == "GPU" else {"num_cpus": 1}),
        )
        try:
            for row in results.iter_rows():
                succeeded, done = pickle.loads(row["done"])
                if not succeeded:
                    is_usage, message = done
                    raise (UsageError if is_usage else AutoLoRAEvalError)(message)
                yield done
        except ray.exceptions.RayError as error:
            raise _process_failed(error) from error

    def _task(self, maker: Callable[..., Any], arguments: tuple[object, ...]) -> _Task:
        judge = self.plan.benchmark.spec.judge
        secret = None if judge is None else judge.api_key_env
        return _Task(
            maker,
            arguments,
            self.plan.benchmark.file.resolve(),
            self.limits,
            self.folder.path.resolve(),
            Path.cwd(),
            {
                name: value
                for name, value in os.environ.items()
                if name.startswith(_OWN_VARIABLES) and name != secret
            },
        )

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it calls notices errors
        import ray
        from ray.exceptions import RayError  # its refusal of a token is one

        if ray.is_initialized():
            return
        try:
            ray.init(self.address, include_dashboard=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise AutoLoRAEvalError(
                f"no Ray cluster answers at '{self.address}' ({first_line(error)}). Start one with "
                "'ray start --head', or leave out --ray-address to use this machine alone."
            ) from error


def _process_failed(error: Exception) -> AutoLoRAEvalError:
    """Return the message of the innermost error, which Ray wraps several times."""
    cause = error
    while isinstance(inner := getattr(cause, "cause", None) or cause.__cause__, Exception):
        cause = inner
    return AutoLoRAEvalError(
        f"a process of the Ray cluster failed ({type(cause).__name__}: "
        f"{first_line(cause)}). Finished work is kept: run the same command to resume."
    )


def _feature_maker(plan: Plan, folder: RunFolder, key: str) -> FeatureMaker:
    """Return what extracts batches in a process of the cluster.

    Raises:
        AutoLoRAEvalError: if it is another extractor than that of the key.
    """
    settings = feature_settings(plan)
    _require_same(extractor_key(settings.identity(), settings.batch_size), key, "extractor")
    return FeatureMaker(settings)


def _require_same(here: str, there: str, what: str) -> None:
    if here != there:
        raise AutoLoRAEvalError(
            f"the machine '{platform.node()}' has another {what} than the one that runs the "
            "command. Use the same files and packages on all machines."
        )


def _replier(plan: Plan, folder: RunFolder, key: str) -> Callable[[list[Request]], list[Reply]]:
    """Return what answers requests in a process of the cluster.

    Raises:
        AutoLoRAEvalError: if it is another judge than that of the key.
    """
    settings = judge_settings(plan)
    judge = transformers_judge(settings)
    _require_same(judge_key(judge.identity(), settings.rubric), key, "judge")
    return lambda requests: [reply for group in judge.replies(requests) for _, reply in group]


class _SpreadJudge:
    """A judge of transformers in each process of the cluster.

    Args:
        settings: the judge and its rubric.
        engine: spreads the questions.
    """

    def __init__(self, settings: JudgeSettings, engine: RayEngine) -> None:
        self._here = transformers_judge(settings)  # without its weights
        self._settings, self._engine = settings, engine
        self.identity, self.facts, self.close = (
            self._here.identity,
            self._here.facts,
            self._here.close,
        )

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield requests with their replies, one batch at a time, in order."""
        waiting, asked = iter(requests), []
        while batch := list(islice(waiting, self._settings.config.batch_size)):
            asked.append(batch)
        key = judge_key(self.identity(), self._settings.rubric)
        untagged = [
            [replace(one, image=one.image.resolve(), tag=None) for one in batch] for batch in asked
        ]
        answers = self._engine.spread(
            _replier, (key,), untagged, self._here.device.type, ordered=True
        )
        for batch, replies in zip(asked, answers, strict=True):
            yield list(zip(batch, replies, strict=True))
