"""Switches LoRAs on and off, scales and merges them. Uses peft's layers directly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer


def adapter_layers(module: torch.nn.Module) -> list[BaseTunerLayer]:
    """Return the layers of a network that have an adapter."""
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def merge_lora(networks: Sequence[torch.nn.Module], adapter: str, scale: float) -> None:
    """Merge the only adapter of some networks into their weights, at a scale, and remove it."""
    set_lora_scale(networks, adapter, scale)
    for network in networks:
        for layer in adapter_layers(network):
            layer.merge(adapter_names=[adapter])
        recurse_remove_peft_layers(network)
        network.__dict__.pop("peft_config", None)
        network._hf_peft_config_loaded = False  # type: ignore[assignment]


def set_lora_scale(networks: Sequence[torch.nn.Module], adapter: str, scale: float) -> None:
    """Put an adapter at a scale: α of equation (2), which multiplies alpha / r of each layer.

    diffusers' `set_adapters` takes a scale of 0 for 1.
    """
    for network in networks:
        for layer in adapter_layers(network):
            layer.set_scale(adapter, scale)


class AdapterSwitch:
    """Switches all adapters of a network on or off.

    It sets a flag on a list of layers that is made once. For SDXL's 560 layers that takes 2 ms,
    while diffusers' `disable_lora` and `enable_lora` take 34 ms a pair with the same result: they
    walk the network and touch `requires_grad` of every parameter.

    Args:
        module: A denoiser or text encoder with a LoRA that was loaded through peft.

    Raises:
        ValueError: if the network has no adapter.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._layers = adapter_layers(module)
        if not self._layers:
            raise ValueError(
                f"AutoLoRA needs a LoRA on {type(module).__name__}, which has none: base and LoRA "
                "branch would be the same model. Load one with `load_lora_weights` first."
            )

    def set(self, *, enabled: bool) -> None:
        """Switch every adapter on or off."""
        for layer in self._layers:
            layer._disable_adapters = not enabled


@contextmanager
def adapters_off(*modules: torch.nn.Module) -> Iterator[None]:
    """Run a block with the adapters of these networks off, and switch them on afterwards."""
    switches = [AdapterSwitch(module) for module in modules if adapter_layers(module)]
    try:
        for switch in switches:
            switch.set(enabled=False)
        yield
    finally:
        for switch in switches:
            switch.set(enabled=True)
