"""What a plan hands to the stages: the manifest of the run, and their settings."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from autolora_eval import __version__
from autolora_eval._files import content_hash, sha256_file
from autolora_eval.config.inputs import LoadedBenchmark
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.config.prompt_cuts import plan_prompt_cuts
from autolora_eval.config.sweep_grid import fields_of
from autolora_eval.runs.folder import RunFolder, manifest_key
from autolora_eval.runs.manifest import RunManifest, hash_prompts
from autolora_eval.runs.records import (
    BenchmarkRecord,
    CellRecord,
    MethodRecord,
    RubricRecord,
    SweptParameter,
)
from autolora_eval.sources.model_source import stated_license

if TYPE_CHECKING:
    from autolora_eval.scoring.features import FeatureSettings
    from autolora_eval.scoring.judging import JudgeSettings


def planned_manifest(
    plan: Plan,
    folder: RunFolder,
    benchmark: str | None = None,
    limit_prompts: int | None = None,
    limit_seeds: int | None = None,
) -> RunManifest:
    """Return the manifest of a plan, with what an earlier run of the same cells has learnt."""
    loaded = plan.benchmark
    sections: dict[str, Any] = {
        "autolora_eval_version": __version__,
        "benchmark": _benchmark(plan, folder, benchmark or str(loaded.file)),
        "limit_prompts": limit_prompts,
        "limit_seeds": limit_seeds,
        "prompts": list(dict.fromkeys(job.prompt for job in plan.jobs)),
        "negative_prompts": {
            job.prompt: job.negative_prompt for job in plan.jobs if job.negative_prompt is not None
        },
        "prompts_sha256": hash_prompts(loaded.prompts, loaded.negative_prompts),
        "seeds": list(dict.fromkeys(job.seed for job in plan.jobs)),
        "methods": {cell.method.name: _method(cell) for cell in plan.cells},
        "sweep": {
            name: SweptParameter(values=values, columns=fields_of(name))
            for name, values in loaded.sweep.values.items()
        },
        "cells": [cell_record(cell, plan) for cell in plan.cells],
        "rubric": None
        if loaded.rubric is None
        else RubricRecord.model_validate(loaded.rubric.model_dump()),
        "prompt_cuts": plan_prompt_cuts(plan),
        "diversity_metrics": {name: one.record() for name, one in loaded.diversity.items()},
        "licenses": _licenses(loaded),
    }
    before = folder.find_manifest()
    if before is None:
        return RunManifest(**sections)
    planned = before.model_copy(update=sections | _kept(before, plan, sections["cells"]))
    if manifest_key(planned) != manifest_key(before):
        planned = planned.model_copy(update={"are_tables_outdated": True})
    return planned


def _kept(before: RunManifest, plan: Plan, cells: list[CellRecord]) -> dict[str, Any]:
    """Return what earlier stages learnt of the cells and models that are still asked for."""
    keys = {cell.plan_key: cell.settings_key for cell in before.cells}
    ids = {cell.id for cell in cells}
    models = before.models.items()
    return {
        "cells": [
            cell.model_copy(update={"settings_key": keys.get(cell.plan_key)}) for cell in cells
        ],
        "models": {name: model for name, model in models if name in plan.benchmark.models},
        "image_sets": {cell: one for cell, one in before.image_sets.items() if cell in ids},
    }


def _licenses(loaded: LoadedBenchmark) -> dict[str, str]:
    """Return the licences of models and LoRAs on this machine, as their model cards state them."""
    sources = [loaded.features, loaded.judge]
    for model in loaded.models.values():
        sources += [model.pipeline, model.vae, *(lora.source for lora in model.loras)]
    stated = {source.name: stated_license(source) for source in sources if source is not None}
    return {name: license_ for name, license_ in stated.items() if license_ is not None}


def _benchmark(plan: Plan, folder: RunFolder, named: str) -> BenchmarkRecord:
    loaded, spec = plan.benchmark, plan.benchmark.spec
    return BenchmarkRecord(
        file=folder.relative(named, loaded.file),
        sha256=sha256_file(loaded.file),
        name=spec.name,
        description=spec.description,
        prompt_file=_without_machine(spec.prompts) if isinstance(spec.prompts, str) else "",
        baseline=spec.baseline_method,
        diversity_reference=spec.diversity_reference,
        device=spec.device,
        dtype=spec.dtype,
        batch_size=spec.batch_size,
        content=spec.model_dump(mode="json"),
    )


def _without_machine(path: str) -> str:
    """Return the name of a file instead of a path outside the benchmark's folder."""
    parts = PurePath(path)
    return parts.name if parts.is_absolute() or ".." in parts.parts else path


def _method(cell: Cell) -> MethodRecord:
    rule = cell.method.definition
    return MethodRecord(
        kind=cell.method.kind,
        name=rule.name,
        summary=rule.summary,
        equation=rule.equation,
        source=rule.source,
        code=dict(rule.code),
    )


def cell_record(cell: Cell, plan: Plan) -> CellRecord:
    """Return what the manifest says of a cell before it has run."""
    rule, batching = cell.method.definition, plan.benchmark.spec.guidance_batching
    stacks = cell.method.kind == "guider" and batching != "separate"
    asked = {
        "model": cell.model.spec.model_dump(
            mode="json", exclude={"offload"}, exclude_defaults=True
        ),
        "columns": cell.columns,
        "batch_size": plan.benchmark.spec.batch_size,
        **({"guidance_batching": batching} if stacks else {}),
        **({} if rule.identity == rule.name else {"rule": rule.identity}),
        **({"code": dict(rule.code)} if rule.code else {}),
    }
    return CellRecord(
        id=cell.id,
        model=cell.model.name,
        method=cell.method.name,
        point=dict(cell.point),
        parameters=cell.columns,
        nfe=None if rule.nfe_per_step is None else cell.nfe,
        plan_key=content_hash(asked),
    )


def cells_not_generated(plan: Plan, manifest: RunManifest) -> list[str]:
    """Return the cells of a plan that the manifest lacks or has with other settings."""
    generated = {cell.id: cell.plan_key for cell in manifest.cells if cell.settings_key}
    return [
        cell.id for cell in plan.cells if generated.get(cell.id) != cell_record(cell, plan).plan_key
    ]


def feature_settings(plan: Plan) -> FeatureSettings:
    """Return how a plan's features are extracted."""
    from autolora_eval.scoring.features import FeatureSettings

    benchmark, spec = plan.benchmark, plan.benchmark.spec
    return FeatureSettings(
        extractor=benchmark.extractor,
        model=spec.features.model,
        source=benchmark.features,
        device=spec.device,
        dtype=spec.features.dtype,
        batch_size=spec.features.batch_size,
    )


def judge_settings(plan: Plan) -> JudgeSettings:
    """Return how a plan's images are judged; the plan must have a judge."""
    from autolora_eval.scoring.judging import JudgeSettings

    benchmark, config = plan.benchmark, plan.benchmark.spec.judge
    assert config is not None
    assert benchmark.rubric is not None
    return JudgeSettings(config, benchmark.rubric, benchmark.judge, benchmark.spec.device)
