"""Settings of a LoRA beside its tensors: in the header of its file, or in peft's adapter_config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autolora_eval._errors import UsageError
from autolora_eval.sources.model_source import ADAPTER_CONFIG

# The denoiser of the pipeline, or one of its text encoders.
Component = Literal["denoiser", "text_encoder", "text_encoder_2", "text_encoder_3"]

# A pattern such as (a+)+ may never finish.
_ENDLESS = re.compile(r"\)[*+{]")
# Keys of the header, and those of alpha and rank there or in a configuration within.
_CONFIGS = ("lora_config", "adapter_config", "peft_config")  # the first is finetrainers'
_ALPHAS = ("alpha", "lora_alpha", "network_alpha", "ss_network_alpha")
_RANKS = ("rank", "r", "lora_rank", "network_dim", "ss_network_dim")


@dataclass(frozen=True)
class LoraSettings:
    """What is said of a LoRA beside its tensors.

    Attributes:
        source: where it is said; empty if nothing is.
        by_component: the settings of each component, in peft's names; those of "" are for all.
    """

    source: str = ""
    by_component: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, component: Component) -> Mapping[str, Any]:
        """Return the settings of a component."""
        denoisers = ("unet", "transformer") if component == "denoiser" else (component,)
        known = (key for key in (*denoisers, "") if key in self.by_component)
        return self.by_component.get(next(known, ""), {})

    def alpha(self, component: Component, name: str, rank: int) -> float | None:
        """Return the alpha of a layer; None if nothing says it."""
        config = self.of(component)
        alpha = config.get("lora_alpha")
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if _ENDLESS.search(pattern):
                raise ValueError(f"the pattern '{pattern:.80}' repeats a group")
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):  # as peft does
                alpha = value
                break
        if alpha is None:
            return None
        # rsLoRA scales by alpha / sqrt(r).
        return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def read_settings(path: Path, metadata: Mapping[str, str]) -> LoraSettings:
    """Return the settings in the header's metadata, else those in adapter_config.json beside it."""
    if "lora_adapter_metadata" in metadata:  # diffusers: "unet.lora_alpha" and so on
        by_component: dict[str, dict[str, Any]] = {}
        for key, value in _json(path, metadata["lora_adapter_metadata"]).items():
            component, _, name = key.rpartition(".")
            by_component.setdefault(component, {})[name] = value
        return LoraSettings("from the header's lora_adapter_metadata", by_component)
    for name in _CONFIGS:
        settings = _json_object(metadata.get(name, ""))
        if _alpha_key(settings):
            return LoraSettings(f"from the header's {name}", {"": _in_names_of_peft(settings)})
    if name := _alpha_key(metadata):
        return LoraSettings(f"from '{name}' in the header", {"": _in_names_of_peft(metadata)})
    config = path.with_name(ADAPTER_CONFIG)
    if config.is_file():
        settings = _json(config, config.read_text(encoding="utf-8", errors="replace"))
        return LoraSettings(f"from {ADAPTER_CONFIG} beside the file", {"": settings})
    return LoraSettings()


def _alpha_key(settings: Mapping[str, Any]) -> str:
    """Return the key of the alpha in settings of any trainer; empty if they have none."""
    for name in _ALPHAS:
        with suppress(KeyError, ValueError, TypeError, OverflowError):
            float(settings[name])
            return name
    return ""


def _in_names_of_peft(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        "lora_alpha": float(settings[_alpha_key(settings)]),
        "r": next((settings[name] for name in _RANKS if name in settings), None),
        "use_rslora": str(settings.get("use_rslora")).lower() == "true",
    }


def _json_object(text: str) -> dict[str, Any]:
    """Return the object that a text is in JSON; empty if it is something else."""
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' holds JSON that cannot be read: {error}.") from error
    return found if isinstance(found, dict) else {}
