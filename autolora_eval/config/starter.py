"""The benchmark file as a JSON Schema, so that editors complete and check it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from autolora_eval._errors import UsageError
from autolora_eval._files import Json, removed_on_failure, run_name, write_text
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.schema import Benchmark
from autolora_eval.guidance.method import ImageSetParameters
from autolora_eval.guidance.method_registry import GUIDERS
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.scoring.diversity_metric import METRICS
from autolora_eval.scoring.extractor import DEFAULT, EXTRACTORS

NAME = "benchmark.schema.json"
TITLE = "autolora-eval benchmark"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Json:
    """Return the JSON Schema of a benchmark file: every key with its type, range and meaning.

    A method whose `guider` is a name of this package may state that rule's parameters only; one
    given by a dotted path, or a plugin's, may state any: its constructor is asked as it is loaded.
    """
    found = Benchmark.model_json_schema()
    definitions = found.setdefault("$defs", {})
    definitions["Method"] = {
        "anyOf": [*_named(), _any_other("guider"), _any_other("sampler"), _images()]
    }
    found["properties"]["diversity"]["items"]["examples"] = list(METRICS.built_in())
    definitions["Features"] = _features(definitions["Features"])
    found["properties"]["methods"]["additionalProperties"] = {"$ref": "#/$defs/Method"}
    return {"$schema": DIALECT, **found, "title": TITLE}


def _named() -> Iterator[Json]:
    """Yield a schema for each rule of this package."""
    for rule in GUIDERS.built_in().values():
        parameters: type[MethodParameters] = rule.parameters
        schema = parameters.model_json_schema()
        guider: Json = {"const": rule.name, "description": rule.summary}
        yield {
            "title": rule.name,
            "type": "object",
            "properties": {"guider": guider, **schema.get("properties", {})},
            "required": ["guider", *schema.get("required", [])],
            "additionalProperties": False,
        }


def _images() -> Json:
    """Return the schema of a method whose images were made elsewhere."""
    schema = ImageSetParameters.model_json_schema()
    where = "where the images are: a folder or a listing"
    place: Json = {"type": "string", "minLength": 1, "description": where}
    return {
        "title": "images made elsewhere",
        "type": "object",
        "properties": {"images": place, **schema.get("properties", {})},
        "required": ["images"],
        "additionalProperties": False,
    }


def _features(found: Json) -> Json:
    """Return the schema of the extractor: of a kind of this package with that kind's parameters."""
    kinds = EXTRACTORS.built_in()
    shared = {key: value for key, value in found["properties"].items() if key != "extractor"}
    schema = found["properties"]["extractor"]
    options: list[Json] = [
        {
            "title": kind.name,
            "type": "object",
            "properties": {
                "extractor": {**schema, "const": kind.name},
                **shared,
                **kind.parameters.model_json_schema().get("properties", {}),
            },
            "required": [] if kind.name == DEFAULT else ["extractor"],
            "additionalProperties": False,
        }
        for kind in kinds.values()
    ]
    own = {"extractor": {**schema, "not": {"enum": list(kinds)}}, **shared}
    title = "an extractor of your own"
    options.append({"title": title, "type": "object", "properties": own, "required": ["extractor"]})
    return {"description": found["description"], "anyOf": options}


def _any_other(kind: str) -> Json:
    """Return the schema of a method that is code of somebody else: a dotted path, or a plugin."""
    names: list[Any] = list(GUIDERS.built_in())
    return {
        "title": f"a {kind} of your own",
        "type": "object",
        "properties": {kind: {"type": "string", "not": {"enum": names}}},
        "required": [kind],
    }


# --------------------
# A first benchmark file for somebody's own model and LoRA, with a word on every choice.


# The paper's CFG scales, and the pipelines' own steps.
_DEFAULTS = {"sdxl": (50, 5.0), "sd3": (28, 7.0)}
_CONFIGURATIONS = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
}


def write_starter(
    file: Path, pipeline: str, lora: str, prompts: list[str], judge: str | None
) -> Path:
    """Write a commented benchmark file that loads, and beside it the schema that it names.

    Returns:
        The schema's file.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"'{file}': a benchmark file ends in .yaml.")
    if file.exists():
        raise UsageError(f"'{file}' is there already; name another file, or remove it.")
    family = "sd3" if _is_sd3(pipeline) else "sdxl"
    steps, scale = _DEFAULTS[family]
    environment = Environment(
        loader=PackageLoader("autolora_eval.config"),
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
        config=_CONFIGURATIONS[family],
        lora=lora,
        prompts=prompts,
        judge=judge,
        steps=steps,
        scale=scale,
    )
    target = file.parent / NAME
    _refuse_other_schema(target)
    with removed_on_failure(file.parent):
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
