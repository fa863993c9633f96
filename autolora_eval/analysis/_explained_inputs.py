"""What a model of a run consists of, as `explain` shows it."""

from __future__ import annotations

import json

from autolora_eval._text import NOT_RECORDED
from autolora_eval.runs.records import ModelRecord, SourceRecord


def model_inputs(model: ModelRecord) -> dict[str, object]:
    """Return each part of a model with its files; None for a part that it does not have."""
    return {
        "pipeline": source_text(model.pipeline),
        "configuration": model.config and source_text(model.config),
        "VAE": model.vae and source_text(model.vae),
        **_loras(model),
    }


def _loras(model: ModelRecord) -> dict[str, str]:
    """Return each LoRA with its file; several with their scales."""
    if not model.loras:
        return {"LoRA": "none"}
    if len(model.loras) == 1:
        return {"LoRA": source_text(model.loras[0])}
    return {
        f"LoRA {number}": join(
            source_text(lora),
            f"scale {lora.scale:g}",
            "part of the base model" if lora.part_of_base else None,
        )
        for number, lora in enumerate(model.loras, 1)
    }


def source_text(source: SourceRecord | None) -> str:
    """Return where a model's files come from, with their hash or commit."""
    if source is None:
        return NOT_RECORDED
    if not source.used:
        return join(source.name, "not used: the images were imported")
    known = join(**{"SHA-256": source.sha256, "commit": source.commit})
    if not known and source.model_extra:
        known = json.dumps(source.model_extra, ensure_ascii=False, sort_keys=True)
    return join(source.name, known)


def join(*values: object, **named: object) -> str:
    """Join the values that are known, the named ones with their names; empty if none is."""
    texts = [str(value) for value in values if value]
    return ", ".join([*texts, *(f"{name} {value}" for name, value in named.items() if value)])
