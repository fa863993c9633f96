"""The joint run folder: images linked, features and replies copied, tables and report made anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from autolora_eval._errors import UsageError
from autolora_eval._files import (
    Json,
    atomic_write,
    content_hash,
    read_jsonl,
    sha256_bytes,
    sha256_file,
    write_json,
    write_jsonl,
)
from autolora_eval._version import __version__
from autolora_eval.analysis.compatibility import (
    Difference,
    SourceRun,
    differences,
    only_named,
    open_sources,
    refuse,
    without_baseline,
)
from autolora_eval.analysis.recorded_plan import RecordedCell, recorded_plan
from autolora_eval.config.plan import Plan
from autolora_eval.report import write_report
from autolora_eval.runs.folder import COMPARED, Run, RunFolder, open_run
from autolora_eval.runs.manifest import update_manifest
from autolora_eval.scoring.judgement_store import JudgementFile

# What runs and comparisons write, in a folder that may lack some of it.
_WRITTEN = frozenset(
    (
        *("agreement.csv", "comparisons.csv", "diversity.csv", "manifest.json", "reliability.csv"),
        *("scores.parquet", "timings.csv", "unscored.csv", "report.pdf", "report.html"),
        *("table.csv", "table.md", "table.tex", "table.parquet"),
        *("failed_images", "features", "figures", "image_sets", "images", "judgements"),
        "stale_images",
    )
)


def merge(
    plan: Plan, sources: Sequence[SourceRun], folder: RunFolder, found: Sequence[Difference]
) -> None:
    """Write the joint run folder of several runs, whole or not at all.

    Args:
        plan: from `recorded_plan`.
        sources: the runs.
        folder: where to; an earlier comparison there is replaced once the new one is whole.
        found: in what the runs differ.

    Raises:
        UsageError: there is something else than a comparison, or a run that is compared.
    """
    _refuse_place(folder, sources)
    partial = folder.path.with_name(f".partial-{folder.path.name}")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed one left
    try:
        _write(plan, sources, RunFolder(partial), found)
        if folder.path.exists():
            _take_over(folder, RunFolder(partial))
            shutil.rmtree(folder.path)
        partial.rename(folder.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    plan: Plan, sources: Sequence[SourceRun], folder: RunFolder, found: Sequence[Difference]
) -> None:
    judge_key = _judge_key(sources) if plan.benchmark.rubric is not None else None
    by_label = {source.label: source for source in sources}
    for cell in plan.cells:
        assert isinstance(cell, RecordedCell)
        _copy_cell(plan, cell, by_label[cell.source].run.folder, folder, judge_key)
    write_json(folder.manifest, _manifest(plan, sources, found, judge_key))

    from autolora_eval.analysis.tables import write_tables

    update_manifest(folder, counts=write_tables(plan, folder, judge_key))
    write_report(folder)


def _take_over(earlier: RunFolder, folder: RunFolder) -> None:
    """Keep what people have put into an earlier comparison, their ratings among it.

    Ratings are of images and verdicts: of others than those that were rated they say nothing.
    """
    made = {file.name for file in folder.path.iterdir()} | _WRITTEN
    for file in earlier.path.iterdir():
        if file.name not in made:
            file.rename(folder.path / file.name)
    if earlier.agreement.is_file() and _judged(earlier) == _judged(folder):
        earlier.agreement.rename(folder.agreement)
        write_report(folder)


def _judged(folder: RunFolder) -> list[str]:
    """Return every image with what was made of it."""
    import pandas as pd

    scores = pd.read_parquet(folder.scores) if folder.scores.is_file() else pd.DataFrame()
    text = scores.astype(str).sort_index(axis=1)
    return sorted(map(repr, text.itertuples(index=False, name=None)))


def _refuse_place(folder: RunFolder, sources: Sequence[SourceRun]) -> None:
    """Leave alone all that is not an earlier comparison, and every run that is compared."""
    place = folder.path.resolve()
    for source in sources:
        own = source.run.folder.path.resolve()
        if place == own or place in own.parents or own in place.parents:
            raise UsageError(
                f"'{folder.path}' would write into '{source.label}', which is compared and must "
                "stay as it is. Name another --output."
            )
    if not folder.path.exists():
        return
    if not folder.path.is_dir() or (
        any(folder.path.iterdir()) and COMPARED not in folder.read_manifest()
    ):
        raise UsageError(f"'{folder.path}' is not empty and no earlier comparison: name another.")


def _judge_key(sources: Sequence[SourceRun]) -> str:
    keys = list(dict.fromkeys(str(source.section("judge").get("key")) for source in sources))
    return keys[0] if len(keys) == 1 else content_hash(keys)


def _copy_cell(
    plan: Plan, cell: RecordedCell, source: RunFolder, folder: RunFolder, judge_key: str | None
) -> None:
    """Take over a cell's images, features and, with a judge, its replies."""
    wanted = {job.file for job in plan.jobs}
    rows = [row for row in read_jsonl(source.metadata(cell.cell)) if row["file_name"] in wanted]
    for row in rows:
        _link(
            source.images(cell.cell) / row["file_name"], folder.images(cell.id) / row["file_name"]
        )
    renamed = {"cell": cell.id, "method": cell.method.name}
    write_jsonl(folder.metadata(cell.id), [{**row, **renamed} for row in rows])
    _copy(source.features(cell.cell), folder.features(cell.id))
    for told in ("failed_images", "image_set"):
        file = getattr(source, told)(cell.cell)
        if file.is_file():
            _copy(file, getattr(folder, told)(cell.id))
    if judge_key is not None:
        _copy_replies(source, cell, folder, judge_key)


def _copy_replies(source: RunFolder, cell: RecordedCell, folder: RunFolder, judge_key: str) -> None:
    """Copy the replies that count in the run; of different judges each says whose it was."""
    own = (source.read_manifest().get("judge") or {}).get("key")
    replies = JudgementFile(source.judgements(cell.cell)).rows(own)
    same = own == judge_key
    JudgementFile(folder.judgements(cell.id)).append(
        row if same else {**row, "judge_key": judge_key, "judge_key_in_run": own} for row in replies
    )


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be; one that is lost stays so."""
    if not source.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


def _manifest(
    plan: Plan, sources: Sequence[SourceRun], found: Sequence[Difference], judge_key: str | None
) -> Json:
    first = sources[0]
    judge = None
    if judge_key is not None:
        repeats = min(source.repeats for source in sources)
        judge = {**first.section("judge"), "key": judge_key, "repeats": repeats}
    cells = [
        {
            **cell.stated,
            "id": cell.id,
            "method": cell.method.name,
            "run": cell.source,
            "cell_in_run": cell.cell,
        }
        for cell in plan.cells
        if isinstance(cell, RecordedCell)
    ]
    return {
        "autolora_eval_version": __version__,
        "benchmark_file": f"a comparison of {', '.join(source.label for source in sources)}",
        COMPARED: {source.label: _made_by(source) for source in sources},
        "differences": [difference._asdict() for difference in found],
        "benchmark": plan.benchmark.spec.model_dump(mode="json"),
        "prompts": list(plan.benchmark.prompts),
        "prompts_sha256": sha256_bytes("\n".join(plan.benchmark.prompts).encode()),
        "seeds": list(dict.fromkeys(job.seed for job in plan.jobs)),
        "limited": any(bool(source.manifest.get("limited")) for source in sources),
        "cells": cells,
        "models": _models(sources),
        "image_sets": _image_sets(plan, sources),
        "rubric": None if plan.benchmark.rubric is None else plan.benchmark.rubric.model_dump(),
        "diversity_metrics": {
            name: measure.to_json() for name, measure in plan.benchmark.diversity.items()
        },
        "features": first.section("features"),
        "judge": judge,
        "packages": first.section("packages"),
        "hardware": first.section("hardware"),
    }


def _made_by(source: SourceRun) -> Json:
    """Return what is known of a run beside its cells: not all runs are of one machine."""
    kept = ("autolora_eval_version", "benchmark_sha256", "packages", "hardware", "stages", COMPARED)
    return {
        "manifest_sha256": sha256_file(source.run.folder.manifest),
        **{name: source.manifest[name] for name in kept if name in source.manifest},
    }


def _models(sources: Sequence[SourceRun]) -> Json:
    """Return each model as the first run that made images with it has it."""
    models: Json = {}
    for source in sources:
        for name, model in source.section("models").items():
            if name not in models or (only_named(models[name]) and not only_named(model)):
                models[name] = model
    return models


def _image_sets(plan: Plan, sources: Sequence[SourceRun]) -> Json:
    """Return the accounts of images that were made elsewhere, by cell of the comparison."""
    accounts = {source.label: source.section("image_sets") for source in sources}
    return {
        cell.id: accounts[cell.source][cell.cell]
        for cell in plan.cells
        if isinstance(cell, RecordedCell) and cell.cell in accounts[cell.source]
    }


# --------------------
# Cells of several runs in one paired table and report.


def compare(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    baseline: str | None = None,
    allow_different_judges: bool = False,
) -> tuple[Run, list[Difference]]:
    """Put the cells of several runs into one table, paired over the prompts and seeds they share.

    Nothing is generated, extracted or judged: images, features and replies are taken from the
    runs. A method that several runs have is told apart by the run's name, unless all its images
    are the same.

    Args:
        runs: two or more finished run folders.
        output: where the joint run folder is written.
        baseline: the method that the others are compared with; the first run's where not given.
        allow_different_judges: compare scores although different judges gave them.

    Returns:
        The joint run, and in what the runs differ.

    Raises:
        UsageError: the runs cannot be compared: another extractor, rubric or judge, no prompt or
            seed in common; or `output` is something else than an earlier comparison.
    """
    sources = open_sources(runs)
    found = differences(sources)
    refuse(found, allow_different_judges=allow_different_judges)
    plan, once = recorded_plan(sources, baseline)
    told = [*found, *once, *without_baseline(plan)]
    folder = RunFolder(Path(output))
    merge(plan, sources, folder, told)
    return open_run(folder.path), told


__all__ = ["Difference", "compare"]
