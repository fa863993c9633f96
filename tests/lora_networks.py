"""Networks with the layers of SDXL, SD3 and CLIP, a few channels wide, and LoRAs for them."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch

from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.generation.lora import load_lora

RANK = 4
Tensors = dict[str, torch.Tensor]
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def pairs_of(network: torch.nn.Module, pattern: str) -> Pairs:
    """Return random (A, B) for the layers of a network whose names match, by name."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and re.search(pattern, name):
            out, *rest = layer.weight.shape
            a = torch.randn(RANK, *rest, generator=generator)
            b = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=generator)
            found[name] = a, b
    assert found
    return found


def effects(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what the adapter adds to the weight of each layer: scaling · B·A, and magnitudes."""
    found = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "lora_A") and "x" in layer.lora_A:
            a, b = layer.lora_A["x"].weight, layer.lora_B["x"].weight
            found[name] = layer.scaling["x"] * (b.flatten(1) @ a.flatten(1))
            if "x" in layer.lora_magnitude_vector:
                found[f"{name} magnitude"] = layer.lora_magnitude_vector["x"].weight.flatten()
    return found


def products(pairs: Pairs) -> Tensors:
    """Return what a LoRA of these pairs adds to the weight of each layer: B·A."""
    return {name: b.flatten(1) @ a.flatten(1) for name, (a, b) in pairs.items()}


def loaded(network: torch.nn.Module, file: Path, component: str = "denoiser") -> Tensors:
    """Return the effects of a LoRA file on a copy of a network."""
    fresh = copy.deepcopy(network)
    load_lora({component: fresh}, read_lora_file(file), "x")
    return effects(fresh)


def assert_equal(found: Tensors, expected: Tensors, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, effect in expected.items():
        torch.testing.assert_close(found[name], effect, rtol=tolerance, atol=tolerance)


def kohya(pairs: Pairs, prefix: str = "lora_unet_", alpha: float = RANK) -> Tensors:
    tensors = {}
    for name, (a, b) in pairs.items():
        stem = prefix + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = a
        tensors[f"{stem}.lora_up.weight"] = b * (RANK / alpha)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def named(
    pairs: Pairs, prefix: str, down: str = ".lora_A.weight", up: str = ".lora_B.weight"
) -> Tensors:
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"{prefix}{name}{down}"], tensors[f"{prefix}{name}{up}"] = a, b
    return tensors
