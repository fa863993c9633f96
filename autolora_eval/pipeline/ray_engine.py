"""The engine `ray`: the work of a run, spread over the processes of a Ray cluster.

Ray Data starts the processes, hands out the work, and repeats it if a process or a machine is lost.
Each process loads the benchmark and its model once. It calls what the local engine calls. The run
folder is on the machine that runs the command. Ray carries images to and from the others.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from autolora_eval._devices import choose_device, image_libraries, require
from autolora_eval._errors import AutoLoRAEvalError, UsageError, first_line
from autolora_eval._files import atomic_write
from autolora_eval.config.plan import Plan
from autolora_eval.pipeline.ray_worker import (
    Files,
    Share,
    ShareMaker,
    Task,
    WithFiles,
    Worker,
    batch_with_files,
    feature_maker,
    replier,
    requests_with_files,
)
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.features import Batch, Extracted
from autolora_eval.scoring.judging import (
    JudgeSettings,
    judge_key,
    open_judge,
    transformers_judge,
)

if TYPE_CHECKING:
    from autolora_eval._progress import Advance
    from autolora_eval.generation.model_on_device import ModelOnDevice
    from autolora_eval.generation.stage import CellWork, GenerationResult
    from autolora_eval.scoring.judge import Judge, Reply, Request

U = TypeVar("U")
R = TypeVar("R")
# A process on a GPU mostly waits for it.
_CPUS_BESIDE_A_GPU = 0.5
_READERS = 16  # threads that read files for other machines
_OWN_VARIABLES = "AUTOLORA_EVAL_"


EngineName = Literal["local", "ray"]


class RayEngine:
    """Spreads work over a Ray cluster, which is started when it is first needed.

    Args:
        plan: the plan of the run.
        folder: the run folder, on this machine.
        limits: `limit_prompts` and `limit_seeds`.
        address: address of an existing cluster. Default: the one that `RAY_ADDRESS` names, or a
            new one on this machine.

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
        model: ModelOnDevice,
        work: Sequence[CellWork],
        result: GenerationResult,
        advance: Advance,
    ) -> list[AutoLoRAEvalError]:
        """Make the missing images of a model, for `stage.generate`; record them as they arrive."""
        from autolora_eval.generation.sampler_backend import SampledCell

        size = 1 if work[0].kind == "sampler" else model.batch_size
        cells = {cell.dataset.cell.id: SampledCell(cell.dataset, cell.jobs) for cell in work}
        errors: dict[str, str] = {}
        for cell in work:
            cell.dataset.record([])
        shares = [
            Share(set_.cell.id, set_.settings_key, cell.jobs[n : n + size], set_.is_empty)
            for cell in sorted(work, key=lambda cell: cell.dataset.cell.method.name)
            for set_ in (cell.dataset,)
            for n in range(0, len(cell.jobs), size)
        ]
        how = model.device, model.dtype, model.guidance_batching
        arguments = image_libraries(), model.model.name, *how
        for made in self.spread(ShareMaker, arguments, shares, model.device):
            cells[made.cell].dataset.record(made.rows)
            cells[made.cell].failures |= made.failures
            result.models[model.model.name] |= made.pipeline
            if made.error is not None:
                errors.setdefault(made.cell, made.error)
            advance(len(made.rows) + len(made.failures))
        for done in cells.values():
            files = [job.file for job in done.jobs if job.file in done.failures]
            done.failures = {file: done.failures[file] for file in files}
            done.dataset.record_failures(done.failures)
        texts = dict.fromkeys(errors[cell] for cell in cells if cell in errors)
        failures = [AutoLoRAEvalError(text) for text in texts]
        if work[0].kind == "sampler":
            failures += [fail for done in cells.values() if (fail := done.failure()) is not None]
        return failures

    def extract(self, key: str, batches: Sequence[Batch]) -> Iterator[Extracted]:
        """Extract features, for `extract_features`."""
        device = choose_device(self.plan.benchmark.spec.device)
        there = [[replace(one, folder=one.folder.resolve()) for one in batch] for batch in batches]
        return self.spread(feature_maker, (key,), there, device, with_files=batch_with_files)

    def judge(self, settings: JudgeSettings, urls: list[str] | None) -> Judge:
        """Return the judge. This process asks servers, which share the work themselves."""
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
        with_files: WithFiles | None = None,
    ) -> Iterator[R]:
        """Yield the result of each unit of work.

        Args:
            maker: a class or function that takes the plan, the run folder and `arguments`, and
                returns a function of a unit. It is called once in each process.
            arguments: further arguments of the maker.
            units: the work. A unit that is done twice must leave the same files.
            device: the torch device of a process: there is one process for each GPU, or for each
                processor that Ray counts.
            with_files: fetches the files of a unit. Results of such units are yielded in their
                order, others as they are done.

        Raises:
            AutoLoRAEvalError: if a unit fails, or the cluster cannot do the work.
        """
        if not units:
            return
        self._connect()
        from ray.exceptions import RayError

        n, resources = _processes(device)
        task = self._task(maker, arguments, with_files)
        files = None if with_files is None else _serve_files(task)
        try:
            for done in _results(task, units, min(n, len(units)), resources):
                yield self._received(task, done)
        except RayError as error:
            raise _process_failed(error) from error
        finally:
            del files  # ends the actor

    def _received(self, task: Task, done: bytes) -> Any:  # noqa: ANN401
        """Return the result of a unit, and write the files that came with it."""
        succeeded, found = pickle.loads(done)
        if not succeeded:
            is_usage, message = found
            raise (UsageError if is_usage else AutoLoRAEvalError)(message)
        result, written = found
        for name, data in written.items():
            with atomic_write(self.folder.within(task.output / name)) as temporary:
                temporary.write_bytes(data)
        return result

    def _task(
        self, maker: Callable[..., Any], arguments: tuple[object, ...], with_files: WithFiles | None
    ) -> Task:
        import ray

        judge = self.plan.benchmark.spec.judge
        secret = None if judge is None else judge.api_key_env
        variables = {n: v for n, v in os.environ.items() if n.startswith(_OWN_VARIABLES)}
        return Task(
            maker=maker,
            arguments=arguments,
            with_files=with_files,
            benchmark=self.plan.benchmark.file.resolve(),
            limits=self.limits,
            output=self.folder.path.resolve(),
            node=ray.get_runtime_context().get_node_id(),
            files=f"files-{secrets.token_hex(8)}",
            directory=Path.cwd(),
            variables={name: value for name, value in variables.items() if name != secret},
        )

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no statistics
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray logs notices as errors
        import ray
        from ray.exceptions import RayError  # also raised if a token is refused

        if ray.is_initialized():
            return
        try:
            ray.init(self.address, include_dashboard=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise AutoLoRAEvalError(
                f"no Ray cluster answers at '{self.address}' ({first_line(error)}). Start one with "
                "'ray start --head', or leave out --ray-address to use this machine alone."
            ) from error


def _processes(device: str) -> tuple[int, dict[str, Any]]:
    """Return how many processes the cluster has room for, and what Ray reserves for each.

    Raises:
        AutoLoRAEvalError: if it has room for none.
    """
    import ray

    kind = "GPU" if device.startswith("cuda") else "CPU"
    n = int(ray.cluster_resources().get(kind, 0))
    if n == 0:
        raise AutoLoRAEvalError(
            f"the Ray cluster has no {kind}, and the run is for the device '{device}'. Start "
            "its nodes with --num-gpus or --num-cpus, or set another 'device' in the benchmark."
        )
    gpu = {"num_gpus": 1, "num_cpus": _CPUS_BESIDE_A_GPU}
    return n, gpu if kind == "GPU" else {"num_cpus": 1}


def _serve_files(task: Task) -> object:
    """Start the actor that reads files of the run folder for other machines.

    It ends when the returned handle is deleted.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(task.node, soft=False)
    options = {"num_cpus": 0, "max_concurrency": _READERS, "scheduling_strategy": here}
    return ray.remote(Files).options(name=task.files, **options).remote()


def _results(
    task: Task, units: Sequence[object], n_processes: int, resources: dict[str, Any]
) -> Iterator[bytes]:
    """Yield what `Worker` returns for each unit."""
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = task.with_files is not None
    # A block for each unit: it is recorded as soon as it is done.
    items = [{"unit": pickle.dumps(unit)} for unit in units]
    results = from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=(pickle.dumps(task),),
        compute=ActorPoolStrategy(size=n_processes),
        **resources,
    )
    for row in results.iter_rows():
        yield row["done"]


def _process_failed(error: Exception) -> AutoLoRAEvalError:
    """Return the message of the innermost error, which Ray wraps several times."""
    cause = error
    while isinstance(inner := getattr(cause, "cause", None) or cause.__cause__, Exception):
        cause = inner
    return AutoLoRAEvalError(
        f"a process of the Ray cluster failed ({type(cause).__name__}: "
        f"{first_line(cause)}). Finished work is kept: run the same command to resume."
    )


class _SpreadJudge:
    """A judge of transformers in each process of the cluster."""

    def __init__(self, settings: JudgeSettings, engine: RayEngine) -> None:
        self._here = transformers_judge(settings)  # loads no weights
        self._settings, self._engine = settings, engine
        self.identity, self.facts = self._here.identity, self._here.facts
        self.close = self._here.close

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield requests with their replies, one batch at a time, in order."""
        waiting, batch_size = iter(requests), self._settings.config.batch_size
        batches = list(iter(lambda: list(islice(waiting, batch_size)), []))
        untagged = [
            [replace(one, image=one.image.resolve(), tag=None) for one in batch]
            for batch in batches
        ]
        key, device = judge_key(self.identity(), self._settings.rubric), self._here.device.type
        answers = self._engine.spread(
            replier, (key,), untagged, device, with_files=requests_with_files
        )
        for batch, replies in zip(batches, answers, strict=True):
            yield list(zip(batch, replies, strict=True))
