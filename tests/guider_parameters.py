"""Parameters with which diffusers' guiders act on the tiny models and the miniatures."""

from __future__ import annotations

from typing import Any

from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS

LAYERS: dict[str, dict[str, Any]] = {
    SDXL: {"indices": [0], "fqn": "mid_block.attentions.0.transformer_blocks"},
    SD3: {"indices": [0], "fqn": "transformer_blocks", "skip_attention": False},
}
CONFIGS = {
    "AutoGuidance": "auto_guidance_config",
    "PerturbedAttentionGuidance": "perturbed_guidance_config",
    "SkipLayerGuidance": "skip_layer_config",
    "SmoothedEnergyGuidance": "seg_guidance_config",
}


def acting(name: str, pipeline: str) -> dict[str, Any]:
    """Return the parameters that a guider needs to act on a pipeline of a class."""
    values: dict[str, Any] = {CONFIGS[name]: LAYERS[pipeline]} if name in CONFIGS else {}
    if name == "LTX2Guidance":
        values["guidance_scale"] = 4.0
    return values


def acting_throughout(name: str, pipeline: str) -> dict[str, Any]:
    """Return the same, with the perturbed predictions at every step but the first."""
    windows = {"_guidance_start": 0.0, "_guidance_stop": 1.0}
    known = DIFFUSERS_GUIDERS[name].defaults
    own = {key: v for key in known for end, v in windows.items() if key.endswith(end)}
    return acting(name, pipeline) | own
