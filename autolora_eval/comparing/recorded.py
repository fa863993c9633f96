"""A plan made of what runs recorded: their cells as they were, over what all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolora_eval.benchmark.load import LoadedBenchmark, ResolvedMethod, ResolvedModel
from autolora_eval.benchmark.schema import Benchmark, Model
from autolora_eval.benchmark.sources import Source
from autolora_eval.benchmark.sweep import Sweep
from autolora_eval.comparing.sources import SourceRun
from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.files import Json, slug
from autolora_eval.guidance.registry import MethodParameters, Rule
from autolora_eval.plan import Cell, ImageJob, Plan
from autolora_eval.rubric import Rubric

_KINDS = ("guider", "sampler", "images")


@dataclass(frozen=True, kw_only=True)
class RecordedRule(Rule):
    """A method as a run recorded it.

    Attributes:
        passes: for one image; None if that was counted, or is not known.
    """

    passes: int | None

    @property
    def nfe_is_declared(self) -> bool:
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


def recorded_plan(sources: Sequence[SourceRun], baseline: str | None) -> Plan:
    """Return the joint plan of several runs.

    Args:
        sources: the runs.
        baseline: the method that the others are compared with; the first run's where not given.

    Raises:
        UsageError: no such method.
    """
    jobs = _shared_jobs(sources)
    names = _method_names(sources, jobs)
    cells = [
        _cell(source, stated, names[source.label, str(stated["method"])])
        for source in sources
        for stated in source.cells
        if (source.label, str(stated["method"])) in names
    ]
    own = sources[0].section("benchmark").get("baseline") or sources[0].cells[0]["method"]
    chosen = baseline or names[sources[0].label, str(own)]
    methods = list(dict.fromkeys(cell.method.name for cell in cells))
    if chosen not in methods:
        raise UsageError(f"no method '{chosen}' in these runs.{did_you_mean(chosen, methods)}")
    return Plan(_benchmark(sources, cells, jobs, chosen), tuple(cells), tuple(jobs))


def _shared_jobs(sources: Sequence[SourceRun]) -> list[ImageJob]:
    prompts = [p for p in sources[0].prompts if all(p in source.prompts for source in sources)]
    seeds = [s for s in sources[0].seeds if all(s in source.seeds for source in sources)]
    return [ImageJob(n, prompt, seed) for n, prompt in enumerate(prompts) for seed in seeds]


def _method_names(
    sources: Sequence[SourceRun], jobs: Sequence[ImageJob]
) -> dict[tuple[str, str], str]:
    """Return what each run's methods are called; a method whose images an earlier run has is left.

    A name that several runs have is followed by the run's, unless all images of it are the same.
    """
    having: dict[str, list[SourceRun]] = {}
    for source in sources:
        for method in dict.fromkeys(str(cell["method"]) for cell in source.cells):
            having.setdefault(method, []).append(source)
    names = {}
    for method, runs in having.items():
        seen: list[Json] = []
        distinct = []
        for source in runs:
            images = _images_of(source, method, jobs)
            if images not in seen:
                seen.append(images)
                distinct.append(source)
        for source in distinct:
            alone = len(distinct) == 1
            names[source.label, method] = method if alone else f"{method} ({source.label})"
    return names


def _images_of(source: SourceRun, method: str, jobs: Sequence[ImageJob]) -> Json:
    """Return the hashes of a method's images over the shared prompts and seeds, by cell."""
    ids = [str(cell["id"]) for cell in source.cells if cell["method"] == method]
    return {id_: [source.hashes.get((id_, job.prompt, job.seed)) for job in jobs] for id_ in ids}


def _cell(source: SourceRun, stated: Json, name: str) -> RecordedCell:
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
    own = slug(str(stated["method"]))
    renamed = slug(name.replace("/", "-"))
    return RecordedCell(
        id=str(stated["id"]).replace(f"--{own}", f"--{renamed}", 1),
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
        repeats = [int(source.section("judge").get("repeats") or 1) for source in sources]
        judge["repeats"] = min(repeats)
    spec = Benchmark.model_validate(
        {
            "name": slug("-and-".join(label.replace("/", "-") for label in labels))[:80],
            "description": f"Cells of {len(labels)} runs: {', '.join(labels)}.",
            "prompts": list(dict.fromkeys(job.prompt for job in jobs)),
            "seeds": {"start": min(seeds), "count": len(set(seeds))},
            "models": {name: model.spec.model_dump() for name, model in models.items()},
            "methods": {
                cell.method.name: {cell.method.kind: cell.method.rule.name} for cell in cells
            },
            "baseline": baseline,
            "features": first["features"],
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
        reference=None,
        sweep=_sweep(cells),
    )


def _sweep(cells: Sequence[RecordedCell]) -> Sweep:
    values: dict[str, dict[Any, None]] = {}
    for cell in cells:
        for name, value in cell.point.items():
            values.setdefault(name, {})[value] = None
    return Sweep({name: tuple(found) for name, found in values.items()})
