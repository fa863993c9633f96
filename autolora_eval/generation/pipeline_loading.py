"""Opens the pipeline of a model, loads its components, and places them on a device.

Named defects are those of diffusers 0.42 in
https://github.com/huggingface/diffusers/tree/v0.42.1/src/diffusers.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import ComponentsManager, ModularPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError

from autolora_eval._devices import keep_freed_memory
from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval._text import first_few
from autolora_eval.config.inputs import (
    INDEX,
    WHAT_WORKS,
    ResolvedModel,
    no_clip_skip,
    no_guider,
    pipeline_class,
)
from autolora_eval.config.schema import Model, Offload, Scheduler
from autolora_eval.generation.sampling_loop import own_noise
from autolora_eval.sources.model_source import Source, cached

# A row of the report that transformers logs.
_MISSING = re.compile(r"^(\S+)\s*\|\s*(?:\x1b\[[0-9;]*m)*MISSING", re.MULTILINE)
_LISTED = 5  # weights that a message names
# What diffusers raises for a single file that it cannot load.
_UNLOADABLE = (
    *(SingleFileComponentError, OSError, ValueError, KeyError, RuntimeError, AttributeError),
)


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
        if device.type == "cpu":
            keep_freed_memory()
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
    replaced = [] if model.vae is None else ["vae"]
    if model.vae is not None:
        vae = parts["vae"]
        vae.pretrained_model_name_or_path, vae.subfolder = model.vae.location, ""
    options = _loading_options(parts, spec, replaced)
    with _random_weights_refused(model.pipeline.name):
        if model.pipeline.kind == "file":
            pipe.load_components(names=replaced, dtype=dtype, **options)
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


def _loading_options(
    parts: Mapping[str, Any], spec: Model, replaced: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the options of `load_components` by component; `replaced` ones are of other models."""
    networks = [
        name
        for name, part in parts.items()
        if isinstance(part.type_hint, type) and issubclass(part.type_hint, torch.nn.Module)
    ]
    own = [name for name in parts if name not in replaced]
    options: dict[str, dict[str, Any]] = {"use_safetensors": dict.fromkeys(networks, True)}
    if spec.variant is not None:
        options["variant"] = dict.fromkeys(set(networks).intersection(own), spec.variant)
    # from_pretrained uses its revision for model_index.json only, not for the components
    # (modular_pipelines/modular_pipeline.py).
    if spec.revision is not None:
        options["revision"] = dict.fromkeys(own, spec.revision)
    return options


def _from_single_file(
    pipe: ModularPipeline, model: ResolvedModel, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the components of a pipeline in a single file, as diffusers loads it."""
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
    except _UNLOADABLE as error:
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
    """Refuse files that lack weights: diffusers and transformers log it and draw them at random."""
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
        raise AutoLoRAEvalError(
            f"'{reference}': its files lack weights, which would be drawn at random: "
            f"{first_few(lacking, _LISTED)}. Download the model again, or write it with "
            "save_pretrained."
        )


def _check_components(pipe: ModularPipeline, reference: str) -> None:
    """Refuse a component that was not loaded.

    diffusers only logs it, and SD3 then samples without that encoder
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
    """Refuse a pipeline of the hub whose size is not the one that the plan assumed."""
    own = (getattr(pipe, "default_width", None), getattr(pipe, "default_height", None))
    is_set = model.spec.width is not None and model.spec.height is not None
    if model.pipeline.kind == "hub" and not is_set and None not in own and own != model.size:
        raise AutoLoRAEvalError(
            f"'{model.pipeline.name}' makes images of {own[0]}×{own[1]} pixels, but the plan "
            f"assumed {model.size[0]}×{model.size[1]}. Set width and height of the model."
        )


def make_scheduler(spec: Scheduler, own: Mapping[str, Any], num_steps: int) -> Any:  # noqa: ANN401
    """Return a scheduler with the options, and the pipeline's own settings for all others.

    It is tried on small noise first. `own` is the configuration of the pipeline's own scheduler.

    Raises:
        AutoLoRAEvalError: if the class refuses its options, fits another kind of model, or does
            not sample each image by itself.
    """
    name = spec.class_name
    try:
        kind = getattr(diffusers, name)
        scheduler = kind.from_config(dict(own), **spec.options)
        _require_same_kind(kind, scheduler.config, own)
        together, alone = (_denoised(scheduler, seeds, num_steps) for seeds in ([0, 1], [1]))
    except AutoLoRAEvalError:
        raise
    except Exception as error:  # each scheduler refuses in its own way
        why = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
        advice = "Change its options, or choose another class."
        raise _refused(name, f"cannot be used here: {why}. {advice}") from error
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise _refused(name, "goes from images to noise. Choose another class.")
    if not together.isfinite().all():
        raise _refused(name, f"makes NaN in {num_steps} steps. Change its options or the steps.")
    if not torch.allclose(together[1:], alone, atol=1e-5):
        raise _refused(
            name,
            "draws noise that is not the image's own: an image would depend on the others of its "
            "batch. Choose another class, such as DPMSolverMultistepScheduler with "
            "'algorithm_type: sde-dpmsolver++'.",
        )
    return scheduler


def _refused(name: str, problem: str) -> AutoLoRAEvalError:
    return AutoLoRAEvalError(f"the scheduler {name} {problem}")


def _require_same_kind(kind: type, new: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a scheduler of flows for a diffusion model, and the other way round."""
    name, is_flow = kind.__name__, _is_flow(kind.__name__, new)
    if _is_flow(str(own.get("_class_name")), own):
        if not is_flow:
            raise _refused(
                name,
                "is not for a model that predicts a flow, as this one does. Choose a class whose "
                "name begins with FlowMatch, or set 'use_flow_sigmas: true, prediction_type: "
                "flow_prediction' if it has these options.",
            )
    elif is_flow or "prediction_type" not in inspect.signature(kind).parameters:
        raise _refused(name, "is not for a model that predicts noise. Choose another class.")


def _is_flow(name: str, config: Mapping[str, Any]) -> bool:
    return name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"


def _denoised(scheduler: Any, seeds: Sequence[int], num_steps: int) -> torch.Tensor:  # noqa: ANN401
    """Run a scheduler on small noise, with a tenth of each sample in place of a prediction."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(num_steps, **shift)
    scales = hasattr(scheduler, "scale_model_input")
    latents = torch.cat([torch.randn((1, 4, 8, 8), generator=one) for one in generators])
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    with own_noise(scheduler, generators):
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t) if scales else latents
            latents = scheduler.step(0.1 * scaled, t, latents, return_dict=False)[0]
    return latents
