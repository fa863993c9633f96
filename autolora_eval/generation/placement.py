"""Where the networks of a pipeline are: on the device, or on the CPU until they are needed."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ComponentsManager, ModularPipeline

from autolora_eval.config.schema import Offload


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
