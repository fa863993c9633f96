"""The memory of the real architectures' tensors, counted without computing, beside the plan's.

Fake tensors have shapes and lifetimes, but no values. So a pass of SDXL at 1024 × 1024 is counted
in seconds on any machine. Each layer that the LoRA tunes has it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from architectures import RANK, SD3_TRANSFORMER, SD3_VAE, SDXL_UNET, SDXL_VAE, linear_layers
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from autolora_eval.config.gpu_memory import GIB, ModelMemory, model_memory
from autolora_eval.config.load import load_benchmark
from autolora_eval.generation.lora import _inject, _Weights

BATCH = 2
TOLERANCE = 0.15
LATENT = (128, 128)


def sdxl() -> torch.nn.Module:
    return UNet2DConditionModel(**SDXL_UNET)


def sd3() -> torch.nn.Module:
    return SD3Transformer2DModel(**SD3_TRANSFORMER)


def pass_of_sdxl(unet: torch.nn.Module) -> object:
    conditions = {"text_embeds": torch.empty(BATCH, 1280), "time_ids": torch.empty(BATCH, 6)}
    latents, hidden = torch.empty(BATCH, 4, *LATENT), torch.empty(BATCH, 77, 2048)
    return unet(latents, torch.tensor(1.0), hidden, added_cond_kwargs=conditions)


def pass_of_sd3(transformer: torch.nn.Module) -> object:
    latents, hidden = torch.empty(BATCH, 16, *LATENT), torch.empty(BATCH, 77 + 256, 4096)
    return transformer(latents, hidden, torch.empty(BATCH, 2048), torch.empty(BATCH))


def with_lora(network: torch.nn.Module, pattern: str) -> torch.nn.Module:
    layers = {
        name: _Weights(
            torch.empty(RANK, layer.in_features), torch.empty(layer.out_features, RANK), RANK, None
        )
        for name, layer in linear_layers(network, pattern).items()
    }
    _inject(network, layers, "counted")
    return network


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on: those alive, and their peak.

    Args:
        weights: not counted, nor are views of them.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known = WeakIdKeyDictionary()
        for weight in weights:
            self.known[weight.untyped_storage()] = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:  # views share a storage
            self.known[storage] = True
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.alive -= size


def counted(
    make: Callable[[], torch.nn.Module],
    run: Callable[[torch.nn.Module], object],
    dtype: torch.dtype,
) -> tuple[int, int]:
    """Return the bytes of a network's weights, and those of all other tensors at the peak."""
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        network = make()
    with FakeTensorMode(), torch.no_grad():
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_parameter = isinstance(tensor, torch.nn.Parameter)
                        tensors[name] = torch.nn.Parameter(fake) if is_parameter else fake
        live = LiveTensors([*network.parameters(), *network.buffers()])
        with live:
            run(network)
    return sum(p.numel() * p.element_size() for p in network.parameters()), live.peak


def compare(name: str, dtype: torch.dtype, memory: ModelMemory) -> bool:
    """Print the counted and the estimated sizes of a model; return whether they are close."""
    make, run, pattern, sizes = {
        "SDXL": (sdxl, pass_of_sdxl, ".attentions.", SDXL_VAE),
        "SD3": (sd3, pass_of_sd3, ".attn.", SD3_VAE),
    }[name]
    denoiser, a_pass = counted(lambda: with_lora(make(), pattern), run, dtype)
    upcast = torch.float32 if name == "SDXL" and dtype == torch.float16 else dtype
    latent = (1, sizes.get("latent_channels", 4), *LATENT)
    vae, decoding = counted(
        lambda: AutoencoderKL(**sizes), lambda network: network.decode(torch.empty(latent)), upcast
    )
    stages = memory.stages(BATCH)
    rows = {
        f"one pass, batch {BATCH}": (a_pass, BATCH * memory.pass_per_image),
        "decoding one image": (decoding, memory.decoding),
        "all while denoising": (denoiser + vae + a_pass, stages["denoising"]),
        "all while decoding": (denoiser + vae + decoding, stages["decoding"]),
    }
    for what, (found, planned) in rows.items():
        error = planned / found - 1
        title = f"{name} {memory.dtype}, {what}"
        print(f"{title:44} {found / GIB:6.2f} GiB, plan {planned / GIB:6.2f} GiB ({error:+.0%})")
    return all(abs(planned / found - 1) <= TOLERANCE for found, planned in rows.values())


def main() -> None:
    """Compare all models in float16 and bfloat16."""
    models = load_benchmark(Path(__file__).with_name("benchmark.yaml")).models
    close = []
    for name, model in models.items():
        for dtype in (torch.float16, torch.bfloat16):
            large = replace(model, size=(1024, 1024))
            memory = model_memory(large, str(dtype).removeprefix("torch."))
            assert memory is not None
            close.append(compare(name, dtype, memory))
    sys.exit(0 if all(close) else f"The plan's estimate is off by more than {TOLERANCE:.0%}.")


if __name__ == "__main__":
    main()
