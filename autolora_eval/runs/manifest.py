"""The manifest: what a run is made of, written section by section as the stages learn it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from autolora_eval._devices import hardware, package_versions
from autolora_eval._files import Json, content_hash, sha256_bytes, sha256_file, write_json
from autolora_eval._version import __version__
from autolora_eval.config.plan import Cell, Plan
from autolora_eval.runs.folder import RunFolder

if TYPE_CHECKING:
    import torch


def state_plan(plan: Plan, folder: RunFolder, stated: str, limits: Json) -> None:
    """Write what is asked for; what earlier stages learnt of the same cells is kept.

    Args:
        plan: what is to be run.
        folder: where to.
        stated: the benchmark as the user named it.
        limits: `limit_prompts` and `limit_seeds`, null where not limited.
    """
    benchmark = plan.benchmark
    before = folder.read_manifest()
    known = {cell["plan_key"]: cell for cell in before.get("cells", []) if "plan_key" in cell}
    cells = [stated_cell(cell, plan) for cell in plan.cells]
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(
        folder.manifest,
        before
        | {
            "autolora_eval_version": __version__,
            "benchmark_file": folder.relative(stated, benchmark.file),
            "benchmark_sha256": sha256_file(benchmark.file),
            "benchmark": benchmark.spec.model_dump(mode="json"),
            "prompts": list(dict.fromkeys(job.prompt for job in plan.jobs)),
            "prompts_sha256": sha256_bytes("\n".join(benchmark.prompts).encode()),
            "seeds": list(dict.fromkeys(job.seed for job in plan.jobs)),
            "limited": any(limit is not None for limit in limits.values()),
            **limits,
            "cells": [known.get(cell["plan_key"], {}) | cell for cell in cells],
            "models": {
                name: what
                for name, what in before.get("models", {}).items()
                if name in benchmark.models
            },
            "image_sets": {
                cell["id"]: before["image_sets"][cell["id"]]
                for cell in cells
                if cell["id"] in before.get("image_sets", {})
            },
            "rubric": None if benchmark.rubric is None else benchmark.rubric.model_dump(),
            "diversity_metrics": {
                name: measure.to_json() for name, measure in benchmark.diversity.items()
            },
        },
    )


def state_models(
    folder: RunFolder, models: Json, settings_keys: dict[str, str], device: torch.device
) -> None:
    """Write what the models and settings are, before the first image of them is made.

    Args:
        folder: where to.
        models: what each model is, by name.
        settings_keys: content key of each cell's settings, by cell.
        device: where they run.
    """
    manifest = folder.read_manifest()
    cells = [cell | {"settings_key": settings_keys[cell["id"]]} for cell in manifest["cells"]]
    update_manifest(
        folder, models=models, cells=cells, packages=package_versions(), hardware=hardware(device)
    )


def other_settings(plan: Plan, folder: RunFolder) -> list[str]:
    """Return the cells of the plan whose images, as the manifest has it, are of other settings."""
    made = {cell.get("id"): cell for cell in folder.read_manifest().get("cells", [])}
    return [
        cell.id
        for cell in plan.cells
        if made.get(cell.id, {}).get("plan_key") != stated_cell(cell, plan)["plan_key"]
    ]


def update_manifest(folder: RunFolder, **sections: Any) -> None:  # noqa: ANN401
    """Replace sections of the manifest; within models, image_sets and stages they are merged."""
    manifest = folder.read_manifest()
    for name, value in sections.items():
        if name in ("models", "image_sets", "stages"):
            before = manifest.get(name, {})
            value = before | {key: before.get(key, {}) | new for key, new in value.items()}
        manifest[name] = value
    write_json(folder.manifest, manifest)


def stage_times(started: datetime, done: int, reused: int) -> Json:
    """Return what the manifest says of a stage that has just ended."""
    now = datetime.now(UTC)
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((now - started).total_seconds(), 1),
        "done": done,
        "reused": reused,
    }


def stated_cell(cell: Cell, plan: Plan) -> Json:
    """Return what the manifest says of a cell; its plan_key stands for all that it asks for."""
    rule = cell.method.definition
    asked = {
        "model": cell.model.spec.model_dump(mode="json"),
        "columns": cell.columns,
        "batch_size": plan.benchmark.spec.batch_size,
        **({} if rule.identity == rule.name else {"rule": rule.identity}),
        **_code(cell),
    }
    return {
        "id": cell.id,
        "plan_key": content_hash(asked),
        "model": cell.model.name,
        "method": cell.method.name,
        "point": cell.point,
        "guider": rule.name,
        "summary": rule.summary,
        "equation": rule.equation,
        "source": rule.source,
        "parameters": cell.columns,
        "nfe": cell.nfe,
        **_code(cell),
    }


def _code(cell: Cell) -> Json:
    """Return other people's code that decides a cell's images; nothing if there is none."""
    return {"code": dict(cell.method.definition.code)} if cell.method.definition.code else {}
