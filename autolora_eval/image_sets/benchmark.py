"""The benchmark of one image set: somebody's prompts, seeds, extractor and judge, and no method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autolora_eval.benchmark.load import LoadedBenchmark, ResolvedModel
from autolora_eval.benchmark.sources import MINIATURE, Lookup, Source
from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.files import slug, write_text

_HEAD = """\
# Written by `autolora-eval score --images`: {benchmark} with the images of
# {place} in place of its methods.
"""


def write_set_benchmark(
    loaded: LoadedBenchmark, place: Path, name: str, model: str | None, file: Path
) -> None:
    """Write a benchmark that scores one image set by another benchmark's measure.

    It names its files by absolute path, so that it can lie in the run folder; the published
    values stay with the benchmark that they belong to.

    Args:
        loaded: the benchmark whose prompts, seeds, extractor and judge are taken.
        place: the images.
        name: what they are called in tables.
        model: the model that they are shown under; the benchmark's first where not given.
        file: where to write.

    Raises:
        UsageError: the benchmark has no such model.
    """
    chosen = model or next(iter(loaded.models))
    if chosen not in loaded.models:
        near = did_you_mean(chosen, loaded.models)
        raise UsageError(f"the benchmark has no model '{chosen}'.{near}")
    data: dict[str, Any] = loaded.spec.model_dump(mode="json", exclude_unset=True)
    lookup = Lookup.beside(loaded.file)
    if isinstance(loaded.spec.prompts, str):
        data["prompts"] = str(lookup.file(loaded.spec.prompts, "prompt file"))
    data["models"] = {chosen: _model(data["models"][chosen], loaded.models[chosen])}
    data["methods"] = {name: {"images": str(place.resolve())}}
    if loaded.features is not None:
        data["features"] = {**data.get("features", {}), "model": _place(loaded.features)}
    if loaded.spec.judge is not None:
        data["judge"]["rubric"] = str(lookup.file(loaded.spec.judge.rubric, "rubric"))
    if loaded.judge is not None:
        data["judge"]["model"] = _place(loaded.judge)
    data["name"] = set_name(loaded, name)
    data["description"] = f"Images made elsewhere, scored by the measure of {loaded.spec.name}."
    for key in ("baseline", "sweep", "reference"):
        data.pop(key, None)
    head = _HEAD.format(benchmark=loaded.spec.name, place=place.name)
    write_text(file, head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def set_name(loaded: LoadedBenchmark, name: str) -> str:
    """Return what the benchmark of an image set is called."""
    return f"{loaded.spec.name}-{slug(name)}"[:80]


def _model(stated: dict[str, Any], found: ResolvedModel) -> dict[str, Any]:
    """Return a model as any file can name it; it is not loaded, and its LoRA need not be here."""
    lora = {**stated["lora"], "path": _place(found.lora)}
    if found.lora.obtain:
        lora["obtain"] = found.lora.obtain
    size = dict(zip(("width", "height"), found.size, strict=True))
    return {**stated, "pipeline": _place(found.pipeline), "lora": lora, **size}


def _place(source: Source) -> str:
    """Return a source as any file can name it: a miniature or hub id as it is, else its path."""
    is_path = source.kind in ("folder", "file") and not source.reference.startswith(MINIATURE)
    return source.location if is_path else source.reference
