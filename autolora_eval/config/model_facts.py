"""What the plan says of a model: its parts, whether they are here, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator

from autolora_eval._sources import Source, in_cache
from autolora_eval.config.gpu_memory import model_memory
from autolora_eval.config.inputs import INDEX
from autolora_eval.config.plan import describe_sampling
from autolora_eval.config.prompt_cuts import describe_cuts
from autolora_eval.config.resolved import ResolvedModel
from autolora_eval.config.schema import GuidanceBatching
from autolora_eval.runs.cut_prompts import PromptCuts


def model_facts(
    model: ResolvedModel,
    cuts: PromptCuts | str,
    dtype: str,
    batch_size: int,
    guidance_batching: GuidanceBatching,
) -> Iterator[tuple[str, str]]:
    """Yield (title, text) pairs.

    Args:
        model: the model.
        cuts: the prompts that its text encoders cut, or why they are not known.
        dtype: the precision of the run.
        batch_size: images that are sampled together.
        guidance_batching: which predictions for an image share a denoiser pass.
    """
    yield model.name, place(model.pipeline, INDEX)
    if model.config is not None:
        yield "  Configuration", place(model.config, INDEX)
    if model.vae is not None:
        yield "  VAE", place(model.vae, "config.json")
    if model.spec.left_out:
        yield "  Left out", ", ".join(model.spec.left_out)
    yield "  Samples", describe_sampling(model)
    if model.timesteps is None:
        unknown = "the scheduler is unknown until the model is downloaded"
        yield "  NFE", f"counted with one timestep a step: {unknown}"
    yield from _titled("  Prompts", describe_cuts(cuts))
    yield from _lora_facts(model)
    memory = model_memory(model, dtype)
    if memory is not None:
        memory = memory.batched(guidance_batching)
        yield from _titled("  GPU memory", memory.describe(batch_size, model.spec.offload))


def _titled(title: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    yield from zip([title, *[""] * len(lines)], lines, strict=False)


def _lora_facts(model: ResolvedModel) -> Iterator[tuple[str, str]]:
    if not model.loras:
        yield "  LoRA", "none"
    for spec, lora in zip(model.spec.loras, model.loras, strict=True):
        name = place(lora.source, lora.source.weight_name or "README.md")
        scale = f", scale {spec.scale:g}" if len(model.loras) > 1 else ""
        yield "  LoRA", f"{name}{scale}{', part of the base model' if spec.part_of_base else ''}"
        if lora.file is not None:
            yield "", lora.file.summary()
        if lora.source.kind == "absent":
            yield "  To do", lora.source.how_to_get()


def place(source: Source, marker: str) -> str:
    """Return the name of a model's files, and whether they are on this machine."""
    if source.kind == "absent":
        return f"{source.location}  (not found)"
    if source.kind != "hub":
        return f"{source.name}  (found)"
    state = "in the local cache" if in_cache(source, marker) else "to be downloaded from the hub"
    return f"{source.name}  ({state})"
