"""A model's scheduler: what diffusers' source says of its class. diffusers is not imported."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autolora_eval._errors import did_you_mean
from autolora_eval._sources import Source, cached, in_cache
from autolora_eval.config.schema import Model, Scheduler
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

    Args:
        spec: the model.
        pipeline: where it is; its own scheduler counts if the model states none.

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
