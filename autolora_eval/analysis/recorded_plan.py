"""A plan made of what runs recorded: their cells as they were, over what all of them share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import Json, run_name, slug
from autolora_eval._sources import Source
from autolora_eval.analysis.compatibility import Difference, SourceRun
from autolora_eval.config.load import LoadedBenchmark, ResolvedMethod, ResolvedModel
from autolora_eval.config.plan import Cell, ImageJob, Plan
from autolora_eval.config.schema import Benchmark, Model
from autolora_eval.config.sweep_grid import Sweep
from autolora_eval.guidance.method import Method
from autolora_eval.plugins.signatures import MethodParameters
from autolora_eval.scoring.diversity_metric import (
    DiversityMetric,
    installed_metric,
    needs_reference,
)
from autolora_eval.scoring.rubric import Rubric

_KINDS = ("guider", "sampler", "images")


@dataclass(frozen=True, kw_only=True)
class RecordedRule(Method):
    """A method as a run recorded it.

    Attributes:
        passes: for one image; None if that was counted, or is not known.
    """

    passes: int | None

    @property
    def nfe_is_exact(self) -> bool:
        """Whether the passes are the same for every image."""
        return self.passes is not None


@dataclass(frozen=True)
class RecordedCell(Cell):
    """A cell of a run, under its name in the comparison.

    Attributes:
        source: label of the run.
        cell: its id there.
        stated: what the run's manifest says of it.
    """

    source: str = ""
    cell: str = ""
    stated: Json = field(default_factory=dict, hash=False)

    @property
    def columns(self) -> dict[str, Any]:
        """The cell's parameters as columns of the tables."""
        return dict(self.stated.get("parameters") or {})


def recorded_plan(
    sources: Sequence[SourceRun], baseline: str | None
) -> tuple[Plan, list[Difference]]:
    """Return the joint plan of several runs, and which methods are taken once of several.

    Args:
        sources: the runs.
        baseline: the method that the others are compared with; the first run's where not given.

    Raises:
        UsageError: no such method.
    """
    jobs = _shared_jobs(sources)
    names, once = _method_names(sources, jobs)
    cells: list[RecordedCell] = []
    for source in sources:
        for stated in source.cells:
            name = names.get((source.label, str(stated["method"])))
            if name is not None:
                cells.append(_cell(source, stated, name, {cell.id.lower() for cell in cells}))
    own = sources[0].section("benchmark").get("baseline") or sources[0].cells[0]["method"]
    chosen = baseline or names[sources[0].label, str(own)]
    methods = list(dict.fromkeys(cell.method.name for cell in cells))
    if chosen not in methods:
        raise UsageError(f"no method '{chosen}' in these runs.{did_you_mean(chosen, methods)}")
    return Plan(_benchmark(sources, cells, jobs, chosen), tuple(cells), tuple(jobs)), once


def _shared_jobs(sources: Sequence[SourceRun]) -> list[ImageJob]:
    prompts = [p for p in sources[0].prompts if all(p in source.prompts for source in sources)]
    seeds = [s for s in sources[0].seeds if all(s in source.seeds for source in sources)]
    return [ImageJob(n, prompt, seed) for n, prompt in enumerate(prompts) for seed in seeds]


def _method_names(
    sources: Sequence[SourceRun], jobs: Sequence[ImageJob]
) -> tuple[dict[tuple[str, str], str], list[Difference]]:
    """Return what each run's methods are called; a method whose images an earlier run has is left.

    A name that several runs have is followed by the run's, unless all images of it are the same,
    and one judge saw them.
    """
    having: dict[str, list[SourceRun]] = {}
    for source in sources:
        for method in dict.fromkeys(str(cell["method"]) for cell in source.cells):
            having.setdefault(method, []).append(source)
    names: dict[tuple[str, str], str] = {}
    once: list[Difference] = []
    judged = all(source.section("judge") for source in sources)
    for method, runs in having.items():
        distinct: list[tuple[SourceRun, Json]] = []
        for source in runs:
            images = _images_of(source, method, jobs)
            if judged:
                images["judge"] = source.section("judge").get("key")
            first = next((earlier for earlier, same in distinct if same == images), None)
            if first is None:
                distinct.append((source, images))
            else:
                once.append(_taken_once(method, first, source))
        for source, _ in distinct:
            name = method if len(distinct) == 1 else f"{method} ({source.label})"
            names[source.label, method] = _unlike(name, set(names.values()))
    return names, once


def _taken_once(method: str, first: SourceRun, other: SourceRun) -> Difference:
    return Difference(
        "same images",
        "told",
        f"method '{method}': the very same images in {first.label} and {other.label}; taken once, "
        f"from {first.label}.",
    )


def _images_of(source: SourceRun, method: str, jobs: Sequence[ImageJob]) -> Json:
    """Return the hashes of a method's images over the shared prompts and seeds, by cell."""
    ids = [str(cell["id"]) for cell in source.cells if cell["method"] == method]
    return {id_: [source.hashes.get((id_, job.prompt, job.seed)) for job in jobs] for id_ in ids}


def _unlike(name: str, taken: Set[str]) -> str:
    """Return a name, with a number behind it if it is taken."""
    numbered = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
    return next(found for found in numbered if found not in taken)


def _renamed(stated: Json, name: str, taken: Set[str]) -> str:
    """Return a cell's id with its method called anew, unlike all others where case is ignored."""
    own, head = str(stated["id"]), f"{slug(str(stated['model']))}--"
    old = f"{head}{slug(str(stated['method']))}"
    rest = own.removeprefix(old) if own.startswith(old) else f"--{own}"
    new = slug(name.replace("/", "-"))
    numbered = (f"{head}{new}{'' if n == 1 else f'-{n}'}{rest}" for n in itertools.count(1))
    return next(id_ for id_ in numbered if id_.lower() not in taken)


def _cell(source: SourceRun, stated: Json, name: str, taken: Set[str]) -> RecordedCell:
    columns = stated.get("parameters") or {}
    kind: Any = next((kind for kind in _KINDS if kind in columns), "guider")
    rule = RecordedRule(
        name=str(stated.get("guider", "")),
        display_name=name,
        summary=str(stated.get("summary", "")),
        equation=str(stated.get("equation", "")),
        source=str(stated.get("source", "")),
        parameters=MethodParameters,
        code=stated.get("code") or {},
        passes=stated.get("nfe"),
    )
    point = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in (stated.get("point") or {}).items()
    }
    return RecordedCell(
        id=_renamed(stated, name, taken),
        model=_model(source, str(stated["model"])),
        method=ResolvedMethod(name, rule, MethodParameters(), kind),
        parameters=MethodParameters(),
        nfe=stated.get("nfe"),
        point=point,
        source=source.label,
        cell=str(stated["id"]),
        stated=stated,
    )


def _model(source: SourceRun, name: str) -> ResolvedModel:
    stated = source.section("benchmark")["models"][name]
    width, height = source.section("models").get(name, {}).get("size") or (None, None)
    nowhere = Source(str(stated["pipeline"]), "absent", str(stated["pipeline"]))
    return ResolvedModel(
        name, Model.model_validate(stated), nowhere, nowhere, (width or 1024, height or 1024)
    )


def _benchmark(
    sources: Sequence[SourceRun],
    cells: Sequence[RecordedCell],
    jobs: Sequence[ImageJob],
    baseline: str,
) -> LoadedBenchmark:
    labels = [source.label for source in sources]
    first = sources[0].section("benchmark")
    judged = all(source.section("judge") for source in sources)
    seeds = [job.seed for job in jobs]
    models = {cell.model.name: cell.model for cell in cells}
    judge = dict(first["judge"]) if judged else None
    if judge is not None:
        judge["repeats"] = min(source.repeats for source in sources)
    spec = Benchmark.model_validate(
        {
            "name": run_name("-and-".join(labels)),
            "description": f"Cells of {len(labels)} runs: {', '.join(labels)}.",
            "prompts": list(dict.fromkeys(job.prompt for job in jobs)),
            "seeds": {"start": min(seeds), "count": len(set(seeds))},
            "models": {name: model.spec.model_dump() for name, model in models.items()},
            "methods": {
                cell.method.name: {cell.method.kind: cell.method.definition.name} for cell in cells
            },
            "baseline": baseline,
            "features": first["features"],
            "diversity": list(shared_measures(sources)),
            "judge": judge,
        }
    )
    recorded = sources[0].manifest.get("rubric")
    return LoadedBenchmark(
        file=Path(sources[0].run.folder.manifest),
        spec=spec,
        prompts=tuple(dict.fromkeys(job.prompt for job in jobs)),
        models=models,
        methods={cell.method.name: cell.method for cell in cells},
        features=Source(str(first["features"]["model"]), "absent", ""),
        rubric=Rubric.model_validate(recorded) if judged else None,
        judge=None,
        published=None,
        sweep=_sweep(cells),
        diversity=shared_measures(sources),
    )


def shared_measures(sources: Sequence[SourceRun]) -> dict[str, DiversityMetric]:
    """Return the measures of diversity that all runs have and whose code is installed here.

    One against a reference set is left out: a run has its own.
    """
    sections = [source.section("diversity_metrics") for source in sources]
    shared = [name for name in sections[0] if all(name in section for section in sections)]
    alone = [name for name in shared if not needs_reference(sections[0][name])]
    found = {name: installed_metric(name) for name in alone}
    return {name: measure for name, measure in found.items() if measure is not None}


def _sweep(cells: Sequence[RecordedCell]) -> Sweep:
    values: dict[str, dict[Any, None]] = {}
    for cell in cells:
        for name, value in cell.point.items():
            values.setdefault(name, {})[value] = None
    return Sweep({name: tuple(found) for name, found in values.items()})
