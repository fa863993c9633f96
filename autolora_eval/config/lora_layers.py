"""Where the layers of a LoRA file are in a pipeline, by their names: no model is loaded.

A file may have the names of diffusers, or those of the first releases of SDXL and SD3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autolora_eval._errors import UsageError
from autolora_eval.config.inputs import INDEX, ResolvedModel, read_config
from autolora_eval.config.lora_file import (
    LoraFile,
    LoraLayer,
    check_sum,
    read_lora_file,
)
from autolora_eval.config.lora_settings import Component
from autolora_eval.sources.model_source import Source, cached, local_lora
from autolora_eval.sources.safetensors_file import read_header

# SDXL's layers in the names of its first release, which kohya's sd-scripts keep. Within blocks:
_SGM_INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SGM_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
# SD3's layers in the names of its first release → diffusers'. Several layers share one A.
_MMDIT_BLOCK = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",),
    "x_block_mlp_fc2": ("ff.net.2",),
    "x_block_adaLN_modulation_1": ("norm1.linear",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",),
    "context_block_mlp_fc2": ("ff_context.net.2",),
    "context_block_adaLN_modulation_1": ("norm1_context.linear",),
}
_MMDIT_OUTER = {
    "x_embedder_proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
# Tables of embeddings, which are not linear layers.
_EMBEDDINGS = tuple(
    f"{name}.weight" for name in ("_embedding", "shared", "embed_tokens", "relative_attention_bias")
)
# What old diffusers called the layers of a text encoder.
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Home:
    """A layer of a pipeline that a layer of a file belongs to.

    Attributes:
        path: the layer's name in its network.
        chunk: (index, count) if it takes one of several equal parts of the rows of B.
        is_swapped: whether the two halves of B's rows change places: diffusers' continuous
            adaptive norm holds (scale, shift), and SD3's first release (shift, scale).
    """

    path: str
    chunk: tuple[int, int] = (0, 1)
    is_swapped: bool = False


def with_lora_files(model: ResolvedModel) -> ResolvedModel:
    """Return a model whose LoRA files are read; those on the hub are fetched first.

    Raises:
        AutoLoRAEvalError: if a file cannot be fetched, or cannot be loaded exactly.
    """
    loras = [replace(one, file=read_lora_file(local_lora(one.source))) for one in model.loras]
    model = replace(model, loras=tuple(loras))
    check_sum(model.switched_loras)
    check_tuned_layers(model)
    return model


def check_tuned_layers(model: ResolvedModel) -> None:
    """Refuse a LoRA of a text encoder or layer that the pipeline lacks or has in another size."""
    files = [lora.file for lora in model.loras if lora.file is not None]
    parts = read_config(model.layout, INDEX) if files else {}
    is_listed = "unet" in parts or "transformer" in parts
    for file in files:
        for layer in file.layers:
            name = layer.component
            if name in model.spec.left_out:
                why = f"which '{name}: null' leaves out. Remove that key, or choose another LoRA."
            elif is_listed and name != "denoiser" and (parts.get(name) or [None])[0] is None:
                why = f"which '{model.layout.name}' does not have. {_origin(file)}"
            else:
                continue
            raise UsageError(f"'{file.path}' tunes {name} ('{layer.keys['A']}'), {why}")
    for component in dict.fromkeys(layer.component for file in files for layer in file.layers):
        folders = ("unet", "transformer") if component == "denoiser" else (component,)
        for folder in folders:
            shapes = _layer_shapes(model.layout, folder)
            config = read_config(model.layout, f"{folder}/config.json")
            for file in files if shapes and "quantization_config" not in config else ():
                layer_homes(file, component, shapes, config)


def _layer_shapes(pipeline: Source, folder: str) -> dict[str, tuple[int, ...]]:
    """Return the linear and convolutional layers of a network whose weights are here."""
    config = cached(pipeline, f"{folder}/config.json")
    files = list(config.parent.glob("*.safetensors")) if config else []
    tensors = [item for file in files if file.is_file() for item in read_header(file)[0].items()]
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in tensors
        if name.endswith(".weight")
        and len(tensor.shape) in (2, 4)
        and not name.endswith(_EMBEDDINGS)
    }


def layer_homes(
    file: LoraFile,
    component: Component,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> list[tuple[LoraLayer, list[Home]]]:
    """Return each layer that the file tunes of a network, with the layers that it belongs to.

    `shapes` are those of the weights of the network's linear and convolutional layers.

    Raises:
        UsageError: if a layer of the file has none in the network, shares it with another, or has
            another size.
    """
    layers = [layer for layer in file.layers if layer.component == component]
    known = _names(shapes, component, config)
    homes = [(layer, known.get(_flat(layer.name, component), [])) for layer in layers]
    homeless = [layer for layer, found in homes if not found]
    if homeless:
        raise UsageError(
            f"{len(homeless)} of the {len(layers)} layers that '{file.path}' tunes of the "
            f"{component} are not in this pipeline, such as '{homeless[0].keys['A']}'. "
            f"{_origin(file)}"
        )
    owners: dict[str, LoraLayer] = {}
    for layer, found in homes:
        for home in found:
            first = owners.setdefault(home.path, layer)
            if first is not layer:
                raise UsageError(
                    f"'{file.path}' tunes one layer twice: '{first.keys['A']}' and "
                    f"'{layer.keys['A']}'."
                )
            out, *inputs = shapes[home.path]
            size = (out * home.chunk[1], math.prod(inputs))
            if layer.size != size:
                raise UsageError(
                    f"'{file.path}': the layer of '{layer.keys['A']}' has {_sized(layer.size)}, "
                    f"but {_sized(size)} in this pipeline. {_origin(file)}"
                )
    return homes


def _origin(file: LoraFile) -> str:
    said = f" Its header says '{file.trained_on:.80}'." if file.trained_on else ""
    return f"Was the LoRA trained on another base model?{said}"


def _sized(size: tuple[int, int]) -> str:
    return f"{size[1]:,} inputs and {size[0]:,} outputs"


def _flat(name: str, component: Component) -> str:
    """Return a layer's name in the one spelling that all conventions share: without dots."""
    if component != "denoiser":
        name = name.removeprefix("text_model.").removeprefix("text_model_")
        head, _, last = name.rpartition(".")
        name = f"{head}.{_OLD_TEXT_NAMES.get(last, last)}" if head else name
    elif name.endswith(".to_out"):  # attention processors of old diffusers
        name += ".0"
    return name.replace(".", "_")


def _names(
    paths: Collection[str], component: Component, config: Mapping[str, Any]
) -> dict[str, list[Home]]:
    """Return the layers of a network by every name that a file may have for them."""
    known = {_flat(path, component): [Home(path)] for path in paths}
    if component == "denoiser":
        blocks_with_attention = {
            path.split(".attentions.")[0] for path in paths if ".attentions." in path
        }
        for path in paths:
            first = sgm_name(path, config.get("layers_per_block", 2), blocks_with_attention)
            if first:
                known.setdefault(first.replace(".", "_"), [Home(path)])
        known.update(_mmdit_names(paths))
    return known


def sgm_name(
    path: str, layers_per_block: int | Sequence[int], with_attention: Collection[str]
) -> str | None:
    """Return the name of a UNet's layer in SDXL's first release; None if it has none.

    diffusers numbers blocks and the layers in them; the first release numbers all layers through.
    `layers_per_block` is a list if the blocks differ.
    """
    if path in _SGM_OUTER:
        return _SGM_OUTER[path]
    part, _, rest = path.partition(".")
    numbers = r"(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
    match = re.fullmatch(numbers, rest)
    if part == "mid_block" and (middle := re.fullmatch(r"(resnets|attentions)\.(\d+)\.(.+)", rest)):
        kind, index, inner = middle.group(1), int(middle.group(2)), middle.group(3)
        place = 1 if kind == "attentions" else 2 * index
        return f"middle_block.{place}.{_SGM_INNER.get(inner, inner)}"
    if match is None:
        return None
    block, kind, index, inner = int(match[1]), match[2], int(match[3]), match[4]
    is_down = part == "down_blocks"
    if isinstance(layers_per_block, int):
        layers_per_block = [layers_per_block] * (block + 1)
    counts = layers_per_block if is_down else layers_per_block[::-1]
    first = sum(counts[:block]) + block + is_down
    if is_down:
        if kind == "downsamplers":
            return f"input_blocks.{first + counts[block]}.0.op"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}.{_inner(kind, inner)}"
    if kind == "upsamplers":  # behind the attention of the block's last layer, where there is one
        position = 2 if f"up_blocks.{block}" in with_attention else 1
        return f"output_blocks.{first + counts[block]}.{position}.{inner}"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{_inner(kind, inner)}"


def _inner(kind: str, inner: str) -> str:
    return _SGM_INNER.get(inner, inner) if kind == "resnets" else inner


def _mmdit_names(paths: Collection[str]) -> dict[str, list[Home]]:
    """Return SD3's layers by the names of its first release."""
    known: dict[str, list[Home]] = {}
    blocks = {path.split(".")[1] for path in paths if path.startswith("transformer_blocks.")}
    for block in blocks:
        for name, targets in _MMDIT_BLOCK.items():
            homes = [
                Home(f"transformer_blocks.{block}.{target}", (index, len(targets)))
                for index, target in enumerate(targets)
            ]
            if all(home.path in paths for home in homes):
                known[f"joint_blocks_{block}_{name}"] = homes
    if not blocks:
        return {}
    last = f"joint_blocks_{max(map(int, blocks))}_context_block_adaLN_modulation_1"
    for name, path in _MMDIT_OUTER.items():
        known[name] = [Home(path, is_swapped=path == "norm_out.linear")]
    if last in known:  # the last block's norm of the context is the continuous one
        known[last] = [replace(home, is_swapped=True) for home in known[last]]
    return known
