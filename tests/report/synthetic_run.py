"""A synthetic run folder: every file the report reads, made without any model."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from autolora_eval._files import slug
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import FORMAT_VERSION

PROMPTS = ["a castle at night, pixel art", "a red fox in the snow, pixel art"]
METHODS = {
    "LoRA": ("lora", "ε_LoRA(x, y)", {}, 1),
    "AutoLoRA": ("autolora", "ε^{w1} + γ (ε_LoRA^{w2} − ε^{w1})", {"autolora_scale": 1.5}, 2),
    "LoRA+CFG": (
        "cfg",
        "ε_LoRA(x, ∅) + w (ε_LoRA(x, y) − ε_LoRA(x, ∅))",
        {"guidance_scale": 5.0},
        2,
    ),
    "AutoLoRA+CFG": (
        "autolora",
        "ε^{w1} + γ (ε_LoRA^{w2} − ε^{w1})",
        {"autolora_scale": 1.5, "guidance_scale": 5.0, "base_guidance_scale": 5.0},
        4,
    ),
}
SCORES = {
    "pc": {"key": "prompt_correspondence", "display_name": "Prompt correspondence"},
    "sa": {"key": "style_adherence", "display_name": "Style adherence"},
}


@dataclasses.dataclass
class Tables:
    """The content of a run folder, to be changed by a test before it is written."""

    manifest: dict[str, Any]
    table: pd.DataFrame
    scores: pd.DataFrame
    diversity: pd.DataFrame
    comparisons: pd.DataFrame
    image_size: int = 64

    def write(self, path: Path) -> RunFolder:
        """Write the run folder."""
        folder = RunFolder(path)
        path.mkdir(parents=True)
        folder.manifest.write_text(json.dumps(self.manifest), encoding="utf-8")
        self.table.to_parquet(folder.table("parquet"))
        self.scores.to_parquet(folder.scores)
        self.diversity.to_csv(folder.diversity, index=False)
        self.comparisons.to_csv(folder.comparisons, index=False)
        timings = self.table[["cell", "model", "method"]].assign(seconds_per_image=np.nan)
        timings.to_csv(folder.timings, index=False)
        for n, file in enumerate(self.scores["file"]):
            _draw(path / file, n, self.image_size)
        return folder


def _draw(path: Path, n: int, size: int) -> None:
    random = np.random.default_rng(n)
    pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(size // 8, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.repeat(size // 8, 1)).save(path)


def make_tables(
    models: tuple[str, ...] = ("SDXL",),
    methods: tuple[str, ...] = tuple(METHODS),
    prompts: tuple[str, ...] = tuple(PROMPTS),
    n_seeds: int = 3,
    judged: bool = True,
) -> Tables:
    """Return the tables of a run whose numbers are known: row n has diversity 0.1n + 0.111 …"""
    scores = copy.deepcopy(SCORES) if judged else {}
    cells = [(model, method) for model in models for method in methods]
    return Tables(
        manifest=_manifest(cells, prompts, n_seeds, scores),
        table=pd.DataFrame(
            [_row(n, *cell, len(prompts) * n_seeds, scores) for n, cell in enumerate(cells)]
        ),
        scores=pd.DataFrame(
            [
                _image(model, method, index, prompt, seed, scores)
                for model, method in cells
                for index, prompt in enumerate(prompts)
                for seed in range(n_seeds)
            ]
        ),
        diversity=pd.DataFrame(
            [
                {
                    "cell": slug(f"{model}--{method}"),
                    "model": model,
                    "method": method,
                    "prompt_index": index,
                    "prompt": prompt,
                    "n": n_seeds,
                    "diversity": 0.2,
                    "standard_error": 0.01,
                    "reason": None,
                }
                for model, method in cells
                for index, prompt in enumerate(prompts)
            ]
        ),
        comparisons=pd.DataFrame(
            [
                row
                for model in models
                for n, method in enumerate(methods[1:])
                for row in _comparisons(n, model, method, methods[0], len(prompts), scores)
            ]
        ),
    )


def _row(n: int, model: str, method: str, n_images: int, scores: dict[str, Any]) -> dict[str, Any]:
    guider, _, parameters, passes = METHODS.get(method, ("cfg", "", {}, 2))
    row: dict[str, Any] = {
        "cell": slug(f"{model}--{method}"),
        "model": model,
        "method": method,
        "guider": guider,
        "lora_scale": 1.0,
        "num_inference_steps": 20,
        "guidance_scale": parameters.get("guidance_scale"),
        "autolora_scale": parameters.get("autolora_scale"),
        "n_images": n_images,
        "n_missing": 0,
        "n_unscored": 0,
        "n_undefined_prompts": 0,
        "nfe": 20 * passes,
    }
    values = {"diversity": 0.111 + 0.02 * n}
    for m, score in enumerate(scores):
        values[score] = 3.111 + m - 0.15 * n
        values[f"div_{score}"] = values["diversity"] * values[score]
    for column, value in values.items():
        row |= {column: value, f"{column}_low": value * 0.95, f"{column}_high": value * 1.06}
        if column.startswith("div_"):
            row[f"{column}_prompt_mean"] = value * 0.99
    return row


def _image(
    model: str, method: str, index: int, prompt: str, seed: int, scores: dict[str, Any]
) -> dict[str, Any]:
    cell = slug(f"{model}--{method}")
    return {
        "cell": cell,
        "model": model,
        "method": method,
        "prompt_index": index,
        "prompt": prompt,
        "seed": seed,
        "image_id": f"{index}-{seed}",
        "file": f"images/{cell}/p{index}/{seed}.png",
        "sha256": "0" * 64,
        "nfe": 40,
        **{score: 3.5 + n for n, score in enumerate(scores)},
        "unscored_reason": None,
    }


def _comparisons(
    n: int, model: str, method: str, baseline: str, n_prompts: int, scores: dict[str, Any]
) -> list[dict[str, Any]]:
    signs = {"diversity": 1.0, "pc": -1.0, "sa": 0.0, "div_pc": 1.0, "div_sa": 1.0}
    columns = ["diversity", *scores, *(f"div_{score}" for score in scores)]
    return [
        {
            "cell": slug(f"{model}--{method}"),
            "baseline_cell": slug(f"{model}--{baseline}"),
            "model": model,
            "method": method,
            "baseline": baseline,
            "metric": column,
            "n_units": n_prompts,
            "unit": "prompt",
            "difference": signs[column] * (0.061 + 0.01 * n),
            "low": signs[column] * (0.061 + 0.01 * n) - 0.013,
            "high": signs[column] * (0.061 + 0.01 * n) + 0.014,
            "p_value": 0.01,
            "p_holm": 0.03,
            "win_rate": 0.5 + 0.5 * signs[column],
            "n_ties": 0 if signs[column] else n_prompts,
        }
        for column in columns
    ]


def _manifest(
    cells: list[tuple[str, str]], prompts: tuple[str, ...], n_seeds: int, scores: dict[str, Any]
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "autolora_eval_version": "0.1.0",
        "benchmark": {
            "file": "/home/someone/benchmarks/synthetic.yaml",
            "sha256": "b" * 64,
            "name": "synthetic",
            "description": "A synthetic run, to try the report.",
            "prompt_file": "prompts/synthetic.txt",
            "baseline": cells[0][1],
            "batch_size": 8,
        },
        "prompts": list(prompts),
        "prompts_sha256": "e" * 64,
        "seeds": list(range(n_seeds)),
        "methods": {method: _method(method) for _, method in cells},
        "cells": [_cell(model, method) for model, method in cells],
        "models": {model: _model(model) for model, _ in cells},
        "features": {
            "model": "facebook/dinov2-giant",
            "key": "1352f44acd9b8efc",
            "identity": {"name": "facebook/dinov2-giant", "kind": "hub", "commit": "abcdef"},
            "dtype": "float32",
            "dim": 1536,
            "preprocessing": {"resize": 256, "crop": 224, "interpolation": "bicubic"},
            "done": 24,
        },
        "judge": {
            "model": "a-judge",
            "key": "50114b2721e440db",
            "rubric_name": "pixel_art",
            "rubric_sha256": "a" * 64,
            "temperature": 0.0,
            "settings": {"backend": "openai"},
        }
        if scores
        else None,
        "rubric": {"name": "pixel_art", "source": "appendix A.2", "scores": scores}
        if scores
        else None,
        "packages": {"torch": "2.13.0", "diffusers": "0.42.1"},
        "hardware": {"platform": "Linux", "python": "3.11", "cores": 2, "memory_gib": 8.0},
        "stages": {"generate": {"seconds": 12.34, "done": 24, "reused": 3, "started": "x"}},
    }


def _model(model: str) -> dict[str, Any]:
    config = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    return {
        "pipeline": {"name": f"hub/{model}", "kind": "hub", "commit": "c0ffee"},
        "loras": [{"name": f"hub/{model}-lora", "kind": "hub", "sha256": "d" * 64}],
        "scheduler": {"class": "EulerDiscreteScheduler", **config},
        "size": [64, 64],
        "device": "cpu",
        "dtype": "float32",
    }


def _method(method: str) -> dict[str, Any]:
    guider, equation, _, _ = METHODS.get(method, ("cfg", "", {}, 2))
    return {
        "kind": "guider",
        "name": guider,
        "equation": equation,
        "summary": f"What {guider} does.",
        "source": "AutoLoRA paper, equation (7)",
    }


def _cell(model: str, method: str) -> dict[str, Any]:
    guider, _, parameters, passes = METHODS.get(method, ("cfg", "", {}, 2))
    return {
        "id": slug(f"{model}--{method}"),
        "model": model,
        "method": method,
        "parameters": {
            "guider": guider,
            "lora_scale": 1.0,
            "num_inference_steps": 20,
            **parameters,
        },
        "nfe": 20 * passes,
        "settings_key": "0123456789abcdef",
    }
