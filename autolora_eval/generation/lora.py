"""LoRA files in a pipeline: every layer of the file finds its layer, or the file is refused.

diffusers' own loader warns about names it does not know and goes on with the rest of the LoRA,
matches alphas of single layers to names that no longer exist, and drops DoRA's magnitudes
(diffusers 0.42). Here the layers of the file are put into peft's layers one by one, and what the
pipeline then holds is compared with the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer as PeftLayer
from safetensors import safe_open

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.config.lora_file import LoraFile, LoraLayer
from autolora_eval.config.lora_layers import Home, layer_homes
from autolora_eval.config.lora_settings import Component
from autolora_eval.guidance.denoiser_state import InPlaceConv2d, InPlaceLinear, adapter_layers


@dataclass(frozen=True)
class _Weights:
    """What one layer of a network takes from a file.

    Attributes:
        a: A of equation (2), in the shape of the layer's own weight with r rows.
        b: B, [out, r] or [out, r, 1, 1].
        alpha: α of the file, before division by r.
        magnitude: DoRA's, [out]; None without.
    """

    a: torch.Tensor
    b: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None


def load_lora(networks: Mapping[Component, torch.nn.Module], file: LoraFile, adapter: str) -> int:
    """Put a LoRA into the networks of a pipeline, exactly as its file says, at scale 1.

    Earlier LoRAs stay on. Returns the number of layers that the LoRA tunes.

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
) -> list[tuple[LoraLayer, list[Home]]]:
    """Return each layer that the file tunes of a component, with the layers that it belongs to."""
    if component not in networks:
        key = next(layer.keys["A"] for layer in file.layers if layer.component == component)
        raise AutoLoRAEvalError(
            f"'{file.path}' tunes {component} ('{key}'), which the pipeline does not have."
        )
    network = networks[component]
    shapes = {
        name.removesuffix(".base_layer"): tuple(layer.weight.shape)
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and ".lora_" not in name
    }
    return layer_homes(file, component, shapes, getattr(network, "config", {}))


def _read(
    file: LoraFile,
    tensors: Any,  # noqa: ANN401
    network: torch.nn.Module,
    homes: Sequence[tuple[LoraLayer, Sequence[Home]]],
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
            yield home.path, _shaped(part, base.weight)


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


def _shaped(weights: _Weights, base: torch.Tensor) -> _Weights:
    """Return weights in the shapes, precision and place of a layer's own weight."""
    rank, kernel = weights.a.shape[0], [1] * (base.dim() - 2)
    magnitude = weights.magnitude
    return _Weights(
        weights.a.reshape(rank, *base.shape[1:]).to(base),
        weights.b.reshape(base.shape[0], rank, *kernel).to(base),
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
