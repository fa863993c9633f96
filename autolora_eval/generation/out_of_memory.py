"""What to say when a model does not fit in memory. Does not import torch before it is needed."""

from __future__ import annotations

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.config.gpu_memory import GIB, ModelMemory, model_memory
from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.schema import GuidanceBatching


def out_of_memory(
    model: ResolvedModel,
    device: str,
    dtype: str,
    batch_size: int,
    guidance_batching: GuidanceBatching = "separate",
) -> AutoLoRAEvalError:
    """Return the error for a model that ran out of memory: what was asked, and what would fit.

    Args:
        model: the model.
        device: the torch device, such as `cuda:0`.
        dtype: the precision, such as `float16`.
        batch_size: the number of images that were sampled together.
        guidance_batching: which predictions for an image shared a denoiser pass.
    """
    width, height = model.size
    offload = model.spec.offload
    memory = model_memory(model, dtype)
    memory = memory and memory.batched(guidance_batching)
    estimate = f"an estimated {memory.peak(batch_size, offload) / GIB:.1f} GiB" if memory else ""
    total = card_bytes(device)
    card = f"'{device}' has {total / GIB:.1f} GiB" if total else ""
    facts = "; ".join(filter(None, (estimate and f"this takes {estimate}", card)))
    advice = _advice(memory, total, batch_size) if total else []
    if total and guidance_batching != "separate":
        advice.insert(0, "'guidance_batching: separate'")
    if not advice and offload == "none":
        advice = ["'offload: auto' for the model"]
    if not advice and batch_size > 1:
        advice = [f"a batch_size below {batch_size}"]
    what_fits = f" Try {', or '.join(advice)}." if advice else " Set a smaller width and height."
    return AutoLoRAEvalError(
        f"the model '{model.name}' ran out of memory on '{device}': {width} × {height} pixels, "
        f"batch_size {batch_size}, {dtype}, offload {offload}{f' ({facts})' if facts else ''}."
        f"{what_fits} offload changes no image; another batch_size "
        "or guidance_batching makes all images anew. "
        "Finished images are kept."
    )


def _advice(memory: ModelMemory | None, card: int, batch_size: int) -> list[str]:
    """Return the settings with which the model is estimated to fit the card."""
    if memory is None:
        return []
    resident = min(memory.largest_batch(card), batch_size - 1)
    offloaded = min(memory.largest_batch(card, "auto"), batch_size)
    return [
        *([f"batch_size {resident}"] if resident > 0 else []),
        *([f"'offload: auto' with batch_size {offloaded}"] if offloaded > 0 else []),
    ]


def card_bytes(device: str) -> int:
    """Return the bytes of a CUDA device; 0 of any other."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return int(torch.cuda.mem_get_info(device)[1])
