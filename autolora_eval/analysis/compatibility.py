"""The runs of a comparison, their differences, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autolora_eval._errors import UsageError
from autolora_eval._files import Json
from autolora_eval._text import NOT_RECORDED
from autolora_eval.runs.folder import Run, open_run
from autolora_eval.runs.manifest import RunManifest, library_versions
from autolora_eval.runs.records import DifferenceRecord, FeaturesRecord, JudgeRecord, ModelRecord
from autolora_eval.scoring.diversity_metric import installed_metric

MAX_VERSIONS = 6
# How much a stage did, and hashes whose reasons are named instead.
_NOT_COMPARED = {"done", "reused", "cached", "failed", "unscored", "key", "request_key"}
Difference = DifferenceRecord


@dataclass(frozen=True)
class SourceRun:
    """A run of a comparison and its short name."""

    label: str
    run: Run

    @property
    def manifest(self) -> RunManifest:
        """What was run."""
        return self.run.manifest

    @cached_property
    def hashes(self) -> dict[tuple[str, str, int], str | None]:
        """SHA-256 of every image, by (cell, prompt, seed); None for a missing one."""
        scores = self.run.scores
        keys = zip(scores["cell"], scores["prompt"], scores["seed"], strict=True)
        hashes = scores["sha256"].astype(object).where(scores["sha256"].notna(), None)
        return dict(zip(keys, hashes, strict=True))


def open_sources(paths: Sequence[str | Path]) -> list[SourceRun]:
    """Open the runs. Labels are the ends of their paths, as short as they are unique."""
    resolved = [Path(path).resolve() for path in paths]
    if len(resolved) < 2:
        raise UsageError(f"name two or more runs to compare (got {len(resolved)}).")
    for full, path in zip(resolved, paths, strict=True):
        if resolved.count(full) > 1:
            raise UsageError(f"'{path}' is named twice.")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    labels = ["/".join(path.parts[-depth:]) for path in resolved]
    sources = [SourceRun(label, open_run(path)) for label, path in zip(labels, paths, strict=True)]
    for source in sources:
        for cell in source.manifest.cells:
            if not source.run.folder.features(cell.id).is_file():
                raise UsageError(
                    f"'{source.label}': its cell '{cell.id:.100}' has no features. Make them with: "
                    f"autolora-eval score {source.run.folder.path}"
                )
    return sources


def differences(sources: Sequence[SourceRun]) -> list[Difference]:
    """Return all differences of the runs, errors first."""
    found = [
        *_shared("prompts", sources, lambda manifest: manifest.prompt_pairs),
        *_shared("seeds", sources, lambda manifest: manifest.seeds),
        *_extractor(sources),
        *_diversity_metrics(sources),
        *_judge(sources),
        *_repeats(sources),
        *_models(sources),
        *_software(sources),
    ]
    order = ("error", "judge", "note")
    return sorted(found, key=lambda difference: order.index(difference.severity))


def without_baseline(manifest: RunManifest) -> list[Difference]:
    """Return a note on the models of a comparison that have no cell of the baseline."""
    baseline = manifest.benchmark.baseline
    models = dict.fromkeys(cell.model for cell in manifest.cells)
    have = {cell.model for cell in manifest.cells if cell.method == baseline}
    lacking = [model for model in models if model not in have]
    if not lacking:
        return []
    message = (
        f"no cell of {', '.join(lacking)} is the baseline '{baseline}': nothing is compared there. "
        "Cells are paired only where the runs use the same name for their model."
    )
    return [_note("models", message)]


def refuse(found: Sequence[Difference], *, allow_different_judges: bool) -> None:
    """Stop if the runs cannot be compared, with each reason and what can be done."""
    errors = [one for one in found if one.severity == "error"]
    judges = [one for one in found if one.severity == "judge" and not allow_different_judges]
    if errors or judges:
        lines = "\n".join(f"  - {one.message}" for one in (*errors, *judges))
        way_out = "" if errors else "\nTo compare them anyway, add --allow-different-judges."
        raise UsageError(f"these runs cannot be compared:\n{lines}{way_out}")


def _note(what: str, message: str) -> Difference:
    return Difference(what=what, severity="note", message=message)


def _error(what: str, message: str) -> Difference:
    return Difference(what=what, severity="error", message=message)


def _shared(
    what: str, sources: Sequence[SourceRun], of: Callable[[RunManifest], list[Any]]
) -> list[Difference]:
    sets = [set(of(source.manifest)) for source in sources]
    shared = set.intersection(*sets)
    if all(found == shared for found in sets):
        return []
    counts = ", ".join(f"{len(found)} in {s.label}" for s, found in zip(sources, sets, strict=True))
    if not shared:
        return [_error(what, f"no {what} in common: {counts}.")]
    return [_note(what, f"{what}: {counts}; only the {len(shared)} that all have are compared.")]


def _extractor(sources: Sequence[SourceRun]) -> list[Difference]:
    found = [source.manifest.features for source in sources]
    difference = _differing_record("extractor", sources, found)
    if not difference:
        return []
    why = "diversity with different extractors cannot be compared. Score the runs again with the"
    return [_error("extractor", f"{difference}; {why} same extractor.")]


def shared_metrics(sources: Sequence[SourceRun]) -> list[str]:
    """Return the diversity metrics that all runs have and that need no reference set."""
    sections = [source.manifest.diversity_metrics for source in sources]
    return [
        name
        for name, metric in sections[0].items()
        if all(name in section for section in sections) and not metric.against_reference
    ]


def _diversity_metrics(sources: Sequence[SourceRun]) -> list[Difference]:
    sections = [source.manifest.diversity_metrics for source in sources]
    names = dict.fromkeys(name for section in sections for name in section)
    lacking = [name for name in names if not all(name in section for section in sections)]
    against = [
        name for name in names if name not in lacking and sections[0][name].against_reference
    ]
    lost = [name for name in shared_metrics(sources) if installed_metric(name) is None]
    reasons = {
        "diversity metrics against a reference set, which two runs do not share,": against,
        "diversity metrics that not all runs have": lacking,
        "diversity metrics that are not installed": lost,
    }
    return [
        _note("diversity", f"{which} are left out: {', '.join(names)}.")
        for which, names in reasons.items()
        if names
    ]


def _judge(sources: Sequence[SourceRun]) -> list[Difference]:
    judges = [source.manifest.judge for source in sources]
    if not any(judges):
        return []
    if not all(judges):
        without = ", ".join(s.label for s in sources if s.manifest.judge is None)
        return [_note("judge", f"no judge scored {without}: only diversity is compared.")]
    rubrics = [(judge.rubric_sha256, judge.rubric_name) for judge in judges if judge is not None]
    if len({sha256 for sha256, _ in rubrics}) > 1:
        names = _listed(sources, [name for _, name in rubrics])
        why = "scores of different rubrics cannot be compared"
        return [_error("rubric", f"rubric: {names}; {why}.")]
    difference = _differing_record("judge", sources, judges)
    if not difference:
        return []
    why = "scores of different judges cannot be compared. Score the runs again with the same judge."
    return [Difference(what="judge", severity="judge", message=f"{difference}; {why}")]


def _repeats(sources: Sequence[SourceRun]) -> list[Difference]:
    counts = [source.manifest.judge.repeats for source in sources if source.manifest.judge]
    if len(counts) < len(sources) or len(set(counts)) == 1:
        return []
    named = ", ".join(f"{n} in {s.label}" for s, n in zip(sources, counts, strict=True))
    first = "reply" if min(counts) == 1 else f"{min(counts)} replies"
    message = f"replies per image: {named}; only the first {first} of each image will be used."
    return [_note("judge repeats", message)]


def _models(sources: Sequence[SourceRun]) -> list[Difference]:
    found = []
    for name in dict.fromkeys(name for source in sources for name in source.manifest.models):
        models = {s.label: s.manifest.models[name] for s in sources if name in s.manifest.models}
        used = {label: model for label, model in models.items() if model.pipeline.used}
        keys = _differing([_without_paths(model) for model in used.values()])
        if keys:
            message = f"model '{name}' differs in {', '.join(keys)} between {', '.join(used)}."
            found.append(_note(f"model {name}", message))
    return found


def _without_paths(model: ModelRecord) -> Json:
    """Return a model without the paths of its files, which do not affect results."""
    record = model.model_dump()
    for part in (record["pipeline"], record["config"], record["vae"], *record["loras"]):
        if part and part["kind"] != "hub":
            del part["name"]
    return record


def _software(sources: Sequence[SourceRun]) -> list[Difference]:
    """Return a note on versions and devices: they change the last bits of an image."""
    known = [_versions(source.manifest) for source in sources]
    names = dict.fromkeys(name for versions in known for name in versions)
    differing = [name for name in names if len({versions.get(name) for versions in known}) > 1]
    if not differing:
        return []
    shown = []
    for name in differing[:MAX_VERSIONS]:
        versions = (versions.get(name) or NOT_RECORDED for versions in known)
        each = (f"{version} in {s.label}" for version, s in zip(versions, sources, strict=True))
        shown.append(f"{name} {', '.join(each)}")
    n_more = len(differing) - MAX_VERSIONS
    more = f"; and {n_more} more" if n_more > 0 else ""
    return [_note("software", f"versions and devices: {'; '.join(shown)}{more}.")]


def _versions(manifest: RunManifest) -> dict[str, str | None]:
    own = {"autolora-eval": manifest.autolora_eval_version}
    images, hardware = library_versions(manifest.libraries), manifest.hardware
    return {**own, **manifest.packages, **images, "device": hardware.gpu or hardware.device}


def _differing_record(
    what: str, sources: Sequence[SourceRun], records: Sequence[FeaturesRecord | JudgeRecord | None]
) -> str:
    """Return the differences of a stage's records; empty if their keys are the same."""
    known = [record for record in records if record is not None]
    if len({record.key for record in known}) == 1:
        return ""
    keys = _differing([_flat(record) for record in known])
    names = _listed(sources, [record.model for record in known])
    return f"{what}: {names} (differs in {', '.join(keys)})"


def _flat(record: FeaturesRecord | JudgeRecord) -> Json:
    values: Json = record.model_dump(exclude=_NOT_COMPARED)
    settings: Json = values.pop("settings", {})
    return values | settings


def _differing(parts: Sequence[Json]) -> list[str]:
    keys = dict.fromkeys(key for part in parts for key in part)
    return [key for key in keys if any(part.get(key) != parts[0].get(key) for part in parts)]


def _listed(sources: Sequence[SourceRun], names: Sequence[str]) -> str:
    return ", ".join(f"'{name}' in {s.label}" for s, name in zip(sources, names, strict=True))
