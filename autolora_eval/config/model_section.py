"""One section of `models` in a benchmark file: its files are found and checked, not loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn, Protocol, TypeVar

from autolora_eval._errors import UsageError
from autolora_eval._sources import Lookup, cached, find_lora, find_model
from autolora_eval._yaml import KeyPath
from autolora_eval.config.inputs import INDEX, check_clip_skip, check_pipeline, image_size
from autolora_eval.config.lora_file import check_sum, read_lora_file
from autolora_eval.config.pipeline_parts import (
    VAE,
    check_checkpoint,
    check_left_out,
    check_tuned_parts,
    check_vae,
    check_variant,
    find_layout,
    find_pipeline,
)
from autolora_eval.config.resolved import ResolvedLora, ResolvedModel
from autolora_eval.config.scheduler_section import count_timesteps, scheduler_problems
from autolora_eval.config.schema import Lora, Model

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
    pipeline = attempt((*at, "pipeline"), lambda: find_pipeline(spec, lookup))
    layout = None
    if pipeline is not None:
        layout = attempt((*at, "pipeline_config"), lambda: find_layout(spec, pipeline, lookup))
    loras = _read_loras(spec, lookup, attempt, (*at, "lora"))
    vae = spec.vae
    other_vae = attempt((*at, "vae"), lambda: find_model(vae, None, lookup, VAE)) if vae else None
    if layout is not None:
        attempt((*at, "pipeline"), lambda: check_pipeline(layout, cached(layout, INDEX)))
    if pipeline is None or layout is None or loras is None or (vae and other_vae is None):
        return None
    if spec.scheduler is not None:
        for key, problem in scheduler_problems(spec.scheduler):
            attempt((*at, "scheduler", key), partial(_refuse, problem))
    attempt((*at, "clip_skip"), lambda: check_clip_skip(spec, layout))
    size = attempt((*at, "pipeline"), lambda: image_size(spec, layout))
    if size is None:
        return None
    model = ResolvedModel(
        name,
        spec,
        pipeline,
        loras,
        size,
        vae=other_vae,
        config=layout if pipeline.kind == "file" else None,
        timesteps=count_timesteps(spec, layout),
    )
    attempt((*at, "lora"), lambda: check_sum(model.switched_loras))
    attempt((*at, "lora"), lambda: check_tuned_parts(model))
    attempt((*at, "pipeline"), lambda: check_checkpoint(model))
    attempt((*at, "vae"), lambda: check_vae(model))
    attempt((*at, "text_encoder_3"), lambda: check_left_out(model))
    attempt((*at, "variant"), lambda: check_variant(model))
    return model


def _refuse(problem: str) -> NoReturn:
    raise UsageError(problem)


def _read_loras(
    spec: Model, lookup: Lookup, attempt: Attempt, at: KeyPath
) -> tuple[ResolvedLora, ...] | None:
    """Return the LoRAs of a model; None if a problem was noted."""
    found = []
    for index, lora in enumerate(spec.loras):
        place = (*at, index) if isinstance(spec.lora, list) else at
        found.append(attempt(place, partial(_read_lora, lora, lookup)))
    loras = tuple(lora for lora in found if lora is not None)
    return loras if len(loras) == len(found) else None


def _read_lora(lora: Lora, lookup: Lookup) -> ResolvedLora:
    source = find_lora(lora.path, lora.weight_name, lora.revision, lookup, lora.obtain)
    return ResolvedLora(source, read_lora_file(source.path) if source.kind == "file" else None)
