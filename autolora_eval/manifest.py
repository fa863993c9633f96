"""The manifest: what a run is made of, written section by section as the stages learn it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from autolora_eval._version import __version__
from autolora_eval.devices import hardware, package_versions
from autolora_eval.files import Json, sha256_bytes, sha256_file, write_json
from autolora_eval.plan import Cell, Plan
from autolora_eval.run_folder import RunFolder


def start_manifest(plan: Plan, folder: RunFolder, stated: str, limits: Json) -> None:
    """Write what is known before anything is loaded; what earlier runs learnt is kept.

    Args:
        plan: what is to be run.
        folder: where to.
        stated: the benchmark as the user named it.
        limits: `limit_prompts` and `limit_seeds`, null where not limited.
    """
    benchmark = plan.benchmark
    prompts = list(dict.fromkeys(job.prompt for job in plan.jobs))
    seeds = list(dict.fromkeys(job.seed for job in plan.jobs))
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(
        folder.manifest,
        folder.read_manifest()
        | {
            "autolora_eval_version": __version__,
            "benchmark_file": stated,
            "benchmark_sha256": sha256_file(benchmark.file),
            "benchmark": benchmark.spec.model_dump(mode="json"),
            "prompts": prompts,
            "prompts_sha256": sha256_bytes("\n".join(benchmark.prompts).encode()),
            "seeds": seeds,
            "limited": any(limit is not None for limit in limits.values()),
            **limits,
            "cells": [_cell(cell) for cell in plan.cells],
            "rubric": None if benchmark.rubric is None else benchmark.rubric.model_dump(),
            "packages": package_versions(),
            "hardware": hardware(),
        },
    )


def update_manifest(folder: RunFolder, **sections: Any) -> None:  # noqa: ANN401
    """Replace sections of the manifest; within `models` and `stages`, entries are merged."""
    manifest = folder.read_manifest()
    for name, value in sections.items():
        if name in ("models", "stages"):
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


def _cell(cell: Cell) -> Json:
    rule = cell.method.rule
    return {
        "id": cell.id,
        "model": cell.model.name,
        "method": cell.method.name,
        "guider": rule.name,
        "summary": rule.summary,
        "equation": rule.equation,
        "source": rule.source,
        "parameters": cell.columns,
        "nfe": cell.nfe,
    }
