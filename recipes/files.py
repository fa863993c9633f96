"""Where the weights go, and the files that stages leave in the work directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# The folders that ship with the package.
WEIGHTS = Path(__file__).resolve().parents[1] / "autolora_eval" / "shipped" / "miniature"
SDXL, SDXL_LORA = WEIGHTS / "sdxl", WEIGHTS / "pixel_art_lora"
SD3, SD3_LORA = WEIGHTS / "sd3", WEIGHTS / "sd3_pixel_art_lora"
DINOV2, JUDGE = WEIGHTS / "dinov2", WEIGHTS / "judge"


def read_figures(folder: Path, name: str) -> dict[str, Any]:
    """Return the figures that a stage wrote to <folder>/<name>.json."""
    figures: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return figures


def write_figures(folder: Path, name: str, figures: dict[str, Any]) -> None:
    """Write <folder>/<name>.json, whole or not at all: a stage is done if its file exists."""
    partial = folder / f"{name}.partial"
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / f"{name}.json")


def write_card(folder: Path, card: str, figures: dict[str, Any] | None = None) -> None:
    """Write README.md and, if given, figures.json beside the weights."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    if figures is not None:
        write_figures(folder, "figures", figures)


def save_arrays(path: Path, **arrays: Any) -> None:  # noqa: ANN401
    """Write an npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def megabytes(folder: Path) -> str:
    """Return the size of a folder's weights, for cards."""
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return f"{size / 1e6:.1f} MB"
