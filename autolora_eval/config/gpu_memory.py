"""How much GPU memory a model takes: an estimate from headers and configurations, without torch.

What is counted:

- The weights in the precision of the run, from the shapes in the `.safetensors` headers.
- One denoiser pass: the tensors that are alive at its widest place, linear in pixels and batch.
  In a UNet this is the GEGLU of a transformer block or the first layer of an upper block, beside
  the skip connections that wait for it. In a transformer it is the feed-forward layer.
- The VAE's decoder, one image at a time: three tensors of the width of its second level at full
  resolution, in float32 where SDXL's pipeline turns float16 into it.

The CUDA context, workspaces of libraries and fragmentation are not counted: `RESERVE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autolora_eval.config.inputs import INDEX, ResolvedModel, read_config
from autolora_eval.config.lora_file import LoraFile
from autolora_eval.config.model_section import VAE, checkpoint_tensors
from autolora_eval.config.schema import GuidanceBatching, Offload
from autolora_eval.sources.model_source import Source, cached
from autolora_eval.sources.safetensors_file import TensorInfo, read_header

GIB = 2**30
RESERVE = GIB
CARDS_GIB = (8, 12, 16, 24, 48, 80)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Tensors of a layer's width in memory at a GEGLU. LoRAs are added in place, in no tensor of theirs.
_AT_GEGLU = 21
# Tensors of the hidden size in memory in a transformer's feed-forward layer.
_IN_FEED_FORWARD = 13.5
# A pass with DoRA on feed-forward layers beside one without. peft copies their weights and outputs.
_DORA = 2.2
# A batch for which one pass for all predictions is as fast or faster on a CPU: measured at 64 × 64,
# where it took 0.88 of the time of two for 4 images, 0.92 for 8 and 0.95 for 16 on SDXL, and 0.99
# to 1.01 on SD3.
SMALL_BATCH_PIXELS = 16 * 64 * 64
# The largest number of predictions for one image in one denoiser pass.
_PREDICTIONS: dict[GuidanceBatching, int] = {"conditions": 2, "all": 4}


@dataclass(frozen=True)
class ModelMemory:
    """The GPU memory of one model, in bytes.

    Attributes:
        encoders: the weights of each text encoder.
        denoiser: the weights of the denoiser and the LoRA.
        vae: the weights of the VAE as it decodes.
        pass_per_image: one denoiser pass, for each image of the batch.
        decoding: decoding one image.
        output_per_image: the decoded images that wait for the rest of the batch.
        encoders_stay: whether text encoders stay on the card, as for samplers, which need them for
            each image. For guiders they leave it when all prompts are encoded.
    """

    dtype: str
    encoders: tuple[int, ...]
    denoiser: int
    vae: int
    pass_per_image: int
    decoding: int
    output_per_image: int
    encoders_stay: bool = False

    def peak(self, batch_size: int, offload: Offload = "none") -> int:
        """Return the largest sum of tensors at any time of a run."""
        return max(self.stages(batch_size, offload).values())

    def stages(self, batch_size: int, offload: Offload = "none") -> dict[str, int]:
        """Return the bytes of encoding the prompts, denoising, and decoding.

        Without offload, denoiser and VAE stay on the card; with it each network is alone.
        """
        alone = offload != "none"
        encoders = max(self.encoders, default=0) if alone else sum(self.encoders)
        passes = batch_size * self.pass_per_image
        decoding = self.decoding + batch_size * self.output_per_image
        staying = encoders if self.encoders_stay and not alone else 0
        return {
            "encoding": encoders + (0 if alone else self.denoiser + self.vae),
            "denoising": staying + passes + self.denoiser + (0 if alone else self.vae),
            "decoding": staying + decoding + self.vae + (0 if alone else self.denoiser),
        }

    def batched(self, guidance_batching: GuidanceBatching) -> ModelMemory:
        """Return the memory with several predictions for an image in one pass; `auto`: with one."""
        rows = _PREDICTIONS.get(guidance_batching, 1)
        return replace(self, pass_per_image=rows * self.pass_per_image)

    def working(self, batch_size: int) -> int:
        """Return the bytes that must be free beside the weights of a network that runs."""
        decoding = self.decoding + batch_size * self.output_per_image
        return max(batch_size * self.pass_per_image, decoding) + RESERVE

    def largest_batch(self, card: int, offload: Offload = "none") -> int:
        """Return the largest batch that fits a card of so many bytes; 0 if no image does."""
        room = card - RESERVE
        if self.peak(1, offload) > room:
            return 0
        fixed, one = self.stages(0, offload), self.stages(1, offload)
        grows = {name: one[name] - fixed[name] for name in fixed if one[name] > fixed[name]}
        return min((room - fixed[name]) // more for name, more in grows.items())

    def describe(self, batch_size: int, offload: Offload = "none") -> list[str]:
        """Return lines for the plan: what the run takes, and what fits common cards."""
        if self.peak(batch_size, offload) < GIB:
            return [f"less than 1 GiB at batch_size {batch_size} in {self.dtype}"]
        stages = self.stages(batch_size, offload)
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in stages.items())
        peak, need = _gib(self.peak(batch_size, offload)), self.peak(batch_size, offload) + RESERVE
        lines = [
            f"about {peak} GiB at batch_size {batch_size} in {self.dtype} ({parts}); "
            f"use a GPU with {_gib(need)} GiB or more"
        ]
        words: dict[Offload, str] = {"none": "largest batch_size", "model": "with offload"}
        for kind, said in words.items():
            batches = ((card, self.largest_batch(card * GIB, kind)) for card in CARDS_GIB)
            fits = ", ".join(f"{n if n else 'none'} on {card} GB" for card, n in batches)
            lines.append(f"{said}: {fits}")
        return lines


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def model_memory(model: ResolvedModel, dtype: str) -> ModelMemory | None:
    """Estimate the GPU memory of a model; None if its files are not here or not of a known kind.

    The dtype `auto` stands for float16, which it is on CUDA.
    """
    index = cached(model.layout, INDEX)
    try:
        return None if index is None else _estimate(model, index, dtype)
    except (ValueError, KeyError, TypeError, IndexError):  # not a configuration of diffusers
        return None


def choose_guidance_batching(
    asked: GuidanceBatching, model: ResolvedModel, dtype: str, batch_size: int, card: int
) -> GuidanceBatching:
    """Return which predictions share a denoiser pass on a GPU of `card` bytes; never `auto`.

    `auto` shares where the standard pipelines do, if that fits. On a CPU, whose `card` is 0, base
    and LoRA rows share a pass too if the batch is so small that the number of passes counts.
    """
    if asked != "auto":
        return asked
    if not card:
        is_small = batch_size * model.size[0] * model.size[1] <= SMALL_BATCH_PIXELS
        return "all" if is_small else "conditions"
    memory = model_memory(model, dtype)
    fits = memory and memory.batched("conditions").largest_batch(card, model.spec.offload)
    return "conditions" if (fits or 0) >= batch_size else "separate"


def _estimate(model: ResolvedModel, index: Path, dtype: str) -> ModelMemory | None:
    dtype = "float16" if dtype == "auto" else dtype
    size = _BYTES[dtype]
    kind = str(read_config(model.layout, INDEX).get("_class_name", ""))
    weights = _weights(model, index.parent, kind, dtype)
    denoiser = "unet" if "unet" in weights else "transformer"
    unet_or_transformer = read_config(model.layout, f"{denoiser}/config.json")
    vae = read_config(*_vae_config(model))
    loras = model.switched_loras
    per_pixel = _pass_channels(unet_or_transformer, loras)
    if denoiser not in weights or "vae" not in weights or per_pixel is None:
        return None
    encoders = sorted(name for name in weights if name.startswith("text_encoder"))
    upcast = kind.startswith("StableDiffusionXL") and vae.get("force_upcast", True)
    vae_size = 4 if upcast and dtype == "float16" else size
    pixels = model.size[0] * model.size[1]
    return ModelMemory(
        dtype=dtype,
        encoders=tuple(weights[name] for name in encoders),
        denoiser=weights[denoiser] + sum(_bytes_of(lora.path, dtype) for lora in loras),
        vae=weights["vae"] * vae_size // size,
        pass_per_image=int(per_pixel * pixels / _factor(vae) ** 2 * size),
        decoding=3 * _widest(vae) * pixels * vae_size,
        output_per_image=2 * 3 * pixels * vae_size,
    )


def _vae_config(model: ResolvedModel) -> tuple[Source, str]:
    return (model.vae, VAE) if model.vae else (model.layout, f"vae/{VAE}")


def _weights(model: ResolvedModel, folder: Path, kind: str, dtype: str) -> dict[str, int]:
    """Return the bytes of the weights of each component that is loaded."""
    if model.pipeline.kind == "file":
        parts = checkpoint_tensors(model.pipeline.path, kind).items()
        weights = {name: _bytes(tensors, dtype) for name, tensors in parts}
    else:
        variant = model.spec.variant
        weights = {part.name: _folder_bytes(part, variant, dtype) for part in folder.iterdir()}
    config = cached(*_vae_config(model))
    if config is None:
        weights.pop("vae", None)
    elif model.vae is not None:
        weights["vae"] = _folder_bytes(config.parent, None, dtype)
    return {name: n for name, n in weights.items() if n and name not in model.spec.left_out}


def _pass_channels(config: Mapping[str, Any], loras: Sequence[LoraFile]) -> float | None:
    """Return the values alive for each element of a latent's plane in one denoiser pass."""
    has_dora = any(
        name in layer.name.replace(".", "_")
        for lora in loras
        for layer in lora.layers
        if "magnitude" in layer.keys
        for name in ("ff_net_0_proj", "mlp_fc1")
    )
    factor = _DORA if has_dora else 1.0
    if "block_out_channels" in config:
        return factor * _unet_channels(config)
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    hidden: int | None = config.get("dim") or (heads and width and heads * width)
    patch: int = config.get("patch_size") or next(iter(config.get("all_patch_size") or [2]))
    return factor * _IN_FEED_FORWARD * hidden / patch**2 if hidden else None


def _unet_channels(config: Mapping[str, Any]) -> float:
    """Return the channels alive at the widest place of a UNet, per element of the latent's plane.

    At the level of index i there are 4⁻ⁱ places for each element, with c_i channels.
    """
    channels: list[int] = config["block_out_channels"]
    layers = config.get("layers_per_block", 2)
    per_level = layers if isinstance(layers, list) else [layers] * len(channels)
    skips, widest = 0.0, 0.0
    for level, (c, n) in enumerate(zip(channels, per_level, strict=True)):
        area = 4.0**-level
        before = channels[max(level - 1, 0)]
        below = channels[min(level + 1, len(channels) - 1)]
        skips += (before + n * c) * area
        layer = 3 * (below + c)  # of a ResNet
        if "Attn" in config["down_block_types"][level]:
            layer = max(layer, _AT_GEGLU * c)
        widest = max(widest, skips + (below + layer) * area)
    return widest


def _factor(vae: Mapping[str, Any]) -> int:
    """Return how many pixels along a side one element of a latent stands for."""
    levels = vae.get("block_out_channels") or vae.get("dim_mult") or [0] * 4
    return int(2 ** (len(levels) - 1))


def _widest(vae: Mapping[str, Any]) -> int:
    """Return the channels of a decoder's tensors at full resolution, as they come from below."""
    multiples = vae.get("dim_mult") or [1]
    channels = vae.get("block_out_channels") or [vae.get("base_dim", 128) * m for m in multiples]
    return int(channels[min(1, len(channels) - 1)])


def _folder_bytes(folder: Path, variant: str | None, dtype: str) -> int:
    """Return the bytes of a component's weights; 0 without weights."""
    files = [file for file in folder.glob("*.safetensors") if file.is_file()]
    of_variant = [file for file in files if variant and f".{variant}" in file.name]
    plain = [file for file in files if "." not in file.name.removesuffix(".safetensors")]
    return sum(_bytes_of(file, dtype) for file in of_variant or plain)


def _bytes_of(file: Path, dtype: str) -> int:
    return _bytes(read_header(file)[0], dtype)


def _bytes(tensors: Mapping[str, TensorInfo], dtype: str) -> int:
    """Return the bytes of weights in a precision. transformers keeps T5's `wo` in float32."""
    return sum(
        math.prod(tensor.shape)
        * _BYTES["float32" if dtype == "float16" and ".wo." in name else dtype]
        for name, tensor in tensors.items()
    )
