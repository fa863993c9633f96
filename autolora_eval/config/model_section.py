"""One section of `models` in a benchmark file: its files are found and checked, not loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn, Protocol, TypeVar

from autolora_eval._errors import UsageError
from autolora_eval._sources import Lookup, cached, find_lora, find_model
from autolora_eval._yaml import KeyPath
from autolora_eval.config.inputs import INDEX, check_clip_skip, check_pipeline, image_size
from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.config.resolved import ResolvedModel
from autolora_eval.config.scheduler_section import count_timesteps, scheduler_problems
from autolora_eval.config.schema import Model

T = TypeVar("T")


class Attempt(Protocol):
    """Runs an action; on a `UsageError` notes the problem at these keys and returns None."""

    def __call__(self, keys: KeyPath, action: Callable[[], T]) -> T | None:
        """Run the action."""
        ...


def read_model(name: str, spec: Model, lookup: Lookup, attempt: Attempt) -> ResolvedModel | None:
    """Find and check everything that a model names.

    Args:
        name: the name of the model.
        spec: its section of the benchmark file.
        lookup: where files are looked for.
        attempt: notes a problem.

    Returns:
        The model; None if a problem was noted.
    """
    at = ("models", name)
    pipeline = attempt(
        (*at, "pipeline"), lambda: find_model(spec.pipeline, spec.revision, lookup, INDEX)
    )
    lora = attempt(
        (*at, "lora"),
        lambda: find_lora(
            spec.lora.path, spec.lora.weight_name, spec.lora.revision, lookup, spec.lora.obtain
        ),
    )
    if pipeline is not None:
        attempt((*at, "pipeline"), lambda: check_pipeline(pipeline, cached(pipeline, INDEX)))
    if pipeline is None or lora is None:
        return None
    if spec.scheduler is not None:
        for key, problem in scheduler_problems(spec.scheduler):
            attempt((*at, "scheduler", key), partial(_refuse, problem))
    attempt((*at, "clip_skip"), lambda: check_clip_skip(spec, pipeline))
    size = attempt((*at, "pipeline"), lambda: image_size(spec, pipeline))
    file = None
    if lora.kind == "file":
        file = attempt((*at, "lora"), lambda: read_lora_file(lora.path))
    if size is None or (lora.kind == "file" and file is None):
        return None
    timesteps = count_timesteps(spec, pipeline)
    return ResolvedModel(name, spec, pipeline, lora, size, file, timesteps)


def _refuse(problem: str) -> NoReturn:
    raise UsageError(problem)
