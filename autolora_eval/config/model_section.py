"""One section of `models` in a benchmark file and its scheduler: checked, not loaded."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol, TypeVar

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._sources import Lookup, Source, cached, find_lora, find_model, in_cache
from autolora_eval._yaml import KeyPath
from autolora_eval.config.inputs import (
    INDEX,
    ResolvedLora,
    ResolvedModel,
    check_clip_skip,
    check_pipeline,
    image_size,
)
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
from autolora_eval.config.schema import Lora, Model, Scheduler
from autolora_eval.plugins.signatures import CoercionError, coerce

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
# What the annotations of schedulers name.
_TYPES = {**vars(typing), "np": SimpleNamespace(ndarray=list[float])}


def scheduler_problems(scheduler: Scheduler) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for an unknown class, and for options that it does not take."""
    files = _files()
    if not files:  # without diffusers nothing can run: `run` and `doctor` say so
        return
    name = scheduler.class_name
    if name not in files:
        usable = [n for n in files if n.startswith("FlowMatch") or "prediction_type" in _options(n)]
        near = did_you_mean(name, usable, or_list=False)
        example = " Name a class, such as DPMSolverMultistepScheduler for DPM++ 2M."
        yield "class", f"diffusers has no scheduler '{name:.80}'.{near or example}"
        return
    known = _options(name)
    for option, value in scheduler.options.items():
        if option not in known:
            yield option, f"{name} has no such option.{did_you_mean(option, known)}"
            continue
        try:
            coerce(value, known[option])
        except CoercionError as error:
            yield option, f"{error} (got {value!r:.80})."


def count_timesteps(spec: Model, pipeline: Source) -> int | None:
    """Return how often a scheduler asks for a prediction: mostly, but not always, once a step.

    Returns:
        None if that scheduler is not known: the pipeline is not on this machine.
    """
    steps = spec.num_inference_steps
    is_here = pipeline.kind != "hub" or in_cache(pipeline, SCHEDULER_CONFIG)
    if spec.scheduler is None and not is_here:
        return None
    config = _own_config(pipeline)
    if spec.scheduler is not None:
        config |= {**spec.scheduler.options, "_class_name": spec.scheduler.class_name}
    name = config.get("_class_name")
    if name == "PNDMScheduler":  # a Runge-Kutta start, or the second step twice
        return steps + 1 if config.get("skip_prk_steps", False) else steps + 9
    if name in _files() and _order(_definition(str(name))) == 2:
        return 2 * steps - 1  # two for each step but the last
    return steps


def _own_config(pipeline: Source) -> dict[str, Any]:
    file = cached(pipeline, SCHEDULER_CONFIG)
    try:
        found = json.loads(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError):  # told when the pipeline is loaded
        found = {}
    return dict(found) if isinstance(found, dict) else {}


@cache
def _files() -> Mapping[str, Path]:
    """Return the source file of each scheduler; empty without diffusers."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0]) / "schedulers"
    index = (folder / "__init__.py").read_text(encoding="utf-8")
    modules = re.findall(r'_import_structure\["(scheduling_\w+)"\] = \[([^\]]*)\]', index)
    return {
        name: folder / f"{module}.py"
        for module, names in modules
        for name in re.findall(r'"(\w+Scheduler)"', names)
    }


@cache
def _definition(name: str) -> ast.ClassDef:
    tree = ast.parse(_files()[name].read_text(encoding="utf-8"))
    return next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name)


def _options(name: str) -> dict[str, object]:
    """Return the options of a scheduler's constructor with their types; `Any` if unknown."""
    body = _definition(name).body
    init = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    return {one.arg: _type(one.annotation) for one in init.args.args[1:]}


def _type(annotation: ast.expr | None) -> object:
    try:
        return eval(ast.unparse(annotation), _TYPES.copy()) if annotation else Any
    except Exception:  # a name that only diffusers knows
        return Any


def _order(definition: ast.ClassDef) -> object:
    """Return the class attribute `order`."""
    for line in definition.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "order":
            return ast.literal_eval(line.value)
    return 1


T = TypeVar("T")


class Attempt(Protocol):
    """Runs an action; on a `UsageError` notes the problem at these keys and returns None."""

    def __call__(self, keys: KeyPath, action: Callable[[], T]) -> T | None:
        """Run the action."""
        ...


def read_model(name: str, spec: Model, lookup: Lookup, attempt: Attempt) -> ResolvedModel | None:
    """Find and check everything that a model names.

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
