"""A model on a device: what decides its images there, and what to say if it does not fit.

Imports no torch before it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.config.gpu_memory import (
    GIB,
    RESERVE,
    ModelMemory,
    choose_guidance_batching,
    model_memory,
)
from autolora_eval.config.inputs import MethodKind, ResolvedModel
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.sources.identity import identity, lora_identity
from autolora_eval.sources.model_source import Source

if TYPE_CHECKING:
    import torch

# Keys of a model that decide its images, beside its files, its size and what tables show.
SAMPLING_KEYS = {
    *("negative_prompt", "variant", "text_encoder_3", "scheduler"),
    *("clip_skip", "vae_tiling", "compile", "channels_last"),
}

_END_THEM = "End these processes, or limit a vLLM server with --gpu-memory-utilization."


@dataclass(frozen=True)
class ModelOnDevice:
    """A model where it makes images, and what decides them there.

    Attributes:
        device: the torch device, such as `cuda:1`.
        dtype: the precision, such as `float16`.
        batch_size: the number of images of guiders per batch; a sampler makes one at a time.
        guidance_batching: which predictions of guiders share a denoiser pass; never `auto`.
    """

    model: ResolvedModel
    cells: Sequence[Cell]
    device: str
    dtype: str
    batch_size: int
    guidance_batching: GuidanceBatching

    @classmethod
    def of(
        cls,
        plan: Plan,
        model: ResolvedModel,
        device: str,
        dtype: str,
        batching: GuidanceBatching | None = None,
    ) -> ModelOnDevice:
        """Return a model of a plan on a device. Without `batching`, its memory decides that."""
        spec = plan.benchmark.spec
        cells = [cell for cell in plan.cells if cell.model.name == model.name]
        batching = batching or choose_guidance_batching(
            spec.guidance_batching, model, dtype, spec.batch_size, card_bytes(device)
        )
        return cls(model, cells, device, dtype, spec.batch_size, batching)

    def torch_place(self) -> tuple[torch.device, torch.dtype]:
        """Return device and precision as torch has them."""
        import torch

        return torch.device(self.device), getattr(torch, self.dtype)

    @cached_property
    def identities(self) -> Json:
        """The hashes of pipeline and LoRAs; only their names if all images are imported."""
        model = self.model
        used = any(cell.method.kind != "images" for cell in self.cells)
        loras = [
            {
                **(lora_identity(lora.source) if used else _unused(lora.source)),
                "scale": spec.scale,
                "part_of_base": spec.part_of_base,
            }
            for spec, lora in zip(model.spec.loras, model.loras, strict=True)
        ]
        parts = {"pipeline": model.pipeline, "config": model.config, "vae": model.vae}
        variants = {"pipeline": model.spec.variant}
        found = {
            part: identity(source, variants.get(part)) if used else _unused(source)
            for part, source in parts.items()
            if source is not None
        }
        return {**found, "loras": loras}

    def settings(self, cell: Cell) -> Json:
        """Return all that decides a cell's images, except for prompt and seed.

        Its hash is the key of the images. The batch size is included: images are bitwise
        independent of their batch, but between batch sizes they differ in the last bits. Paths and
        the number of a device are not included. Nor are versions of libraries, which each image's
        row has instead: an update does not start a run again.
        """
        method, model = cell.method, self.identities
        stacks = method.kind == "guider" and self.guidance_batching != "separate"
        files = {part: _without_path(known) for part, known in model.items() if part != "loras"}
        loras = [
            _without_path(known) | {"scale": lora.scale}
            for known, lora in zip(model["loras"], cell.model.spec.loras, strict=True)
        ]
        return {
            "model": files | {"loras": loras},
            "columns": cell.columns,
            "size": list(cell.model.size),
            **cell.model.spec.model_dump(mode="json", include=SAMPLING_KEYS, exclude_defaults=True),
            "batch_size": self.batch_size,
            "device": self.device.partition(":")[0],
            "dtype": self.dtype,
            **({"guidance_batching": self.guidance_batching} if stacks else {}),
            **({"code": dict(method.definition.code)} if method.definition.code else {}),
        }

    def require_room(self) -> None:
        """Check that other processes leave enough of the GPU to guiders. Samplers may need none.

        Raises:
            AutoLoRAEvalError: if the model is estimated to fit the GPU, but not what is left of it.
        """
        card, room = card_bytes(self.device), room_bytes(self.device)
        memory, batch_size, _ = self.memory("guider")
        needed = memory.peak(batch_size, self.model.spec.offload) if memory else 0
        if room < needed <= card and any(cell.method.kind == "guider" for cell in self.cells):
            raise AutoLoRAEvalError(
                f"the model '{self.model.name}' takes an estimated {needed / GIB:.1f} GiB, but "
                f"'{self.device}' has {card / GIB:.1f} GiB{_held(card, room)}. {_END_THEM}"
            )

    def memory(self, kind: MethodKind) -> tuple[ModelMemory | None, int, bool]:
        """Return the memory for a kind of method, its batch size, and whether passes are shared."""
        batch_size = 1 if kind == "sampler" else self.batch_size
        stacks = kind == "guider" and self.guidance_batching != "separate"
        memory = model_memory(self.model, self.dtype)
        if memory is not None and stacks:
            memory = memory.batched(self.guidance_batching)
        if memory is not None and kind == "sampler":
            memory = replace(memory, encoders_stay=True)
        return memory, batch_size, stacks

    def out_of_memory(self, kind: MethodKind) -> AutoLoRAEvalError:
        """Return the error for a kind of method that ran out of memory, with what would fit."""
        memory, batch_size, stacks = self.memory(kind)
        (width, height), offload = self.model.size, self.model.spec.offload
        card, room, facts = card_bytes(self.device), room_bytes(self.device), []
        if memory is not None:
            facts.append(
                f"this takes an estimated {memory.peak(batch_size, offload) / GIB:.1f} GiB"
            )
        if card:
            facts.append(f"'{self.device}' has {card / GIB:.1f} GiB{_held(card, room)}")
        alone = model_memory(self.model, self.dtype)
        fits = alone is None or alone.peak(batch_size, offload) + RESERVE <= room
        advice = ["'guidance_batching: separate'"] if card and stacks and fits else []
        advice += _advice(memory, room, batch_size)
        if not advice and offload == "none":
            advice = ["'offload: auto' for the model"]
        if not advice and batch_size > 1:
            advice = [f"a batch_size below {batch_size}"]
        known = f" ({'; '.join(facts)})" if facts else ""
        what_fits = f"Try {', or '.join(advice)}" if advice else "Set a smaller width and height"
        end_them = f" {_END_THEM}" if _held(card, room) else ""
        return AutoLoRAEvalError(
            f"the model '{self.model.name}' ran out of memory on '{self.device}': "
            f"{width} × {height} pixels, batch_size {batch_size}, {self.dtype}, offload {offload}"
            f"{known}.{end_them} {what_fits}. offload changes no image; another batch_size or "
            "guidance_batching makes all images again. Finished images are kept."
        )


def _held(card: int, room: int) -> str:
    """Return what is held by other processes, if it is more than the context of this one."""
    held = card - room
    return f", of which other processes hold {held / GIB:.1f} GiB" if held > RESERVE else ""


def _advice(memory: ModelMemory | None, card: int, batch_size: int) -> list[str]:
    """Return the settings with which the model is estimated to fit the card, if both are known."""
    if memory is None or not card:
        return []
    resident = min(memory.largest_batch(card), batch_size - 1)
    offloaded = min(memory.largest_batch(card, "auto"), batch_size)
    return [
        *([f"batch_size {resident}"] if resident > 0 else []),
        *([f"'offload: auto' with batch_size {offloaded}"] if offloaded > 0 else []),
    ]


def card_bytes(device: str) -> int:
    """Return the memory of a CUDA device in bytes; 0 for any other."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return int(torch.cuda.mem_get_info(device)[1])


def room_bytes(device: str) -> int:
    """Return what other processes leave of a CUDA device to this one; 0 for any other device."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def _unused(source: Source) -> Json:
    return {"name": source.name, "kind": source.kind, "used": False}


def _without_path(known: Json) -> Json:
    return {key: value for key, value in known.items() if key != "name" or known["kind"] == "hub"}
