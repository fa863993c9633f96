"""Opens the pipeline of a model, loads its components, and places them on a device."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import ComponentsManager, ModularPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError

from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval.config.inputs import (
    INDEX,
    WHAT_WORKS,
    ResolvedModel,
    no_clip_skip,
    no_guider,
    pipeline_class,
)
from autolora_eval.config.schema import Model, Offload
from autolora_eval.generation.scheduling import make_scheduler
from autolora_eval.sources.hub import cached
from autolora_eval.sources.model_source import Source


def place(
    pipe: ModularPipeline, device: torch.device, offload: Offload, working_bytes: int
) -> None:
    """Put a pipeline on its device.

    On a GPU, networks that may leave it are on the CPU until their first pass, by the hooks of
    diffusers' `ComponentsManager`: only the text encoders, or all networks. The hooks act in the
    standard pipeline too, if it has the same networks.

    Args:
        pipe: a pipeline on the CPU.
        device: where it runs.
        offload: `none`: all networks stay, except for text encoders after `leave_device`. `auto`:
            networks leave when another one needs their memory. `model`: one at a time.
        working_bytes: what `auto` leaves free for the tensors of a pass.
    """
    if device.type != "cuda":  # no other memory to move to, or no count of what is free
        pipe.to(device)
        return
    networks = {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }
    manager = ComponentsManager()
    for name, network in networks.items():
        if offload == "none" and not name.startswith("text_encoder"):
            network.to(device)
        else:
            manager.add(name, network)
    strategies: dict[Offload, Any] = {"none": _nothing_leaves, "auto": None, "model": _all_leave}
    manager.enable_auto_cpu_offload(
        device, memory_reserve_margin=working_bytes, offload_strategy=strategies[offload]
    )


def leave_device(network: torch.nn.Module) -> None:
    """Move a network to the CPU, if its next pass brings it back."""
    if hasattr(network, "_hf_hook"):
        network.to("cpu")
        torch.cuda.empty_cache()  # `auto` counts what is free outside of torch's cache


def _nothing_leaves(**_: object) -> list[Any]:
    return []


def _all_leave(hooks: list[Any], **_: object) -> list[Any]:
    return hooks


# A row of the report that transformers logs.
_MISSING = re.compile(r"^(\S+)\s*\|\s*(?:\x1b\[[0-9;]*m)*MISSING", re.MULTILINE)
_LISTED = 5  # weights that a message names


def load_pipeline(model: ResolvedModel, dtype: torch.dtype) -> ModularPipeline:
    """Load all components of a pipeline on the CPU.

    Raises:
        AutoLoRAEvalError: if no guider can act on the pipeline, or it is damaged.
    """
    spec = model.spec
    pipe = open_pipeline(model.layout, spec)
    parts = pipe._component_specs
    for name in spec.left_out:
        parts[name].pretrained_model_name_or_path = None
    if model.vae is not None:
        vae = parts["vae"]
        vae.pretrained_model_name_or_path, vae.subfolder = model.vae.location, ""
    networks = [
        name
        for name, component in pipe._component_specs.items()
        if isinstance(component.type_hint, type)
        and issubclass(component.type_hint, torch.nn.Module)
    ]
    options: dict[str, Any] = {"use_safetensors": dict.fromkeys(networks, True)}
    not_replaced = [name for name in parts if name != "vae" or model.vae is None]
    if spec.variant is not None:
        options["variant"] = dict.fromkeys(set(networks).intersection(not_replaced), spec.variant)
    # from_pretrained uses its revision for model_index.json only, not for the components
    # (modular_pipelines/modular_pipeline.py).
    if spec.revision is not None:
        options["revision"] = dict.fromkeys(not_replaced, spec.revision)
    with _random_weights_refused(model.pipeline.name):
        if model.pipeline.kind == "file":
            chosen = [] if model.vae is None else ["vae"]
            pipe.load_components(names=chosen, dtype=dtype, **options)
            pipe.update_components(**_from_single_file(pipe, model, dtype))
        else:
            pipe.load_components(dtype=dtype, **options)
    _check_components(pipe, model.pipeline.name)
    _check_size(pipe, model)
    if spec.scheduler is not None:
        own = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
        steps = spec.num_inference_steps
        pipe.update_components(scheduler=make_scheduler(spec.scheduler, own, steps))
    # The stage draws one progress bar; diffusers would draw one per batch.
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_single_file(
    pipe: ModularPipeline, model: ResolvedModel, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the components of a pipeline in a single file, as diffusers loads it.

    Raises:
        AutoLoRAEvalError: if diffusers cannot load it.
    """
    index = cached(model.layout, INDEX)
    assert index is not None
    name = pipeline_class(index, model.layout.name)
    chosen = dict.fromkeys(model.spec.left_out) | ({"vae": pipe.vae} if model.vae else {})
    try:
        loaded = getattr(diffusers, name).from_single_file(
            model.pipeline.location,
            config=model.layout.location,
            revision=model.spec.revision,
            dtype=dtype,
            **chosen,
        )
    except (
        SingleFileComponentError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        AttributeError,
    ) as error:
        raise AutoLoRAEvalError(
            f"'{model.pipeline.name}' cannot be loaded as a {name} with the configurations of "
            f"'{model.layout.name}': {first_line(error)}"
        ) from error
    known = loaded.components.items()
    parts = {key: part for key, part in known if key in pipe._component_specs and part is not None}
    # diffusers leaves the T5 of a single file in training mode, with dropout
    # (loaders/single_file_utils.py, create_diffusers_t5_model_from_checkpoint).
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return parts


def open_pipeline(pipeline: Source, spec: Model) -> ModularPipeline:
    """Read the configuration of a pipeline. No weights are loaded.

    Raises:
        AutoLoRAEvalError: if it makes no images from text, takes no guider, or takes no negative
            prompt or no clip_skip but the benchmark sets one.
        OSError: if it is on the hub, and the hub cannot be reached.
    """
    try:
        pipe = ModularPipeline.from_pretrained(
            pipeline.location,
            workflow="text2image",
            revision=spec.revision,
            trust_remote_code=False,
        )
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise AutoLoRAEvalError(_unsupported(pipeline, error)) from error
    if "guider" not in pipe.component_names:
        raise AutoLoRAEvalError(no_guider(pipeline.name, type(pipe).__name__))
    if spec.negative_prompt and "negative_prompt" not in pipe.blocks.input_names:
        raise AutoLoRAEvalError(
            f"'{pipeline.name}' is a {type(pipe).__name__}, which takes no negative prompt (got "
            f"'{spec.negative_prompt:.80}'). Remove negative_prompt."
        )
    if spec.clip_skip is not None and "clip_skip" not in pipe.blocks.input_names:
        raise AutoLoRAEvalError(no_clip_skip(pipeline.name, type(pipe).__name__))
    return pipe


def _unsupported(pipeline: Source, error: Exception) -> str:
    """Return the message for a pipeline that diffusers cannot open."""
    index = cached(pipeline, INDEX)
    name = pipeline_class(index, pipeline.name) if index else "pipeline without an index"
    version = f"diffusers {diffusers.__version__}"
    if isinstance(error, AttributeError):
        problem = f"is a '{name}', which {version} does not know."
    elif isinstance(error, NotImplementedError) or "orkflow" in str(error):
        problem = f"is a {name}, for which {version} has no text-to-image workflow."
    elif "blocks" in str(error):
        problem = f"is a {name}, for which {version} has no modular pipeline that takes a guider."
    else:
        problem = f"is a {name} that cannot be opened: {first_line(error).rstrip('.')}."
    return f"'{pipeline.name}' {problem} {WHAT_WORKS}"


@contextmanager
def _random_weights_refused(reference: str) -> Iterator[None]:
    """Refuse networks whose files lack weights.

    diffusers and transformers only log which ones they lack, and draw them at random.
    """
    lacking: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            lacking.extend(_MISSING.findall(text))
            if "newly initialized" in text:
                lacking.extend(re.findall("'([^']+)'", text))

    handler = Notes()
    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for library in libraries:
        library.addHandler(handler)
    try:
        yield
    finally:
        for library in libraries:
            library.removeHandler(handler)
    if lacking:
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        raise AutoLoRAEvalError(
            f"'{reference}': its files lack weights, which would be drawn at random: "
            f"{', '.join(lacking[:_LISTED])}{more}. Download the model again, or write it with "
            "save_pretrained."
        )


def _check_components(pipe: ModularPipeline, reference: str) -> None:
    """Check that every component was loaded.

    diffusers only logs a component that fails to load, and SD3 then samples without that encoder
    (modular_pipelines/modular_pipeline.py, load_components).
    """
    lost = [
        name
        for name, part in pipe._component_specs.items()
        if part.default_creation_method == "from_pretrained"
        and part.pretrained_model_name_or_path
        and part.type_hint is not None
        and getattr(pipe, name, None) is None
    ]
    if lost:
        raise AutoLoRAEvalError(
            f"'{reference}': {', '.join(lost)} could not be loaded: files are missing, damaged, "
            "or not .safetensors. Download the model again, or write it with save_pretrained."
        )


def _check_size(pipe: ModularPipeline, model: ResolvedModel) -> None:
    """Check that a pipeline of the hub has the size that the plan assumed for it."""
    own = (getattr(pipe, "default_width", None), getattr(pipe, "default_height", None))
    is_set = model.spec.width is not None and model.spec.height is not None
    if model.pipeline.kind == "hub" and not is_set and None not in own and own != model.size:
        raise AutoLoRAEvalError(
            f"'{model.pipeline.name}' makes images of {own[0]}×{own[1]} pixels, but the plan "
            f"assumed {model.size[0]}×{model.size[1]}. Set width and height of the model."
        )
