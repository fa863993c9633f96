"""The benchmark files that this package writes, and the JSON Schema that editors check them by."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import Json, removed_on_failure, run_name, write_text
from autolora_eval._yaml import dump_yaml, parse_yaml
from autolora_eval.config.inputs import LoadedBenchmark, ResolvedModel
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.schema import Benchmark
from autolora_eval.guidance.method import ImageSetMethod, ImageSetParameters
from autolora_eval.guidance.method_registry import GUIDERS
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.diversity_metric import METRICS
from autolora_eval.scoring.extractor import DEFAULT, EXTRACTORS
from autolora_eval.sources.lookup import Lookup
from autolora_eval.sources.model_source import MINIATURE, Source

NAME = "benchmark.schema.json"
TITLE = "autolora-eval benchmark"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Json:
    """Return the JSON Schema of a benchmark file: every key with its type, range and meaning.

    A built-in method accepts its own parameters only. A third-party method accepts any: its
    constructor checks them when the benchmark is loaded.
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
    for rule in GUIDERS.built_in().values():
        parameters: type[MethodParameters] = rule.parameters
        guider: Json = {"const": rule.name, "description": rule.summary}
        yield _section(rule.name, {"guider": guider}, parameters)


def _images() -> Json:
    where = "where the images are: a folder or a listing"
    place: Json = {"type": "string", "minLength": 1, "description": where}
    return _section("images made elsewhere", {"images": place}, ImageSetParameters)


def _section(title: str, keys: Json, parameters: type[MethodParameters]) -> Json:
    """Return the schema of a section with some required keys, and parameters."""
    schema = parameters.model_json_schema()
    return {
        "title": title,
        "type": "object",
        "properties": {**keys, **schema.get("properties", {})},
        "required": [*keys, *schema.get("required", [])],
        "additionalProperties": False,
    }


def _features(found: Json) -> Json:
    """Return the schema of the extractor: a built-in one with its parameters, or any other."""
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
    """Return the schema of a third-party method: a dotted path or a plugin."""
    names: list[Any] = list(GUIDERS.built_in())
    return {
        "title": f"a {kind} of your own",
        "type": "object",
        "properties": {kind: {"type": "string", "not": {"enum": names}}},
        "required": [kind],
    }


# --------------------
# A first, commented benchmark file for a user's model and LoRA.


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
        raise UsageError(f"'{file}' already exists. Name another file, or remove it.")
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
    """Refuse to overwrite a schema that this package did not write."""
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("title") != TITLE:
        raise UsageError(
            f"'{file}' already exists, and it is not a schema of autolora-eval. Move it, or write "
            "the benchmark into another folder."
        )


def _is_sd3(pipeline: str) -> bool:
    index = Path(pipeline) / "model_index.json"
    if index.is_file():
        return "StableDiffusion3" in index.read_text(encoding="utf-8")
    name = pipeline.lower()
    return "sd3" in name or "stable-diffusion-3" in name


# --------------------
# The benchmark file of `score --images`: one image set in place of the methods.


_FIRST_LINE = "# Written by `autolora-eval score --images`"
# The sections that decide the scores of given images, and of the judge the keys that do.
_SCORING_SECTIONS = ("name", "prompts", "features", "judge")
_JUDGE_KEYS = ("model", "revision", "rubric", "rubric_values")


def image_set_benchmark(
    loaded: LoadedBenchmark, images: Path, name: str, model: str | None, file: Path
) -> str:
    """Return a benchmark, as YAML, that scores one image set like another benchmark.

    It takes prompts, seeds, extractor and judge from the other benchmark, but not its published
    values. Its paths are relative to the run folder, in which `file` will be written.
    """
    chosen = model or next(iter(loaded.models))
    if chosen not in loaded.models:
        near = did_you_mean(chosen, loaded.models)
        raise UsageError(f"the benchmark has no model '{chosen}'.{near}")
    folder = file.parent
    data: dict[str, Any] = loaded.spec.model_dump(mode="json", exclude_unset=True)
    lookup = Lookup.beside(loaded.file)
    if isinstance(loaded.spec.prompts, str):
        data["prompts"] = _relative(lookup.file(loaded.spec.prompts, "prompt file"), folder)
    data["models"] = {chosen: _model(data["models"][chosen], loaded.models[chosen], folder)}
    reference = _reference(loaded, name, folder)
    data["methods"] = {name: {"images": _relative(images, folder)}, **reference}
    if loaded.features is not None:
        data["features"] = {**data.get("features", {}), "model": _source(loaded.features, folder)}
    if loaded.spec.judge is not None:
        rubric = lookup.file(loaded.spec.judge.rubric, "rubric")
        data["judge"]["rubric"] = _relative(rubric, folder)
    if loaded.judge is not None:
        data["judge"]["model"] = _source(loaded.judge, folder)
    data["name"] = image_set_run_name(loaded, name)
    data["description"] = f"Images made elsewhere, scored with the benchmark {loaded.spec.name}."
    for key in ("baseline", "sweep", "published"):
        data.pop(key, None)
    _check_run_folder(file, data)
    set_name = " ".join(images.name.split())
    return (
        f"{_FIRST_LINE}: {loaded.spec.name} with the images of\n"
        f"# {set_name} in place of its methods.\n"
        f"{dump_yaml(data)}"
    )


def _reference(loaded: LoadedBenchmark, name: str, folder: Path) -> dict[str, Any]:
    """Return the method of the reference set; an image set keeps the name that it has."""
    reference = loaded.spec.diversity_reference
    if reference is None:
        return {}
    method = loaded.methods[reference].definition
    if not isinstance(method, ImageSetMethod):
        raise UsageError(
            f"the diversity_reference '{reference}' makes its images with a model, which is not "
            "used here. Name a method with 'images', or remove diversity_reference."
        )
    if reference == name:
        raise UsageError(f"'{name}' is the benchmark's reference set. Choose another --name.")
    section = loaded.spec.methods[reference]
    return {reference: {**section, "images": _relative(method.path, folder)}}


def image_set_run_name(loaded: LoadedBenchmark, name: str) -> str:
    """Return the name of the benchmark of an image set: <benchmark>-<set>."""
    return run_name(f"{loaded.spec.name}-{name}")


def _check_run_folder(file: Path, data: dict[str, Any]) -> None:
    """Check that a run folder holds nothing, or scores of the same images by the same benchmark."""
    folder = file.parent
    if not file.exists():
        if (folder / "manifest.json").exists():
            raise UsageError(f"'{folder}' holds another run. Choose another --output.")
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith(_FIRST_LINE):
        raise UsageError(
            f"'{file}' exists, but `score --images` did not write it. Choose another --output."
        )
    run = RunFolder(folder)
    if not run.table("csv").exists() and not any(run.images("").glob("*/*/*.png")):
        return  # an earlier attempt failed before it scored anything
    before = parse_yaml(text) or {}
    if before.get("methods") != data["methods"]:
        raise UsageError(
            f"'{folder}' holds the scores of other images. Choose another --name or --output."
        )
    changed = [name for name in _SCORING_SECTIONS if _scoring(before, name) != _scoring(data, name)]
    if changed:
        raise UsageError(
            f"'{folder}' holds the scores of '{before.get('name')}', but '{data['name']}' scores "
            f"differently ({', '.join(changed)}). Choose another --output."
        )


def _scoring(data: dict[str, Any], name: str) -> object:
    """Return what a section says about scores, without speed or the way to reach the judge."""
    section = data.get(name)
    if not isinstance(section, dict):
        return section
    if name == "judge":
        return {key: section.get(key) for key in _JUDGE_KEYS}
    return {key: value for key, value in section.items() if key != "batch_size"}


def _model(section: dict[str, Any], model: ResolvedModel, folder: Path) -> dict[str, Any]:
    """Return a model's section for a file in another folder; the model need not be available."""
    loras = [
        spec.model_dump(mode="json", exclude_unset=True)
        | {"path": _source(lora.source, folder)}
        | ({"obtain": spec.obtain} if spec.obtain else {})
        for spec, lora in zip(model.spec.loras, model.loras, strict=True)
    ]
    lora = loras if isinstance(model.spec.lora, list) else next(iter(loras), None)
    size = dict(zip(("width", "height"), model.size, strict=True))
    parts = {"pipeline": model.pipeline, "pipeline_config": model.config, "vae": model.vae}
    named = {key: _source(source, folder) for key, source in parts.items() if source is not None}
    return {**section, **named, "lora": lora, **size}


def _source(source: Source, folder: Path) -> str:
    """Return a source as a file in the folder names it: relative path, miniature or hub id."""
    is_path = source.kind in ("folder", "file") and not source.name.startswith(MINIATURE)
    return _relative(Path(source.location), folder) if is_path else source.name


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
