"""A synthetic run folder: every file the report reads, made without any model."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from autolora_eval._files import slug
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import FORMAT_VERSION

Json = dict[str, Any]
PROMPTS = ("a castle at night, pixel art", "a red fox in the snow, pixel art")
AUTOLORA = "ε^{w1} + γ (ε_LoRA^{w2} − ε^{w1})"
CFG = "ε_LoRA(x, ∅) + w (ε_LoRA(x, y) − ε_LoRA(x, ∅))"
SCALES = {"guidance_scale": 5.0, "base_guidance_scale": 5.0}
# Guider, equation, parameters, and passes of the denoiser in a step.
METHODS: dict[str, tuple[str, str, Json, int]] = {
    "LoRA": ("lora", "ε_LoRA(x, y)", {}, 1),
    "AutoLoRA": ("autolora", AUTOLORA, {"autolora_scale": 1.5}, 2),
    "LoRA+CFG": ("cfg", CFG, {"guidance_scale": 5.0}, 2),
    "AutoLoRA+CFG": ("autolora", AUTOLORA, {"autolora_scale": 1.5, **SCALES}, 4),
}
SCORES = {
    "pc": {"key": "prompt_correspondence", "display_name": "Prompt correspondence"},
    "sa": {"key": "style_adherence", "display_name": "Style adherence"},
}
JUDGE_KEY = "50114b2721e440db"
MANIFEST = f"""
format_version: {FORMAT_VERSION}
autolora_eval_version: 0.1.0
benchmark:
  file: /home/someone/benchmarks/synthetic.yaml
  sha256: {"b" * 64}
  name: synthetic
  description: A synthetic run, to try the report.
  prompt_file: prompts/synthetic.txt
  batch_size: 8
prompts_sha256: {"e" * 64}
features:
  model: facebook/dinov2-giant
  key: 1352f44acd9b8efc
  identity: {{name: facebook/dinov2-giant, kind: hub, commit: abcdef}}
  dtype: float32
  dim: 1536
  preprocessing: {{resize: 256, crop: 224, interpolation: bicubic}}
  done: 24
judge:
  model: a-judge
  key: {JUDGE_KEY}
  rubric_name: pixel_art
  rubric_sha256: {"a" * 64}
  temperature: 0.0
  settings: {{backend: openai}}
rubric: {{name: pixel_art, source: appendix A.2}}
packages: {{torch: 2.13.0, diffusers: 0.42.1}}
hardware: {{platform: Linux, python: "3.11", cores: 2, memory_gib: 8.0}}
stages: {{generate: {{seconds: 12.34, done: 24, reused: 3, started: x}}}}
"""
MODEL = f"""
pipeline: {{name: hub/model, kind: hub, commit: c0ffee}}
loras: [{{name: hub/lora, kind: hub, sha256: {"d" * 64}}}]
scheduler: {{class: EulerDiscreteScheduler, a: 1, b: 2, c: 3, d: 4, e: 5}}
size: [64, 64]
device: cpu
dtype: float32
"""
# What the manifest says of images made elsewhere.
IMAGE_SET: Json = yaml.safe_load("""
{read_as: tree of images, images: 9, matched: 4, beyond_limits: 0, seeds_by_order: false,
settings_key: settings, import_key: import}
""")


@dataclasses.dataclass
class Tables:
    """The content of a run folder, to be changed by a test before it is written."""

    manifest: Json
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
            pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            each = self.image_size // 8
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.repeat(each, 0).repeat(each, 1)).save(path / file)
        return folder

    def rename_cells(self, names: dict[str, str]) -> None:
        """Give cells other ids, in all tables and in the manifest."""
        for table in (self.table, self.scores, self.diversity, self.comparisons):
            for column in table.columns.intersection(["cell", "baseline_cell"]):
                table[column] = table[column].map(names)
        for cell in self.manifest["cells"]:
            cell["id"] = names[cell["id"]]


def make_tables(
    models: tuple[str, ...] = ("SDXL",),
    methods: tuple[str, ...] = tuple(METHODS),
    prompts: tuple[str, ...] = PROMPTS,
    n_seeds: int = 3,
    judged: bool = True,
) -> Tables:
    """Return the tables of a run whose numbers are known: row n has diversity 0.111 + 0.02n …"""
    scores = copy.deepcopy(SCORES) if judged else {}
    cells = pd.DataFrame(itertools.product(models, methods), columns=["model", "method"])
    cells.insert(0, "cell", [slug(f"{a}--{b}") for a, b in itertools.product(models, methods)])
    texts = pd.DataFrame({"prompt_index": range(len(prompts)), "prompt": prompts})
    by_prompt = cells.merge(texts, how="cross")
    return Tables(
        manifest=_manifest(cells, prompts, n_seeds, scores),
        table=_table(cells, len(prompts) * n_seeds, scores),
        scores=_images(
            by_prompt.merge(pd.DataFrame({"seed": range(n_seeds)}), how="cross"), scores
        ),
        diversity=by_prompt.assign(n=n_seeds, diversity=0.2, standard_error=0.01, reason=None),
        comparisons=_comparisons(cells, methods[0], len(prompts), scores),
    )


def two_methods(**options: Any) -> Tables:
    """Return the tables of a run of two cells."""
    return make_tables(methods=("LoRA", "AutoLoRA"), **options)


def one_prompt(n_seeds: int) -> Tables:
    """Return the tables of a run of two cells and one prompt."""
    return two_methods(prompts=("one",), n_seeds=n_seeds)


def _table(cells: pd.DataFrame, n_images: int, scores: Json) -> pd.DataFrame:
    rows = []
    for n, method in enumerate(cells["method"]):
        guider, _, parameters, passes = METHODS.get(method, ("cfg", "", {}, 2))
        row: Json = {"guider": guider, "lora_scale": 1.0, "num_inference_steps": 20}
        row |= {key: parameters.get(key) for key in ("guidance_scale", "autolora_scale")}
        row |= {"n_images": n_images, "n_missing": 0, "n_unscored": 0, "n_undefined_prompts": 0}
        row |= {"nfe": 20 * passes}
        values = {"diversity": 0.111 + 0.02 * n}
        for m, score in enumerate(scores):
            values[score] = 3.111 + m - 0.15 * n
            values[f"div_{score}"] = values["diversity"] * values[score]
        for column, value in values.items():
            row |= {column: value, f"{column}_low": value * 0.95, f"{column}_high": value * 1.06}
            if column.startswith("div_"):
                row[f"{column}_prompt_mean"] = value * 0.99
        rows.append(row)
    return pd.concat([cells, pd.DataFrame(rows)], axis=1)


def _images(images: pd.DataFrame, scores: Json) -> pd.DataFrame:
    places = list(images[["cell", "prompt_index", "seed"]].itertuples(index=False, name=None))
    return images.assign(
        image_id=[f"{index}-{seed}" for _, index, seed in places],
        file=[f"images/{cell}/p{index}/{seed}.png" for cell, index, seed in places],
        sha256="0" * 64,
        nfe=40,
        **{score: 3.5 + n for n, score in enumerate(scores)},
        unscored_reason=None,
    )


def _comparisons(cells: pd.DataFrame, baseline: str, n_prompts: int, scores: Json) -> pd.DataFrame:
    signs = {"diversity": 1.0, "pc": -1.0, "sa": 0.0, "div_pc": 1.0, "div_sa": 1.0}
    others = cells[cells["method"] != baseline]
    size = 0.061 + 0.01 * others.groupby("model", sort=False).cumcount()
    columns = pd.DataFrame({"metric": ["diversity", *scores, *(f"div_{s}" for s in scores)]})
    rows = others.assign(size=size, baseline=baseline).merge(columns, how="cross")
    sign = rows["metric"].map(signs).astype(float)
    difference = sign * rows.pop("size")
    return rows.assign(
        baseline_cell=[slug(f"{model}--{baseline}") for model in rows["model"]],
        n_units=n_prompts,
        unit="prompt",
        difference=difference,
        low=difference - 0.013,
        high=difference + 0.014,
        p_value=0.01,
        p_holm=0.03,
        win_rate=0.5 + 0.5 * sign,
        n_ties=np.where(sign == 0.0, n_prompts, 0),
    )


def _manifest(cells: pd.DataFrame, prompts: tuple[str, ...], n_seeds: int, scores: Json) -> Json:
    manifest = yaml.safe_load(MANIFEST)
    manifest["benchmark"]["baseline"] = cells["method"].iloc[0]
    manifest["rubric"]["scores"] = scores
    manifest |= {"prompts": list(prompts), "seeds": list(range(n_seeds)), "methods": {}}
    manifest |= {"models": {model: yaml.safe_load(MODEL) for model in cells["model"]}, "cells": []}
    manifest |= {} if scores else {"judge": None, "rubric": None}
    for cell, model, method in cells.itertuples(index=False, name=None):
        guider, equation, parameters, passes = METHODS.get(method, ("cfg", "", {}, 2))
        described = {"summary": f"What {guider} does.", "source": "AutoLoRA paper, equation (7)"}
        manifest["methods"][method] = {"kind": "guider", "name": guider, "equation": equation}
        manifest["methods"][method] |= described
        parameters = {"guider": guider, "lora_scale": 1.0, "num_inference_steps": 20, **parameters}
        entry = {"id": cell, "model": model, "method": method, "parameters": parameters}
        manifest["cells"].append(entry | {"nfe": 20 * passes, "settings_key": "0123456789abcdef"})
    return manifest


def judgement(row: Any, **changed: object) -> Json:
    """Return what the judge replied to an image."""
    return {
        **{key: row[key] for key in ("image_id", "sha256")},
        "scores": {key: row[key] for key in ("pc", "sa") if key in row},
        **{"repeat": 0, "reason": None, "raw": f"reply to {row['file']}", "model": "a-judge"},
        **{"latency_seconds": 0.25, "cached": False, "judge_key": JUDGE_KEY, "attempt": 1},
    } | changed


def write_judgements(folder: RunFolder, rows: list[tuple[str, Json]]) -> None:
    """Write judgements by cell; JSON escapes let even a lone surrogate through."""
    for cell, row in rows:
        path = folder.judgements(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
