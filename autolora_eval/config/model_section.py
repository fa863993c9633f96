"""One section of `models` in a benchmark file and its scheduler: checked, not loaded."""

from __future__ import annotations

import ast
import importlib.util
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol, TypeVar

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._yaml import KeyPath
from autolora_eval.config.inputs import (
    INDEX,
    ResolvedLora,
    ResolvedModel,
    check_clip_skip,
    check_pipeline,
    image_size,
    known_class,
    read_config,
)
from autolora_eval.config.lora_file import check_sum, read_lora_file
from autolora_eval.config.lora_layers import check_tuned_layers
from autolora_eval.config.schema import Lora, Model, Scheduler
from autolora_eval.plugins.signatures import CoercionError, coerce
from autolora_eval.sources.identity import weight_variant
from autolora_eval.sources.lookup import Lookup, expanded
from autolora_eval.sources.model_source import (
    PICKLE_ADVICE,
    Source,
    cached,
    find_lora,
    find_model,
)
from autolora_eval.sources.safetensors_file import TensorInfo, read_header

LEFT_OUT = "text_encoder_3"
VAE = "config.json"
CHECKPOINTS = (".safetensors", ".ckpt")
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"

T = TypeVar("T")


class Attempt(Protocol):
    """Runs an action; on a `UsageError` notes the problem at these keys and returns None."""

    def __call__(self, keys: KeyPath, action: Callable[[], T]) -> T | None:
        """Run the action."""
        ...


def read_model(name: str, spec: Model, lookup: Lookup, attempt: Attempt) -> ResolvedModel | None:
    """Find and check everything that a model names; return None if a problem was noted."""
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
    attempt((*at, "lora"), lambda: check_tuned_layers(model))
    attempt((*at, "pipeline"), lambda: check_checkpoint(model))
    attempt((*at, "vae"), lambda: check_vae(model))
    attempt((*at, "width"), lambda: check_size(model))
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
    path = source.path if source.kind == "file" else None
    if source.kind == "hub" and source.weight_name is not None:
        path = cached(source, source.weight_name)
    return ResolvedLora(source, read_lora_file(path) if path else None)


# --------------------
# The parts of a pipeline: variant, VAE, text encoder, single file.


# What diffusers' from_single_file needs of a checkpoint, by the class of the pipeline: the start of
# the names of each component's tensors. Components that are not there would be random or refused.
_DENOISER = "model.diffusion_model."
_IN_CHECKPOINT = {
    "StableDiffusionXLPipeline": {
        "unet": f"{_DENOISER}input_blocks.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    },
    "StableDiffusion3Pipeline": {
        "transformer": f"{_DENOISER}joint_blocks.",
        "vae": "first_stage_model.",
        "text_encoder": "text_encoders.clip_l.",
        "text_encoder_2": "text_encoders.clip_g.",
        "text_encoder_3": "text_encoders.t5xxl.",
    },
}


def find_pipeline(spec: Model, lookup: Lookup) -> Source:
    """Return the source of a pipeline: a folder, a hub id or a single file."""
    name = expanded(spec.pipeline)
    if not name.endswith(CHECKPOINTS):
        return find_model(spec.pipeline, spec.revision, lookup, INDEX)
    if not name.endswith(".safetensors"):
        raise UsageError(f"'{spec.pipeline}' is a pickle: {PICKLE_ADVICE}")
    return Source(spec.pipeline, "file", str(lookup.file(spec.pipeline, "checkpoint")))


def find_layout(spec: Model, pipeline: Source, lookup: Lookup) -> Source:
    """Return where the configurations and tokenizers of a pipeline are."""
    is_file = pipeline.kind == "file"
    if spec.pipeline_config is None and is_file:
        raise UsageError(
            f"missing; '{spec.pipeline}' is a single file without tokenizers and configurations. "
            "Name a pipeline folder or hub id that has them, such as "
            "'stabilityai/stable-diffusion-xl-base-1.0'."
        )
    if spec.pipeline_config is None:
        return pipeline
    if not is_file:
        raise UsageError(
            f"it belongs to a single file, but '{spec.pipeline}' is a folder or hub id: remove it."
        )
    return find_model(spec.pipeline_config, spec.revision, lookup, INDEX, needs_weights=False)


def check_checkpoint(model: ResolvedModel) -> None:
    """Refuse a single file that diffusers cannot load as the pipeline of its configuration."""
    kind = known_class(model.layout) if model.pipeline.kind == "file" else None
    if kind is None:
        return
    if kind not in _IN_CHECKPOINT:
        raise UsageError(
            f"'{model.pipeline.name}' cannot be loaded as a {kind}: of single files only "
            f"{' and '.join(_IN_CHECKPOINT)} work. Use a folder in diffusers' layout."
        )
    names = list(read_header(model.pipeline.path)[0])
    lost = [
        component
        for component, start in _IN_CHECKPOINT[kind].items()
        if component not in _not_loaded(model.spec) and not any(n.startswith(start) for n in names)
    ]
    if lost:
        left_out = f", or set '{LEFT_OUT}: null'" if LEFT_OUT in lost else ""
        raise UsageError(
            f"'{model.pipeline.name}' has no {', '.join(lost)} of a {kind}. Use a checkpoint of "
            f"the whole pipeline{left_out}."
        )


def checkpoint_tensors(file: Path, kind: str) -> dict[str, dict[str, TensorInfo]]:
    """Return the tensors of each component in a single file, from its header."""
    tensors = read_header(file)[0].items()
    starts = {
        component: _DENOISER if start.startswith(_DENOISER) else start
        for component, start in _IN_CHECKPOINT.get(kind, {}).items()
    }
    return {
        component: {name: tensor for name, tensor in tensors if name.startswith(start)}
        for component, start in starts.items()
    }


def check_left_out(model: ResolvedModel) -> None:
    """Refuse a left-out text encoder that the pipeline does not have."""
    parts = read_config(model.layout, INDEX)
    if model.spec.left_out and parts and LEFT_OUT not in parts:
        kind = known_class(model.layout)
        raise UsageError(f"'{model.layout.name}' is a {kind}, which has none. Remove this key.")


def check_vae(model: ResolvedModel) -> None:
    """Refuse a VAE whose latents are not those of the denoiser."""
    config = read_config(model.vae, VAE) if model.vae else {}
    known = read_config(model.layout, f"vae/{VAE}")
    own, other = _latents(known), _latents(config)
    if model.vae and config and known and own != other:
        raise UsageError(
            f"'{model.vae.name}' has latents of {_shown(other)}, but the denoiser of "
            f"'{model.pipeline.name}' takes {_shown(own)}."
        )


def check_size(model: ResolvedModel) -> None:
    """Refuse images that a transformer cannot cut into patches, or has no positions for."""
    config = read_config(model.layout, "transformer/config.json")
    patch, positions = config.get("patch_size"), config.get("pos_embed_max_size")
    if not isinstance(patch, int):
        return
    unit = patch * _latents(read_config(model.layout, f"vae/{VAE}"))[1]
    most = unit * positions if isinstance(positions, int) else max(model.size)
    if any(side % unit or side > most for side in model.size):
        limit = f", at most {most}" if positions else ""
        raise UsageError(
            f"expected width and height as multiples of {unit}{limit}, which the transformer of "
            f"'{model.layout.name}' needs (got {model.size[0]} × {model.size[1]})."
        )


def check_variant(model: ResolvedModel, files: Iterable[str] | None = None) -> None:
    """Refuse a pipeline if one of its components lacks the requested variant.

    `files` are those of a pipeline on the hub, as the hub lists them.
    """
    source, spec = model.pipeline, model.spec
    index = read_config(source, INDEX)
    if source.kind == "folder":
        files = [file.relative_to(source.path).as_posix() for file in source.path.glob("*/*")]
    if files is None:
        return
    found: dict[str, set[str | None]] = {}
    for file in map(PurePosixPath, files):
        if file.suffix == ".safetensors" and len(file.parts) == 2:
            found.setdefault(file.parts[0], set()).add(weight_variant(file.name))
    parts = [name for name in index if name in found.keys() - _not_loaded(spec)]
    lacking = [name for name in parts if spec.variant not in found[name]]
    if not lacking:
        return
    there = sorted(name or "none" for name in set.intersection(*(found[name] for name in parts)))
    asked = "weights without a variant" if spec.variant is None else f"variant '{spec.variant}'"
    advice = f"Set one that it has: {', '.join(there)}." if there else "Download it again."
    if there == ["none"]:
        advice = "Remove 'variant'."
    raise UsageError(f"'{source.name}' has no {asked} of {', '.join(lacking)}. {advice}")


def _not_loaded(spec: Model) -> set[str]:
    """Return the components whose weights are not taken from the pipeline."""
    return {*spec.left_out, *(["vae"] if spec.vae else [])}


def _latents(vae: dict[str, Any]) -> tuple[int, int]:
    """Return channels of the latents, and how many times smaller than the image they are."""
    return int(vae.get("latent_channels", 4)), 2 ** (len(vae.get("block_out_channels", [0])) - 1)


def _shown(latents: tuple[int, int]) -> str:
    return f"{latents[0]} channels at 1/{latents[1]} of the size"


# --------------------
# The scheduler, read from diffusers' source: importing it takes seconds.


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

    None if the scheduler is the pipeline's own, and the pipeline is not on this machine.
    """
    steps = spec.num_inference_steps
    is_here = pipeline.kind != "hub" or cached(pipeline, SCHEDULER_CONFIG)
    if spec.scheduler is None and not is_here:
        return None
    config = read_config(pipeline, SCHEDULER_CONFIG)
    if spec.scheduler is not None:
        config |= {**spec.scheduler.options, "_class_name": spec.scheduler.class_name}
    name = config.get("_class_name")
    if name == "PNDMScheduler":  # a Runge-Kutta start, or the second step twice
        return steps + 1 if config.get("skip_prk_steps", False) else steps + 9
    if name in _files() and _order(_definition(str(name))) == 2:
        return 2 * steps - 1  # two for each step but the last
    return steps


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
    for line in definition.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "order":
            return ast.literal_eval(line.value)
    return 1
