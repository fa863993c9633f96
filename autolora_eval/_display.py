"""What the commands print: plans and results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autolora_eval._files import Json
from autolora_eval._progress import Progress
from autolora_eval._sources import Source
from autolora_eval._text import format_swept_value, pluralize
from autolora_eval.config.load import LoadedBenchmark
from autolora_eval.config.plan import (
    Cell,
    Plan,
    cells_by_method,
    common_columns,
    describe_parameters,
)
from autolora_eval.config.sweep import INTERVAL, fields_of
from autolora_eval.guidance.catalogue import (
    BUILT_IN,
    DIFFUSERS,
    INSTALLED,
    Listed,
    ListedParameter,
)
from autolora_eval.runs.folder import Run, RunFolder

if TYPE_CHECKING:
    from autolora_eval.analysis.human_agreement import HumanAgreement


# A terminal narrower than this and a column a measure leaves the extra measures out.
NAMES_WIDTH, COLUMN_WIDTH = 26, 9

console = Console()


def progress() -> Progress:
    """Return the progress display of this terminal or log."""
    return Progress(console)


def announce(plan: Plan, folder: RunFolder) -> None:
    """Say what is about to run, and where it goes: the models take seconds to load."""
    console.print(
        f"[bold]{escape(plan.benchmark.spec.name)}[/]: {_cells(plan)} = {plan.n_images:,} images, "
        f"{_passes(plan)}, {plan.n_judge_calls:,} judge calls → "
        f"{escape(str(folder.path))}",
        highlight=False,
        soft_wrap=True,
    )


def _passes(plan: Plan) -> str:
    """Return the denoiser passes of a plan, and of how many cells they are not known yet."""
    n = plan.n_cells_of_unknown_nfe
    if not n:
        return f"{plan.nfe:,} denoiser passes"
    rest = f"those of {n} cell{'s' if n != 1 else ''}, unknown until run"
    return (
        f"{plan.nfe:,} denoiser passes and {rest}"
        if n < len(plan.cells)
        else ("denoiser passes unknown until run")
    )


def _cells(plan: Plan) -> str:
    prompts = len({job.prompt for job in plan.jobs})
    seeds = len({job.seed for job in plan.jobs})
    counts = {"cell": len(plan.cells), "prompt": prompts, "seed": seeds}
    return " × ".join(f"{n} {what}{'s' if n != 1 else ''}" for what, n in counts.items())


def show_plan(plan: Plan) -> None:
    """Print what a benchmark asks for: cells, cost, and every input with where it was found."""
    spec = plan.benchmark.spec
    console.print(Text.assemble((spec.name, "bold"), f"  {spec.description}"))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("Model", "Method", "Parameters"):
        table.add_column(head, overflow="fold")
    for head in ("NFE/image", "Images", "NFE"):
        table.add_column(head, justify="right")
    for model, method, cells in cells_by_method(plan):
        count = len(plan.jobs)
        texts = (model, method, _settings(cells))
        passes = [cell.nfe for cell in cells if cell.nfe is not None]
        an_image, total = "unknown\nuntil run", "–"
        if len(passes) == len(cells):
            least, most = min(passes), max(passes)
            an_image = f"{least:,}" if least == most else f"{least:,} – {most:,}"
            total = f"{sum(passes) * count:,}"
        if cells[0].method.kind == "images":  # no pass is made for them here
            an_image, total = an_image if passes else "not stated", "–"
        numbers = (an_image, f"{count * len(cells):,}", total)
        table.add_row(*(Text(text) for text in texts), *numbers)
    console.print(table)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(plan):
        facts.add_row(Text(name, "bold"), Text(value))
    console.print(facts)


def _settings(cells: Sequence[Cell]) -> str:
    """Return what makes a method, without what is told below: the model's steps, swept values."""
    columns = common_columns(cells)
    swept = list(cells[0].point)
    hidden = ["num_inference_steps", *swept]
    if (columns.get("start"), columns.get("stop")) == (0.0, 1.0):
        hidden += fields_of(INTERVAL)  # at every step, as nearly always
    stated = describe_parameters({k: v for k, v in columns.items() if k not in hidden})
    return ", ".join([stated, *(f"{name} swept" for name in swept)])


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    spec = plan.benchmark.spec
    yield "Images", f"{plan.n_images:,}  ({_cells(plan)})"
    yield "NFE", _passes(plan)
    yield "Judge calls", f"{plan.n_judge_calls:,}"
    yield "Disk", f"about {_size(plan.disk_bytes)}"
    for name, values in plan.benchmark.sweep.values.items():
        yield "Sweep", f"{name}: {', '.join(map(format_swept_value, values))}"
    yield "Device", {"auto": "CUDA where there is one, else the CPU"}.get(spec.device, spec.device)
    yield "Prompts", spec.prompts if isinstance(spec.prompts, str) else "in the benchmark file"
    for model in plan.benchmark.models.values():
        width, height = model.size
        yield model.name, _found(model.pipeline, "model_index.json")
        yield "  Samples", f"{width} × {height} pixels in {model.spec.num_inference_steps} steps"
        yield "  LoRA", _found(model.lora, model.lora.weight_name or "README.md")
        if model.lora_file is not None:
            yield "", model.lora_file.summary()
        if model.lora.kind == "absent":
            yield "  To do", model.lora.how_to_get()
    kind, features = plan.benchmark.extractor.kind, plan.benchmark.features
    yield "Features", kind.name if features is None else _found(features, "config.json")
    if plan.benchmark.diversity:
        beside = [measure.display_name for measure in plan.benchmark.diversity.values()]
        yield "Diversity", f"equation (8); beside it {', '.join(beside)}"
    yield from _judge_facts(plan.benchmark)


def _judge_facts(benchmark: LoadedBenchmark) -> Iterator[tuple[str, str]]:
    judge = benchmark.spec.judge
    if judge is None or benchmark.rubric is None:
        return
    where = "a server that the run launches" if judge.launch else ", ".join(judge.base_urls)
    place = f"{judge.model} at {where}"
    if benchmark.judge is not None:
        place = _found(benchmark.judge, "config.json")
    yield "Judge", f"{place}, rubric {benchmark.rubric.name}"
    if benchmark.judge is None and not judge.launch:
        yield "  Server", "must answer when the run begins; 'autolora-eval doctor' tells how"


def _found(source: Source, marker: str) -> str:
    if source.kind == "absent":
        return f"{source.name}  (not here)"
    if source.kind != "hub":
        return f"{source.name}  (found here)"
    from autolora_eval._sources import in_cache

    state = "in the local cache" if in_cache(source, marker) else "to be fetched from the hub"
    return f"{source.name}  ({state})"


def _size(count: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} {units[0]}" if units[0] == "bytes" else f"{count:.1f} {units[0]}"


def show_run(run: Run) -> None:
    """Print a run's result table, what is missing from it, and where the report is."""
    from autolora_eval.analysis.metric_columns import measures
    from autolora_eval.scoring.diversity_metric import metrics_from_manifest
    from autolora_eval.scoring.rubric import Score

    rubric = run.manifest.get("rubric") or {"scores": {}}
    scores = {name: Score.model_validate(score) for name, score in rubric["scores"].items()}
    shown, left_out = measures(scores, metrics_from_manifest(run.manifest, run.table)), []
    points = {cell["id"]: cell.get("point", {}) for cell in run.manifest.get("cells", [])}
    swept = list(dict.fromkeys(name for point in points.values() for name in point))
    if console.width < NAMES_WIDTH + COLUMN_WIDTH * (len(shown) + len(swept) + 1):
        left_out = [measure.label for measure in shown if measure.kind == "extra"]
        shown = [measure for measure in shown if measure.kind != "extra"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    longest = max(len(row["method"]) for row in run.table.to_dict("records"))
    table.add_column("Model", overflow="fold")
    table.add_column("Method", overflow="fold", no_wrap=longest <= 16)
    for head in swept:
        table.add_column(Text(head.replace("_", "\n")), justify="right", no_wrap=True)
    for head in [f"{measure.label} {measure.arrow}" for measure in shown] + ["NFE"]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in run.table.to_dict("records"):
        texts = [_number(row[measure.column]) for measure in shown]
        point = points.get(row["cell"], {})
        names = [row["model"], row["method"]]
        names += [format_swept_value(point[name]) if name in point else "–" for name in swept]
        table.add_row(*map(Text, names), *texts, _count(row["nfe"]))
    console.print(table)
    if left_out:
        console.print(f"For {', '.join(left_out)}, see {escape(run.folder.table('md').name)}")
    for column, what in (("image_error", "unusable"), ("unscored_reason", "unscored")):
        reasons = run.scores[column].value_counts()
        if len(reasons):
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            console.print(f"{reasons.sum()} of {len(run.scores)} images {what}: {listed}")
    for cell, found in (run.manifest.get("image_sets") or {}).items():
        _show_image_set(run.folder, cell, found)
    show_done("report", run.folder.report_pdf)


def _show_image_set(folder: RunFolder, cell: str, found: Json) -> None:
    """Print what became of the images of a set that was made elsewhere."""
    from autolora_eval.generation.image_validation import ISSUES

    console.print(
        f"{escape(cell)}: {found['images']} images made elsewhere ({found['read_as']}), "
        f"{found['matched']} of them the benchmark's",
        highlight=False,
        soft_wrap=True,
    )
    for issue, meaning in ISSUES.items():
        if found.get(issue):
            told = f"  {found[issue]} {issue.replace('_', ' ')}: {meaning}"
            console.print(told, highlight=False, soft_wrap=True)
    if found.get("beyond_limits"):
        told = f"  {found['beyond_limits']} beyond the limits of this run: left for a whole one"
        console.print(told, highlight=False, soft_wrap=True)
    if found.get("seeds_by_order"):
        told = "  no seeds stated: numbered in their order, so they share no noise with others"
        console.print(told, highlight=False, soft_wrap=True)
    if any(found.get(issue) for issue in ISSUES):
        show_done("  each by name", folder.image_set(cell))


def show_agreement(folder: RunFolder, found: HumanAgreement) -> None:
    """Print how well the judge agrees with people, and why a value or interval is missing."""
    from autolora_eval.analysis.human_agreement import EXPECTED, statistic_label
    from autolora_eval.analysis.reliability import ALL

    ratings, images = pluralize(found.n_ratings, "rating"), pluralize(found.n_images, "image")
    raters = pluralize(found.n_raters, "person", "people")
    _print_line(f"{ratings} of {images} by {raters}; 95% intervals in brackets")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Score", overflow="fold")
    table.add_column("")
    for head in ("Value", "", "Images"):
        table.add_column(head, justify="right")
    reasons: dict[str, None] = {}
    for row in found.table[found.table["cell"] == ALL].to_dict("records"):
        label, signed = statistic_label(row)
        value, low, high = (_number(row[key], signed=signed) for key in ("value", "low", "high"))
        score = f"{row['score']}, expected" if row["compared"] == EXPECTED else row["score"]
        within = "" if low == "–" else f"[{low}, {high}]"
        table.add_row(Text(score), Text(label), value, Text(within), f"{row['n_images']:,}")
        if isinstance(row["reason"], str):
            reasons[f"{label}: {row['reason']}"] = None
    console.print(table)
    for reason in reasons:
        console.print(Text(reason, "dim"))
    show_done("agreement", folder.agreement)
    _print_line(f"To add it to the report, run: autolora-eval report {folder.path}")


def _print_line(*parts: str | tuple[str, str]) -> None:
    """Print plain or styled texts on one line, never reading them as markup."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def show_caveat(text: str) -> None:
    """Print what a reader must know before believing a number."""
    console.print(Text.assemble(("caveat: ", "bold yellow"), text), soft_wrap=True)


def show_done(what: str, path: Path) -> None:
    """Print where something was written."""
    console.print(f"[bold]{what}[/]: {escape(str(path))}", soft_wrap=True, highlight=False)


def _count(value: Any) -> str:  # noqa: ANN401
    """Return a number of passes; the mean of an image's where they differ."""
    if value is None or value != value:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _number(value: Any, *, signed: bool = False) -> str:  # noqa: ANN401
    if value is None or value != value:
        return "–"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


# --------------------
# What `autolora-eval methods` prints: a list, or all that is known of each.


_HEADS = {
    BUILT_IN: "Built in",
    DIFFUSERS: "Guiders of diffusers, by the dotted path diffusers.guiders.NAME",
    INSTALLED: "Of installed packages",
}


def as_json(found: Iterable[Listed]) -> str:
    """Return methods as indented JSON: a list of objects with the fields of `Listed`."""
    return json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False)


def show_list(found: Iterable[Listed], console: Console) -> None:
    """Print each method in a few lines: what it is called, does, costs and takes."""
    for group, members in groupby(found, key=lambda one: one.group):
        console.print(Text(_HEADS.get(group, ""), "bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for one in members:
            name = one.name.rpartition(".")[2] if group == DIFFUSERS else one.name
            grid.add_row(Text(name, "bold"), _briefly(one))
        console.print(Padding(grid, (0, 0, 1, 2)))
    console.print(
        "autolora-eval methods NAME tells all of one; any other guider goes by its dotted path.",
        markup=False,
        highlight=False,
    )


def _briefly(one: Listed) -> Text:
    if one.problem:
        return Text(one.problem, "red")
    title = one.display_name if one.kind == "guider" else f"{one.display_name}, a sampler"
    lines = [f"{title}: {_listed_passes(one)}"]
    if one.group == DIFFUSERS:
        lines[0] += f"; {one.supports.split(': ')[0]}"
        return Text(lines[0])
    lines += [one.summary] if one.summary else []
    taken = ", ".join(parameter.name for parameter in one.parameters)
    lines += [f"takes {taken}"] if taken else []
    lines += [f"from {one.source}"] if one.group == INSTALLED else []
    return Text("\n").join([Text(lines[0]), *(Text(line, "dim") for line in lines[1:])])


def _listed_passes(one: Listed) -> str:
    if one.nfe_per_step is None:
        return "passes known once it has run"
    least, most = one.nfe_per_step
    return (
        f"{pluralize(least, 'pass', 'passes') if least == most else f'{least} to {most} passes'} "
        "a step"
    )


def show_details(found: Iterable[Listed], console: Console) -> None:
    """Print all that is known of methods."""
    for one in found:
        title = Text.assemble((one.name, "bold"), f"  {one.display_name}")
        console.print(title)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        facts = {
            "problem": one.problem,
            "does": one.summary,
            "rule": one.equation,
            "costs": "" if one.problem and not one.display_name else _listed_passes(one),
            "works on": one.supports,
            "source": one.source,
            "note": one.notes,
        }
        for name, text in facts.items():
            if text:
                grid.add_row(name, Text(text, "red" if name == "problem" else ""))
        for n, parameter in enumerate(one.parameters):
            grid.add_row("" if n else "takes", _parameter(parameter))
        console.print(Padding(grid, (0, 0, 1, 2)))


def _parameter(parameter: ListedParameter) -> Text:
    kind = f": {parameter.type}" if parameter.type else ""
    default = "  must be given" if parameter.default is None else f" = {parameter.default}"
    return Text.assemble(parameter.name, (f"{kind}{default}", "dim"))
