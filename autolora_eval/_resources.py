"""What ships with the package: benchmarks, prompts, rubrics, published tables."""

from __future__ import annotations

from pathlib import Path

from autolora_eval._errors import UsageError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent


def shipped_root() -> Path:
    """Return the folder that holds `benchmarks/` and `prompts/`.

    In a wheel they are packaged below `autolora_eval/shipped`; in a checkout they stand beside
    the package.
    """
    packaged = _PACKAGE / "shipped"
    return packaged if (packaged / "benchmarks").is_dir() else _PACKAGE.parent


def shipped_benchmarks() -> dict[str, Path]:
    """Return the shipped benchmark files by name."""
    folder = shipped_root() / "benchmarks"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


# --------------------
# The miniatures: small real models, shipped as package data, that run the product on a laptop.
#
# They are trained from scratch by the recipes in `recipes` on a
# procedurally drawn domain. Their numbers say nothing about the large models they stand beside.


_WEIGHTS = _PACKAGE / "shipped" / "miniature"


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
