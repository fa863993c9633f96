"""A first benchmark file for somebody's own model and LoRA, with a word on every choice."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from autolora_eval.benchmark.json_schema import NAME, TITLE, json_schema
from autolora_eval.benchmark.load import load_benchmark
from autolora_eval.errors import UsageError
from autolora_eval.files import folder_made, run_name, write_text

# The paper's CFG scales, and the pipelines' own steps.
_DEFAULTS = {"sdxl": (50, 5.0), "sd3": (28, 7.0)}


def write_starter(
    file: Path, pipeline: str, lora: str, prompts: list[str], judge: str | None
) -> Path:
    """Write a commented benchmark file, and beside it the schema that its first line names.

    Args:
        file: where to; it must not be there yet.
        pipeline: a pipeline folder, a hub id, or `miniature:NAME`.
        lora: a `.safetensors` file, a folder, a hub id, or `miniature:NAME`.
        prompts: what to draw.
        judge: hub id of the judge that a server serves; None for diversity alone.

    Returns:
        The schema's file.

    Raises:
        UsageError: the file is there already, a schema of somebody else is, or the
            benchmark would not load: with the reason.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"'{file}': a benchmark file ends in .yaml.")
    if file.exists():
        raise UsageError(f"'{file}' is there already; name another file, or remove it.")
    steps, scale = _DEFAULTS["sd3" if _is_sd3(pipeline) else "sdxl"]
    environment = Environment(
        loader=PackageLoader("autolora_eval.benchmark"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = environment.get_template("starter.yaml.j2").render(
        name=run_name(file.stem),
        file=shlex.quote(" ".join(file.name.split())),
        schema=NAME,
        pipeline=pipeline,
        lora=lora,
        prompts=prompts,
        judge=judge,
        steps=steps,
        scale=scale,
    )
    target = file.parent / NAME
    _refuse_other_schema(target)
    with folder_made(file.parent):
        write_text(file, text)
        try:
            load_benchmark(file)
        except BaseException:
            file.unlink()
            raise
    write_text(target, json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n")
    return target


def _refuse_other_schema(file: Path) -> None:
    """Stop before a schema that this package did not write is written over."""
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("title") != TITLE:
        raise UsageError(
            f"'{file}' is there already, and is no schema of autolora-eval. Move it, or write the "
            "benchmark into another folder."
        )


def _is_sd3(pipeline: str) -> bool:
    index = Path(pipeline) / "model_index.json"
    if index.is_file():
        return "StableDiffusion3" in index.read_text(encoding="utf-8")
    name = pipeline.lower()
    return "sd3" in name or "stable-diffusion-3" in name
