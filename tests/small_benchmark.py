"""The quick start made small: one prompt, samplers that draw without a model, and no judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from conftest import ROOT

SEEDS = 4


def small_benchmark(folder: Path, drawing: str, methods: Mapping[str, object]) -> Path:
    """Write a benchmark and the module of its samplers; return the benchmark's path.

    Args:
        folder: where to.
        drawing: the module `drawing`.
        methods: those of the benchmark.
    """
    (folder / "drawing.py").write_text(drawing)
    content = yaml.safe_load((ROOT / "benchmarks" / "quickstart.yaml").read_text("utf-8"))
    content["prompts"] = ["a red heart on a blue background, pixel art style"]
    content["seeds"]["count"] = SEEDS
    content["features"] = {"extractor": "colours"}
    del content["judge"]
    content["methods"] = methods
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
