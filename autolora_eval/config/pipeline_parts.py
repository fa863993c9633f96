"""The parts of a pipeline that a benchmark chooses: variant, VAE, text encoder, single file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from autolora_eval._environment import expanded
from autolora_eval._errors import UsageError
from autolora_eval._identity import weight_variant
from autolora_eval._sources import PICKLE_ADVICE, Lookup, Source, cached, find_model
from autolora_eval.config.inputs import INDEX, ResolvedModel, pipeline_class
from autolora_eval.config.schema import Model
from autolora_eval.config.tensor_file import read_header

LEFT_OUT = "text_encoder_3"
VAE = "config.json"
CHECKPOINTS = (".safetensors", ".ckpt")
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
    """Return the source of a pipeline: a folder, a hub id or a single file.

    Raises:
        UsageError: if it is not there, or a pickle.
    """
    name = expanded(spec.pipeline)
    if not name.endswith(CHECKPOINTS):
        return find_model(spec.pipeline, spec.revision, lookup, INDEX)
    if not name.endswith(".safetensors"):
        raise UsageError(f"'{spec.pipeline}' is a pickle: {PICKLE_ADVICE}")
    return Source(spec.pipeline, "file", str(lookup.file(spec.pipeline, "checkpoint")))


def find_layout(spec: Model, pipeline: Source, lookup: Lookup) -> Source:
    """Return where the configurations and tokenizers of a pipeline are.

    Raises:
        UsageError: if the benchmark does not say so of a single file, or says so of a folder.
    """
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
    """Refuse a single file that diffusers cannot load as the pipeline of its configuration.

    Raises:
        UsageError: with the kinds that can be loaded, or the components that the file lacks.
    """
    index = cached(model.layout, INDEX)
    if model.pipeline.kind != "file" or index is None:
        return
    kind = pipeline_class(index, model.layout.name)
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


def checkpoint_parameters(file: Path, kind: str) -> dict[str, int]:
    """Return the number of parameters of each component in a single file, from its header."""
    tensors = read_header(file)[0].items()
    return {
        component: sum(
            math.prod(tensor.shape)
            for name, tensor in tensors
            if name.startswith(_DENOISER if start.startswith(_DENOISER) else start)
        )
        for component, start in _IN_CHECKPOINT.get(kind, {}).items()
    }


def check_left_out(model: ResolvedModel) -> None:
    """Refuse a left-out text encoder that the pipeline does not have.

    Raises:
        UsageError: with the class of the pipeline.
    """
    index = cached(model.layout, INDEX)
    if model.spec.left_out and index and LEFT_OUT not in _read(index):
        kind = pipeline_class(index, model.layout.name)
        raise UsageError(f"'{model.layout.name}' is a {kind}, which has none. Remove this key.")


def check_tuned_parts(model: ResolvedModel) -> None:
    """Refuse a LoRA that tunes a text encoder that is left out, or that the pipeline lacks.

    Raises:
        UsageError: with the file and one of its tensors.
    """
    index = cached(model.layout, INDEX)
    parts = _read(index) if index else {}
    is_listed = "unet" in parts or "transformer" in parts
    for file in [lora.file for lora in model.loras if lora.file is not None]:
        for layer in file.layers:
            name = layer.component
            if name in model.spec.left_out:
                why = f"which '{name}: null' leaves out. Remove that key, or choose another LoRA."
            elif is_listed and name != "denoiser" and (parts.get(name) or [None])[0] is None:
                why = f"which '{model.layout.name}' does not have. Was it trained on another model?"
            else:
                continue
            raise UsageError(f"'{file.path}' tunes {name} ('{layer.keys['A']}'), {why}")


def check_vae(model: ResolvedModel) -> None:
    """Refuse a VAE whose latents are not those of the denoiser.

    Raises:
        UsageError: with both.
    """
    config = cached(model.vae, VAE) if model.vae else None
    known = cached(model.layout, f"vae/{VAE}")
    if model.vae is None or config is None or known is None:
        return
    own, other = _latents(_read(known)), _latents(_read(config))
    if own != other:
        raise UsageError(
            f"'{model.vae.name}' has latents of {_shown(other)}, but the denoiser of "
            f"'{model.pipeline.name}' takes {_shown(own)}."
        )


def check_variant(model: ResolvedModel, files: Iterable[str] | None = None) -> None:
    """Refuse a pipeline of which a component lacks the variant that is asked for.

    Raises:
        UsageError: with the variants that are there.
    """
    source, spec = model.pipeline, model.spec
    index = cached(source, INDEX)
    if source.kind == "folder":
        files = [file.relative_to(source.path).as_posix() for file in source.path.glob("*/*")]
    if index is None or files is None:
        return
    found: dict[str, set[str | None]] = {}
    for file in map(PurePosixPath, files):
        if file.suffix == ".safetensors" and len(file.parts) == 2:
            found.setdefault(file.parts[0], set()).add(weight_variant(file.name))
    parts = [name for name in _read(index) if name in found.keys() - _not_loaded(spec)]
    lacking = [name for name in parts if spec.variant not in found[name]]
    if not lacking:
        return
    there = sorted(name or "none" for name in set.intersection(*(found[name] for name in parts)))
    asked = "weights without a variant" if spec.variant is None else f"variant '{spec.variant}'"
    advice = f"State one that it has: {', '.join(there)}." if there else "Download it again."
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


def _read(file: Path) -> dict[str, Any]:
    """Return a configuration; an empty one if it is damaged, which is reported elsewhere."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        content = {}
    return content if isinstance(content, dict) else {}
