"""The benchmark of one image set: somebody's prompts, seeds, extractor and judge, and no method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import run_name
from autolora_eval._sources import MINIATURE, Lookup, Source
from autolora_eval.config.load import LoadedBenchmark, ResolvedModel
from autolora_eval.runs.folder import RunFolder

_WRITTEN = "# Written by `autolora-eval score --images`"
# What decides a score beside the images themselves.
_MEASURE = ("name", "prompts", "features", "judge")
_JUDGE = ("model", "revision", "rubric", "rubric_values")
_HEAD = f"""\
{_WRITTEN}: {{benchmark}} with the images of
# {{place}} in place of its methods.
"""


def set_benchmark(
    loaded: LoadedBenchmark, place: Path, name: str, model: str | None, file: Path
) -> str:
    """Return a benchmark that scores one image set by another benchmark's measure, as YAML.

    It names its files as seen from the run folder, where it lies; the published values stay with
    the benchmark that they belong to.

    Args:
        loaded: the benchmark whose prompts, seeds, extractor and judge are taken.
        place: the images.
        name: what they are called in tables.
        model: the model that they are shown under; the benchmark's first where not given.
        file: where it is going to lie.

    Raises:
        UsageError: the benchmark has no such model, or the folder holds something else.
    """
    chosen = model or next(iter(loaded.models))
    if chosen not in loaded.models:
        near = did_you_mean(chosen, loaded.models)
        raise UsageError(f"the benchmark has no model '{chosen}'.{near}")
    here = file.parent
    data: dict[str, Any] = loaded.spec.model_dump(mode="json", exclude_unset=True)
    lookup = Lookup.beside(loaded.file)
    if isinstance(loaded.spec.prompts, str):
        data["prompts"] = _seen_from(here, lookup.file(loaded.spec.prompts, "prompt file"))
    data["models"] = {chosen: _model(data["models"][chosen], loaded.models[chosen], here)}
    data["methods"] = {name: {"images": _seen_from(here, place)}}
    if loaded.features is not None:
        data["features"] = {**data.get("features", {}), "model": _place(loaded.features, here)}
    if loaded.spec.judge is not None:
        rubric = lookup.file(loaded.spec.judge.rubric, "rubric")
        data["judge"]["rubric"] = _seen_from(here, rubric)
    if loaded.judge is not None:
        data["judge"]["model"] = _place(loaded.judge, here)
    data["name"] = set_name(loaded, name)
    data["description"] = f"Images made elsewhere, scored by the measure of {loaded.spec.name}."
    for key in ("baseline", "sweep", "published"):
        data.pop(key, None)
    refuse_others(file, data)
    head = _HEAD.format(benchmark=loaded.spec.name, place=" ".join(place.name.split()))
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def refuse_others(file: Path, data: dict[str, Any]) -> None:
    """Stop before the benchmark or the scores of something else are written over.

    Args:
        file: the benchmark that is to be written, in its run folder.
        data: what it is to state.

    Raises:
        UsageError: the file is somebody's own, or the folder holds other scores.
    """
    if not file.exists():
        if (file.parent / "manifest.json").exists():
            raise UsageError(f"'{file.parent}' holds another run. Name another --output.")
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith(_WRITTEN):
        raise UsageError(
            f"'{file}' is there, and no `score --images` wrote it. Name another --output."
        )
    if not _holds_scores(RunFolder(file.parent)):
        return  # of an attempt that failed before it had any
    before = yaml.safe_load(text) or {}
    if before.get("methods") != data["methods"]:
        raise UsageError(
            f"'{file.parent}' holds the scores of other images. Name these by --name or --output."
        )
    other = [name for name in _MEASURE if _measure(before, name) != _measure(data, name)]
    if other:
        raise UsageError(
            f"'{file.parent}' holds the scores of '{before.get('name')}', and '{data['name']}' is "
            f"measured otherwise ({', '.join(other)}). Name another --output."
        )


def _holds_scores(run: RunFolder) -> bool:
    return run.table("csv").exists() or any(run.images("").glob("*/*/*.png"))


def _measure(data: dict[str, Any], name: str) -> object:
    """Return what is measured by: of a judge not how it is reached, of neither how fast."""
    stated = data.get(name)
    if not isinstance(stated, dict):
        return stated
    if name == "judge":
        return {key: stated.get(key) for key in _JUDGE}
    return {key: value for key, value in stated.items() if key != "batch_size"}


def refuse_overlap(place: Path, run: RunFolder) -> None:
    """Stop if a set would hold its own copies, or its copies would take its place.

    Raises:
        UsageError: the set is the run's, or the run folder lies in the set.
    """
    if not place.is_dir():
        return  # a listing names its images
    images, folder = place.resolve(), run.path.resolve()
    kept = run.images("").resolve()
    if folder == images or images in folder.parents or kept == images or kept in images.parents:
        raise UsageError(
            f"the images '{place}' and the run folder '{run.path}' lie in one another: copies and "
            "figures would be taken for images of the set. Name another --output."
        )


def set_name(loaded: LoadedBenchmark, name: str) -> str:
    """Return what the benchmark of an image set is called."""
    return run_name(f"{loaded.spec.name}-{name}")


def _model(stated: dict[str, Any], found: ResolvedModel, here: Path) -> dict[str, Any]:
    """Return a model as any file can name it; it is not loaded, and its LoRA need not be here."""
    lora = {**stated["lora"], "path": _place(found.lora, here)}
    if found.lora.obtain:
        lora["obtain"] = found.lora.obtain
    size = dict(zip(("width", "height"), found.size, strict=True))
    return {**stated, "pipeline": _place(found.pipeline, here), "lora": lora, **size}


def _place(source: Source, here: Path) -> str:
    """Return a source as a file in `here` names it: a miniature or hub id as it is, or its path."""
    is_path = source.kind in ("folder", "file") and not source.name.startswith(MINIATURE)
    return _seen_from(here, Path(source.location)) if is_path else source.name


def _seen_from(here: Path, file: Path) -> str:
    return Path(os.path.relpath(file.resolve(), here.resolve())).as_posix()
