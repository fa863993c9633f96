"""What ships with the package: benchmarks, prompts, rubrics, reference tables."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped_root() -> Path:
    """Return the folder that holds `benchmarks/` and `prompts/`.

    In a wheel they are packaged below `autolora_eval/shipped`; in a checkout they stand beside
    the package.
    """
    packaged = _PACKAGE / "shipped"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def shipped_benchmarks() -> dict[str, Path]:
    """Return the shipped benchmark files by name."""
    folder = shipped_root() / "benchmarks"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
