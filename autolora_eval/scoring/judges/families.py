"""Families of judges whose processors need more packages than the extra `models` installs."""

from __future__ import annotations

import json
import re

from autolora_eval._devices import require
from autolora_eval._sources import Source, cached

EXTRA = "judges"
PACKAGES = ("torchvision", "num2words")
# Their processors hold one for videos, which needs torchvision even if it gets only images.
# By `model_type` in config.json, and by what a name on the hub contains.
_TORCHVISION = ("qwen2vl", "qwen25vl", "qwen3vl", "llavaonevision", "smolvlm", "internvl")
_PIXTRAL = ("pixtral", "mistral3", "mistralsmall3")
_NUM2WORDS = ("smolvlm",)


def needed_packages(source: Source) -> tuple[str, ...]:
    """Return the packages of the extra `judges` that a model's processor needs.

    Args:
        source: a judge in this process. A hub model that is not in the cache is known by its name.
    """
    kinds = [_normal(kind) for kind in _model_types(source)]
    if any(family in kind for kind in kinds for family in _NUM2WORDS):
        return PACKAGES
    if any(family in kind for kind in kinds for family in (*_TORCHVISION, *_PIXTRAL)):
        return PACKAGES[:1]
    return ()


def require_packages(source: Source) -> None:
    """Check that the packages that a judge's processor needs are installed.

    Raises:
        MissingDependencyError: if one is not.
    """
    for package in needed_packages(source):
        require(package, EXTRA)


def _model_types(source: Source) -> list[str]:
    file = cached(source, "config.json")
    if file is None:
        return [source.name]
    try:
        config = json.loads(file.read_bytes())
        vision = config.get("vision_config") or {}  # Pixtral is a LLaVA with its own vision model
        return [str(config.get("model_type")), str(vision.get("model_type"))]
    except (OSError, ValueError, AttributeError):
        return []


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
