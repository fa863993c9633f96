"""LoRA files in a pipeline: every layer of the file finds its layer, or the file is refused.

diffusers' own loader warns about names it does not know and goes on with the rest of the LoRA,
matches alphas of single layers to names that no longer exist, and drops DoRA's magnitudes
(diffusers 0.42). Here the layers of the file are put into peft's layers one by one, and what the
pipeline then holds is compared with the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer as PeftLayer
from safetensors import safe_open

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.config.lora_file import Component, LoraFile, LoraLayer
from autolora_eval.guidance.denoiser_state import InPlaceConv2d, InPlaceLinear, adapter_layers

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
# What old diffusers called the layers of a text encoder.
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class _Home:
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


@dataclass(frozen=True)
class _Weights:
    """What one layer of a network takes from a file.

    Attributes:
        a: A of equation (2), in the shape of the layer's own weight with r rows.
        b: B, [out, r] or [out, r, 1, 1].
        scaling: alpha / r.
        alpha: α of the file, before division by r.
        magnitude: DoRA's, [out]; None without.
    """

    a: torch.Tensor
    b: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None


def load_lora(networks: Mapping[Component, torch.nn.Module], file: LoraFile, adapter: str) -> int:
    """Put a LoRA into the networks of a pipeline, exactly as its file says, at scale 1.

    It is added to those that are there already, which stay on.

    Args:
        networks: the pipeline's denoiser and text encoders.
        file: the LoRA file.
        adapter: the name of the adapter in peft.

    Returns:
        The number of layers that the LoRA tunes.

    Raises:
        AutoLoRAEvalError: if a layer of the file has no layer in the pipeline, shares it with
            another or has another shape. The message names file and tensor; no network is changed.
    """
    found = {component: _homes(file, component, networks) for component in _components(file)}
    with safe_open(file.path, framework="pt") as tensors:
        weights = {
            component: dict(_read(file, tensors, networks[component], homes))
            for component, homes in found.items()
        }
    for component, layers in weights.items():
        in_file = _digest(layers)  # before: the network takes the tensors over
        before = _active(networks[component])
        _inject(networks[component], layers, adapter)
        for layer in adapter_layers(networks[component]):
            layer.set_adapter([*before, adapter], inference_mode=True)
        if _digest(dict(_loaded(networks[component], adapter))) != in_file:
            raise AutoLoRAEvalError(
                f"the {component} does not hold what '{file.path}' says after loading it. "
                "This is a defect of autolora-eval; please report it with the file."
            )
    return len(file.layers)


def _active(network: torch.nn.Module) -> list[str]:
    layers = adapter_layers(network)
    return list(layers[0].active_adapters) if layers else []


def _components(file: LoraFile) -> list[Component]:
    return list(dict.fromkeys(layer.component for layer in file.layers))


def _homes(
    file: LoraFile, component: Component, networks: Mapping[Component, torch.nn.Module]
) -> list[tuple[LoraLayer, list[_Home]]]:
    """Return each layer that the file tunes of a component, with the layers that it belongs to."""
    layers = [layer for layer in file.layers if layer.component == component]
    if component not in networks:
        raise AutoLoRAEvalError(
            f"'{file.path}' tunes {component} ('{layers[0].keys['A']}'), which the pipeline does "
            "not have."
        )
    known = _names(networks[component], component)
    homes = [(layer, known.get(_flat(layer.name, component), [])) for layer in layers]
    homeless = [layer for layer, found in homes if not found]
    if homeless:
        raise AutoLoRAEvalError(
            f"{len(homeless)} of the {len(layers)} layers that '{file.path}' tunes of the "
            f"{component} are not in this pipeline, such as '{homeless[0].keys['A']}'. Was the "
            "LoRA trained on another base model?"
        )
    owners: dict[str, LoraLayer] = {}
    for layer, found in homes:
        for home in found:
            first = owners.setdefault(home.path, layer)
            if first is not layer:
                raise AutoLoRAEvalError(
                    f"'{file.path}' tunes one layer twice: '{first.keys['A']}' and "
                    f"'{layer.keys['A']}'."
                )
    return homes


def _flat(name: str, component: Component) -> str:
    """Return a layer's name in the one spelling that all conventions share: without dots."""
    if component != "denoiser":
        name = name.removeprefix("text_model.").removeprefix("text_model_")
        head, _, last = name.rpartition(".")
        name = f"{head}.{_OLD_TEXT_NAMES.get(last, last)}" if head else name
    elif name.endswith(".to_out"):  # attention processors of old diffusers
        name += ".0"
    return name.replace(".", "_")


def _names(network: torch.nn.Module, component: Component) -> dict[str, list[_Home]]:
    """Return the layers of a network by every name that a file may have for them."""
    known: dict[str, list[_Home]] = {}
    paths = {
        name.removesuffix(".base_layer")
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and ".lora_" not in name
    }
    for path in paths:
        known[_flat(path, component)] = [_Home(path)]
    if component == "denoiser":
        config = getattr(network, "config", {})
        blocks_with_attention = {
            path.split(".attentions.")[0] for path in paths if ".attentions." in path
        }
        for path in paths:
            first = _sgm_name(path, config.get("layers_per_block", 2), blocks_with_attention)
            if first:
                known.setdefault(first.replace(".", "_"), [_Home(path)])
        known.update(_mmdit_names(paths))
    return known


def _sgm_name(path: str, layers_per_block: int, with_attention: Collection[str]) -> str | None:
    """Return the name of a UNet's layer in SDXL's first release; None if it has none.

    diffusers numbers blocks and the layers in them; the first release numbers all layers through.
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
    if part == "down_blocks":
        first = 1 + block * (layers_per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.op"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}.{_inner(kind, inner)}"
    first = block * (layers_per_block + 1)
    if kind == "upsamplers":  # behind the attention of the block's last layer, where there is one
        position = 2 if f"up_blocks.{block}" in with_attention else 1
        return f"output_blocks.{first + layers_per_block}.{position}.{inner}"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{_inner(kind, inner)}"


def _inner(kind: str, inner: str) -> str:
    return _SGM_INNER.get(inner, inner) if kind == "resnets" else inner


def _mmdit_names(paths: set[str]) -> dict[str, list[_Home]]:
    """Return SD3's layers by the names of its first release."""
    known: dict[str, list[_Home]] = {}
    blocks = {path.split(".")[1] for path in paths if path.startswith("transformer_blocks.")}
    for block in blocks:
        for name, targets in _MMDIT_BLOCK.items():
            homes = [
                _Home(f"transformer_blocks.{block}.{target}", (index, len(targets)))
                for index, target in enumerate(targets)
            ]
            if all(home.path in paths for home in homes):
                known[f"joint_blocks_{block}_{name}"] = homes
    if not blocks:
        return {}
    last = f"joint_blocks_{max(map(int, blocks))}_context_block_adaLN_modulation_1"
    for name, path in _MMDIT_OUTER.items():
        known[name] = [_Home(path, is_swapped=path == "norm_out.linear")]
    if last in known:  # the last block's norm of the context is the continuous one
        known[last] = [replace(home, is_swapped=True) for home in known[last]]
    return known


def _read(
    file: LoraFile,
    tensors: Any,  # noqa: ANN401
    network: torch.nn.Module,
    homes: Sequence[tuple[LoraLayer, Sequence[_Home]]],
) -> Iterator[tuple[str, _Weights]]:
    """Yield (path, weights) of every layer of a network that the file tunes."""
    for layer, found in homes:
        whole = _whole(file, tensors, layer)
        for home in found:
            base: Any = network.get_submodule(home.path)
            b = whole.b.chunk(home.chunk[1])[home.chunk[0]]
            magnitude = whole.magnitude
            if magnitude is not None:
                magnitude = magnitude.chunk(home.chunk[1])[home.chunk[0]]
            if home.is_swapped:
                b = torch.cat(b.chunk(2)[::-1])
                magnitude = None if magnitude is None else torch.cat(magnitude.chunk(2)[::-1])
            part = replace(whole, b=b, magnitude=magnitude)
            yield home.path, _fitted(file, layer, part, base.weight)


def _whole(file: LoraFile, tensors: Any, layer: LoraLayer) -> _Weights:  # noqa: ANN401
    """Read the tensors of one layer of the file."""
    read = {}
    for part in ("A", "B", "mid", "magnitude"):
        if part in layer.keys:
            read[part] = tensors.get_tensor(layer.keys[part]).float()
    a = read["A"]
    if "mid" in read:  # Tucker: B [out, r, 1, 1] · mid [r, s, h, w] · A [s, in, 1, 1]
        a = torch.einsum("rshw,si->rihw", read["mid"], a.flatten(1))
    magnitude = read.get("magnitude")
    if magnitude is not None:
        magnitude = magnitude.flatten()
    return _Weights(a, read["B"], layer.alpha, magnitude)


def _fitted(file: LoraFile, layer: LoraLayer, weights: _Weights, base: torch.Tensor) -> _Weights:
    """Return weights in the shape and precision of the layer that they tune."""
    rank, out = weights.a.shape[0], base.shape[0]
    kernel = [1] * (base.dim() - 2)
    fits = weights.a[0].numel() == base[0].numel() and weights.b.numel() == out * rank
    if weights.magnitude is not None:
        fits = fits and weights.magnitude.numel() == out
    if not fits:
        raise AutoLoRAEvalError(
            f"'{file.path}': '{layer.keys['A']}' of shape {tuple(weights.a.shape)} does not fit "
            f"its layer of shape {tuple(base.shape)}. Was the LoRA trained on another base model?"
        )
    magnitude = weights.magnitude
    return _Weights(
        weights.a.reshape(rank, *base.shape[1:]).to(base),
        weights.b.reshape(out, rank, *kernel).to(base),
        weights.alpha,
        None if magnitude is None else magnitude.to(base),
    )


def _inject(network: torch.nn.Module, layers: Mapping[str, _Weights], adapter: str) -> None:
    """Give layers of a network peft's adapter, with these weights.

    One configuration serves all layers: peft matches patterns of ranks and alphas layer by layer
    against every pattern, which takes quadratic time, so both are set afterwards.
    """
    some = next(iter(layers.values()))
    config = LoraConfig(
        r=some.a.shape[0],
        lora_alpha=some.alpha,
        target_modules=list(layers),
        use_dora=some.magnitude is not None,
        init_lora_weights=False,
    )
    config._register_custom_module({torch.nn.Linear: InPlaceLinear, torch.nn.Conv2d: InPlaceConv2d})
    inject_adapter_in_model(config, network, adapter, low_cpu_mem_usage=True)
    network._hf_peft_config_loaded = True  # type: ignore[assignment]  # diffusers and transformers ask for it
    for path, weights in layers.items():
        layer: Any = network.get_submodule(path)
        rank = weights.a.shape[0]
        layer.r[adapter], layer.lora_alpha[adapter] = rank, weights.alpha
        _set_weight(layer.lora_A[adapter], weights.a)
        _set_weight(layer.lora_B[adapter], weights.b)
        if weights.magnitude is not None:
            shaped = weights.magnitude
            if weights.a.dim() > 2:  # peft keeps a convolution's as [1, out, 1, 1]
                shaped = shaped.reshape(1, -1, *[1] * (weights.a.dim() - 2))
            _set_weight(layer.lora_magnitude_vector[adapter], shaped)
        layer.set_scale(adapter, 1.0)


def _set_weight(module: torch.nn.Module, weight: torch.Tensor) -> None:
    module.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)


def _loaded(network: torch.nn.Module, adapter: str) -> Iterator[tuple[str, _Weights]]:
    """Yield (path, weights) of every layer that carries the adapter."""
    layers: Iterator[tuple[str, Any]] = network.named_modules()
    for path, layer in layers:
        if isinstance(layer, PeftLayer) and adapter in layer.lora_A:
            rank = layer.lora_A[adapter].weight.shape[0]
            magnitude = None
            if adapter in layer.lora_magnitude_vector:
                magnitude = layer.lora_magnitude_vector[adapter].weight.flatten()
            yield (
                path,
                _Weights(
                    layer.lora_A[adapter].weight,
                    layer.lora_B[adapter].weight,
                    layer.scaling[adapter] * rank,
                    magnitude,
                ),
            )


def _digest(layers: Mapping[str, _Weights]) -> str:
    """Return a hash of what all layers do: A, B, scaling and magnitude, in linear time."""
    digest = hashlib.sha256()
    for path, weights in sorted(layers.items()):
        digest.update(f"{path} {weights.alpha / weights.a.shape[0]:.9g}".encode())
        for tensor in (weights.a, weights.b, weights.magnitude):
            if tensor is not None:
                raw = tensor.detach().cpu().contiguous().view(torch.uint8)
                digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
