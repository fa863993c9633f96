"""The benchmark file that `score --images` writes: one image set in place of the methods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import run_name
from autolora_eval._sources import MINIATURE, Lookup, Source
from autolora_eval.config.inputs import LoadedBenchmark, ResolvedModel
from autolora_eval.runs.folder import RunFolder

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
    data["methods"] = {name: {"images": _relative(images, folder)}}
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
        f"{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}"
    )


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
    before = yaml.safe_load(text) or {}
    if before.get("methods") != data["methods"]:
        raise UsageError(
            f"'{folder}' holds the scores of other images. Choose another --name or --output."
        )
    changed = [name for name in _SCORING_SECTIONS if _section(before, name) != _section(data, name)]
    if changed:
        raise UsageError(
            f"'{folder}' holds the scores of '{before.get('name')}', but '{data['name']}' scores "
            f"differently ({', '.join(changed)}). Choose another --output."
        )


def _section(data: dict[str, Any], name: str) -> object:
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
