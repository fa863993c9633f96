"""Compare cells of several runs: their files in one run folder, with tables and report."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from autolora_eval import __version__
from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import (
    atomic_write,
    content_hash,
    link_or_copy,
    run_name,
    sha256_file,
    slug,
    write_jsonl,
    writing,
)
from autolora_eval.analysis.compatibility import (
    Difference,
    SourceRun,
    differences,
    open_sources,
    refuse,
    shared_metrics,
    without_baseline,
)
from autolora_eval.analysis.tables import write_tables
from autolora_eval.runs.folder import RunFolder, checksums, output_folder
from autolora_eval.runs.manifest import (
    ImageJob,
    RunManifest,
    hash_prompts,
    joint_prompt_cuts,
    rows_of_images,
)
from autolora_eval.runs.records import (
    BenchmarkRecord,
    CellRecord,
    ComparedRun,
    JudgeRecord,
    ModelRecord,
    SweptParameter,
    SweptValue,
)
from autolora_eval.scoring.diversity_metric import DiversityMetric, installed_metric
from autolora_eval.scoring.judgement_store import JudgementFile

# What runs and comparisons write, in a folder that may lack some of it.
_WRITTEN = frozenset(
    (
        *("agreement.csv", "comparisons.csv", "diversity.csv", "manifest.json", "reliability.csv"),
        *("scores.parquet", "timings.csv", "unscored.csv", "report.pdf", "report.html"),
        *("table.csv", "table.md", "table.tex", "table.parquet", "failed_images", "features"),
        *("figures", "image_sets", "images", "judgements", "stale_images"),
    )
)
# By run and method: its name in the comparison.
Names = dict[tuple[str, str], str]


def join_runs(
    runs: Sequence[str | Path],
    output: Path,
    write_report: Callable[[RunFolder], None],
    *,
    baseline: str | None = None,
    allow_different_judges: bool = False,
) -> list[Difference]:
    """Write the joint run folder of several runs: see `autolora_eval.compare`.

    Returns:
        In what the runs differ.
    """
    sources = open_sources(runs)
    found = differences(sources)
    refuse(found, allow_different_judges=allow_different_judges)
    folder = _joint_folder(output, sources)
    metrics = {name: installed_metric(name) for name in shared_metrics(sources)}
    installed = {name: metric for name, metric in metrics.items() if metric is not None}
    manifest, once = _joint_manifest(sources, baseline, installed)
    found = [*found, *once, *without_baseline(manifest)]
    manifest = manifest.model_copy(update={"differences": found})

    def finish(partial: RunFolder) -> None:
        counts = write_tables(partial.read_manifest(), partial, list(installed.values()))
        partial.update_manifest(counts=counts, checksums=checksums(partial, manifest))
        write_report(partial)

    _write_whole(manifest, sources, folder, finish, write_report)
    return found


def _joint_manifest(
    sources: Sequence[SourceRun], baseline: str | None, metrics: dict[str, DiversityMetric]
) -> tuple[RunManifest, list[Difference]]:
    """Return the manifest of a comparison, and which methods are taken once of several runs."""
    first = sources[0].manifest
    shared_pairs = set.intersection(*(set(s.manifest.prompt_pairs) for s in sources))
    pairs = [pair for pair in first.prompt_pairs if pair in shared_pairs]
    prompts = [prompt for prompt, _ in pairs]
    negative_prompts = {prompt: own for prompt, own in pairs if own is not None}
    shared_seeds = set.intersection(*(set(s.manifest.seeds) for s in sources))
    seeds = [seed for seed in first.seeds if seed in shared_seeds]
    jobs = [ImageJob(n, prompt, seed) for n, prompt in enumerate(prompts) for seed in seeds]
    names, once = _method_names(sources, jobs)
    cells = list(_cells(sources, names))
    methods = {
        names[source.label, name]: method
        for source in sources
        for name, method in source.manifest.methods.items()
        if (source.label, name) in names
    }
    judge = _joint_judge(sources)
    manifest = RunManifest(
        autolora_eval_version=__version__,
        benchmark=_joint_benchmark(sources, names, baseline),
        limit_prompts=max(s.manifest.limit_prompts or 0 for s in sources) or None,
        limit_seeds=max(s.manifest.limit_seeds or 0 for s in sources) or None,
        prompts=prompts,
        negative_prompts=negative_prompts,
        prompts_sha256=hash_prompts(prompts, negative_prompts),
        prompt_cuts=joint_prompt_cuts((s.manifest for s in sources), pairs),
        seeds=seeds,
        methods=methods,
        sweep=_joint_sweep(sources, cells),
        cells=cells,
        rubric=first.rubric if judge else None,
        diversity_metrics={name: metric.record() for name, metric in metrics.items()},
        models=_joint_models(sources),
        image_sets={
            cell.id: s.manifest.image_sets[str(cell.cell_in_run)]
            for cell, s in _with_sources(cells, sources)
            if cell.cell_in_run in s.manifest.image_sets
        },
        features=first.features,
        judge=judge,
        packages=first.packages,
        hardware=first.hardware,
        compared={source.label: _compared(source) for source in sources},
    )
    return manifest, once


def _joint_benchmark(
    sources: Sequence[SourceRun], names: Names, baseline: str | None
) -> BenchmarkRecord:
    """Return the description of a comparison.

    Raises:
        UsageError: if none of the runs has the baseline.
    """
    chosen = baseline or names[sources[0].label, sources[0].manifest.benchmark.baseline]
    if chosen not in names.values():
        near = did_you_mean(chosen, names.values())
        raise UsageError(f"no method '{chosen}' in these runs.{near}")
    labels = [source.label for source in sources]
    return BenchmarkRecord(
        file=f"a comparison of {', '.join(labels)}",
        name=run_name("-and-".join(labels)),
        description=f"Cells of {len(labels)} runs: {', '.join(labels)}.",
        baseline=chosen,
    )


def _method_names(
    sources: Sequence[SourceRun], jobs: Sequence[ImageJob]
) -> tuple[Names, list[Difference]]:
    """Return the methods' names in the comparison; those with the same images are taken once.

    A name that several runs have is followed by the run's, unless all images are the same and the
    judge was the same.
    """
    having: dict[str, list[SourceRun]] = {}
    for source in sources:
        for method in source.manifest.methods:
            having.setdefault(method, []).append(source)
    names: Names = {}
    once: list[Difference] = []
    for method, runs in having.items():
        distinct: dict[str, SourceRun] = {}
        for source in runs:
            key = _images_key(source, method, jobs, with_judge=_is_judged(sources))
            if key not in distinct:
                distinct[key] = source
                continue
            one, other = distinct[key].label, source.label
            same = f"{one} and {other} have the same images. Only those of {one} are used."
            note = f"method '{method}': {same}"
            once.append(Difference(what="same images", severity="note", message=note))
        for source in distinct.values():
            name = method if len(distinct) == 1 else f"{method} ({source.label})"
            numbered = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
            taken = set(names.values())
            names[source.label, method] = next(free for free in numbered if free not in taken)
    return names, once


def _images_key(
    source: SourceRun, method: str, jobs: Sequence[ImageJob], *, with_judge: bool
) -> str:
    """Return a hash of a method's images over the shared prompts and seeds, and of its judge."""
    cells = [cell.id for cell in source.manifest.cells if cell.method == method]
    images = {id_: [source.hashes.get((id_, j.prompt, j.seed)) for j in jobs] for id_ in cells}
    return content_hash([images, source.manifest.judge_key if with_judge else None])


def _cells(sources: Sequence[SourceRun], names: Names) -> Iterator[CellRecord]:
    taken: set[str] = set()
    for source in sources:
        for cell in source.manifest.cells:
            name = names.get((source.label, cell.method))
            if name is None:
                continue
            # Some file systems ignore case.
            id_ = next(id_ for id_ in _ids(cell, name) if id_.lower() not in taken)
            taken.add(id_.lower())
            origin = {"run": source.label, "cell_in_run": cell.id}
            yield cell.model_copy(update={"id": id_, "method": name, **origin})


def _ids(cell: CellRecord, method: str) -> Iterator[str]:
    """Yield the id of a cell with its method renamed, then the same id numbered."""
    head = f"{slug(cell.model)}--"
    old = f"{head}{slug(cell.method)}"
    rest = cell.id.removeprefix(old) if cell.id.startswith(old) else f"--{cell.id}"
    new = slug(method.replace("/", "-"))
    for n in itertools.count(1):
        yield f"{head}{new}{'' if n == 1 else f'-{n}'}{rest}"


def _is_judged(sources: Sequence[SourceRun]) -> bool:
    return all(source.manifest.judge is not None for source in sources)


def _joint_judge(sources: Sequence[SourceRun]) -> JudgeRecord | None:
    """Return the judge of a comparison; None unless all runs have one."""
    judges = [source.manifest.judge for source in sources if source.manifest.judge is not None]
    if not _is_judged(sources):
        return None
    keys = list(dict.fromkeys(judge.key for judge in judges))
    key = keys[0] if len(keys) == 1 else content_hash(keys)
    repeats = min(judge.repeats for judge in judges)
    return judges[0].model_copy(update={"key": key, "repeats": repeats})


def _joint_sweep(
    sources: Sequence[SourceRun], cells: Sequence[CellRecord]
) -> dict[str, SweptParameter]:
    values: dict[str, dict[SweptValue, None]] = {}
    for cell in cells:
        for name, value in cell.point.items():
            values.setdefault(name, {})[value] = None
    known = {name: swept for s in sources for name, swept in s.manifest.sweep.items()}
    return {
        name: SweptParameter(values=tuple(found), columns=known[name].columns)
        for name, found in values.items()
    }


def _joint_models(sources: Sequence[SourceRun]) -> dict[str, ModelRecord]:
    """Return each model, from the first run that made images with it."""
    models: dict[str, ModelRecord] = {}
    for source in sources:
        for name, model in source.manifest.models.items():
            if name not in models or (model.pipeline.used and not models[name].pipeline.used):
                models[name] = model
    return models


def _compared(source: SourceRun) -> ComparedRun:
    manifest = source.manifest
    return ComparedRun(
        manifest_sha256=sha256_file(source.run.folder.manifest),
        autolora_eval_version=manifest.autolora_eval_version,
        benchmark_sha256=manifest.benchmark.sha256,
        packages=manifest.packages,
        hardware=manifest.hardware,
        stages=manifest.stages,
    )


def _with_sources(
    cells: Sequence[CellRecord], sources: Sequence[SourceRun]
) -> Iterator[tuple[CellRecord, SourceRun]]:
    by_label = {source.label: source for source in sources}
    for cell in cells:
        yield cell, by_label[str(cell.run)]


# ---- The joint run folder: images linked, features and replies copied, tables written


def _joint_folder(output: Path, sources: Sequence[SourceRun]) -> RunFolder:
    """Return the folder to write, which may not be that of a compared run."""
    path = output.resolve()
    for source in sources:
        own = source.run.folder.path.resolve()
        if path == own or path in own.parents or own in path.parents:
            raise UsageError(
                f"'{output}' would write into '{source.label}', which is compared and must stay "
                "as it is. Name another --output."
            )
    return output_folder(output, joint=True)


def _write_whole(
    manifest: RunManifest,
    sources: Sequence[SourceRun],
    folder: RunFolder,
    finish: Callable[[RunFolder], None],
    write_report: Callable[[RunFolder], None],
) -> None:
    """Write the joint run folder, whole or not at all; an earlier comparison is replaced."""
    partial = RunFolder(folder.path.with_name(f".partial-{folder.path.name}"))
    with writing(folder.path, folder.path.with_name(f".lock-{folder.path.name}")):
        shutil.rmtree(partial.path, ignore_errors=True)  # what a killed process left
        try:
            for cell, source in _with_sources(manifest.cells, sources):
                _copy_cell(manifest, cell, source, partial)
            partial.write_manifest(manifest)
            finish(partial)
            if folder.path.exists():
                if _keep_added_files(folder, partial):
                    write_report(partial)
                shutil.rmtree(folder.path)
            partial.path.rename(folder.path)
        finally:
            shutil.rmtree(partial.path, ignore_errors=True)


def _keep_added_files(earlier: RunFolder, folder: RunFolder) -> bool:
    """Keep what people have put into an earlier comparison; return whether ratings were kept.

    Ratings apply to the images and scores that were rated, and to no others.
    """
    written = {file.name for file in folder.path.iterdir()} | _WRITTEN
    for file in earlier.path.iterdir():
        if file.name not in written:
            file.rename(folder.path / file.name)
    manifest = earlier.find_manifest()
    agreement = None if manifest is None else manifest.agreement
    if agreement is None or _judged_images(earlier) != _judged_images(folder):
        return False
    earlier.agreement.rename(folder.agreement)
    scores = sha256_file(folder.scores)
    folder.update_manifest(agreement=agreement.model_copy(update={"scores_sha256": scores}))
    return True


def _judged_images(folder: RunFolder) -> list[str]:
    import pandas as pd

    scores = pd.read_parquet(folder.scores) if folder.scores.is_file() else pd.DataFrame()
    text = scores.astype(str).sort_index(axis=1)
    return sorted(map(repr, text.itertuples(index=False, name=None)))


def _copy_cell(
    manifest: RunManifest, cell: CellRecord, source: SourceRun, folder: RunFolder
) -> None:
    """Copy a cell's images, features and, with a judge, its replies."""
    before, own = source.run.folder, str(cell.cell_in_run)
    wanted = {job.file for job in manifest.jobs()}
    rows = [row for row in rows_of_images(before.metadata(own)) if row["file_name"] in wanted]
    for row in rows:
        name = row["file_name"]
        link_or_copy(before.within(before.images(own) / name), folder.images(cell.id) / name)
    renamed = {"cell": cell.id, "method": cell.method}
    write_jsonl(folder.metadata(cell.id), [{**row, **renamed} for row in rows])
    for part in (RunFolder.features, RunFolder.failed_images, RunFolder.image_set):
        if part(before, own).is_file():
            with atomic_write(part(folder, cell.id)) as temporary:
                shutil.copyfile(part(before, own), temporary)
    key, own_key = manifest.judge_key, source.manifest.judge_key
    if key is None:
        return
    # Replies of different judges name their own.
    changed = {} if key == own_key else {"judge_key": key, "judge_key_in_run": own_key}
    replies = JudgementFile(before.judgements(own)).rows(own_key)
    JudgementFile(folder.judgements(cell.id)).append({**row, **changed} for row in replies)
