"""The miniatures: small real models, shipped as package data, that run the product on a laptop.

They are trained from scratch by the recipes in `autolora_eval.miniature.recipes` on a
procedurally drawn domain. Their numbers say nothing about the large models they stand beside.
"""

from __future__ import annotations

from pathlib import Path

from autolora_eval.errors import UsageError, did_you_mean

_WEIGHTS = Path(__file__).resolve().parent / "weights"


def miniatures() -> dict[str, Path]:
    """Return the folders of the shipped miniatures by name."""
    if not _WEIGHTS.is_dir():
        return {}
    return {path.name: path for path in sorted(_WEIGHTS.iterdir()) if path.is_dir()}


def miniature_folder(name: str) -> Path:
    """Return the folder of a shipped miniature.

    Raises:
        UsageError: there is none of that name.
    """
    known = miniatures()
    if name not in known:
        raise UsageError(f"no miniature '{name}'.{did_you_mean(name, known)}")
    return known[name]
