"""What the commands print: plans and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import filesize
from rich.table import Table
from rich.text import Text

from autolora_eval._progress import Progress, SafeConsole
from autolora_eval._text import (
    DASH,
    Sentences,
    format_fixed,
    format_nfe,
    format_swept_value,
    join_names,
    pluralize,
)
from autolora_eval.config.gpu_memory import model_memory
from autolora_eval.config.inputs import INDEX, LoadedBenchmark, ResolvedModel
from autolora_eval.config.plan import (
    Cell,
    Plan,
    cells_by_method,
    common_columns,
    describe_parameters,
    describe_sampling,
)
from autolora_eval.config.prompt_cuts import all_prompt_cuts, describe_cuts, plan_prompt_cuts
from autolora_eval.config.sweep_grid import INTERVAL, fields_of
from autolora_eval.runs.folder import Run, RunFolder
from autolora_eval.runs.manifest import PromptCuts, rows_of_images
from autolora_eval.runs.records import ImageSetRecord
from autolora_eval.sources.model_source import Source, cached

if TYPE_CHECKING:
    from autolora_eval.analysis.human_agreement import HumanAgreement
    from autolora_eval.generation.outlook import StageOutlook


# Width of the names and of each metric's column. On a narrower terminal, the further diversity
# metrics are left out.
NAMES_WIDTH, COLUMN_WIDTH = 26, 9

console = SafeConsole()


def progress() -> Progress:
    """Return the progress display of this terminal or log."""
    return Progress(console)


def announce(plan: Plan, folder: RunFolder) -> None:
    """Print what is about to run, and where. The models take seconds to load after it."""
    _print_line(
        (plan.benchmark.spec.name, "bold"),
        f": {_cells(plan)} = {plan.n_images:,} images, {_nfe(plan)}, "
        f"{plan.n_judge_calls:,} judge calls → {folder.path}",
    )
    _show_prompt_cuts(plan_prompt_cuts(plan))
    rubric = plan.benchmark.rubric
    if rubric is not None and rubric.caveat is not None:
        show_caveat(rubric.caveat)


def _show_prompt_cuts(cuts_of_models: Mapping[str, PromptCuts]) -> None:
    for model, cuts in cuts_of_models.items():
        for line in describe_cuts(cuts):
            _print_line(f"{model}: {line}")


def _print_line(*parts: str | tuple[str, str]) -> None:
    """Print plain or styled texts on one line. They are not read as markup."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def _table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _nfe(plan: Plan) -> str:
    """Return the function evaluations of a plan. Some methods' are unknown until the run."""
    n_unknown = plan.n_cells_of_unknown_nfe
    if n_unknown == len(plan.cells):
        return "NFE unknown until run"
    known = f"{plan.nfe:,} function evaluations"
    if not n_unknown:
        return known
    return f"{known} and those of {pluralize(n_unknown, 'cell')}, unknown until run"


def _cells(plan: Plan) -> str:
    n_prompts = len({job.prompt for job in plan.jobs})
    n_seeds = len({job.seed for job in plan.jobs})
    counts = {"cell": len(plan.cells), "prompt": n_prompts, "seed": n_seeds}
    return " × ".join(pluralize(n, noun) for noun, n in counts.items())


def show_plan(plan: Plan) -> None:
    """Print the cells of a plan, their cost, and where each input was found."""
    spec = plan.benchmark.spec
    console.print(Text.assemble((spec.name, "bold"), f"  {spec.description}"))
    table = _table()
    for head in ("Model", "Method", "Parameters"):
        table.add_column(head, overflow="fold")
    for head in ("NFE/image", "Images", "NFE"):
        table.add_column(head, justify="right")
    for model, method, cells in cells_by_method(plan):
        texts = (model, method, _parameters(cells))
        table.add_row(*map(Text, texts), *_method_cost(cells, len(plan.jobs)))
    console.print(table)
    facts = Table.grid(padding=(0, 2))
    for name, value in _plan_facts(plan):
        facts.add_row(Text(name, "bold"), Text(value))
    console.print(facts)


def _method_cost(cells: Sequence[Cell], n_jobs: int) -> tuple[str, str, str]:
    """Return NFE per image, images, and NFE of a method's cells."""
    images = f"{n_jobs * len(cells):,}"
    known = [cell.nfe for cell in cells if cell.nfe is not None]
    least, most = min(known, default=0), max(known, default=0)
    per_image = f"{least:,}" if least == most else f"{least:,} – {most:,}"
    if cells[0].method.kind == "images":  # imported: this run evaluates nothing
        return per_image if known else "not stated", images, DASH
    if len(known) < len(cells):
        return "unknown\nuntil run", images, DASH
    return per_image, images, f"{sum(known) * n_jobs:,}"


def _parameters(cells: Sequence[Cell]) -> str:
    """Return a method's parameters, without the steps and sweeps, which are below the table."""
    columns = common_columns(cells)
    swept = list(cells[0].point)
    hidden = ["num_inference_steps", *swept]
    if (columns.get("start"), columns.get("stop")) == (0.0, 1.0):
        hidden += fields_of(INTERVAL)  # guidance at every step is the default
    described = describe_parameters({k: v for k, v in columns.items() if k not in hidden})
    return ", ".join([described, *(f"{name} swept" for name in swept)])


def _plan_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    benchmark, spec = plan.benchmark, plan.benchmark.spec
    yield "Images", f"{plan.n_images:,}  ({_cells(plan)})"
    yield "NFE", _nfe(plan)
    yield "Judge calls", f"{plan.n_judge_calls:,}"
    yield "Disk", f"about {filesize.decimal(int(plan.disk_bytes))}"
    for name, values in benchmark.sweep.values.items():
        yield "Sweep", f"{name}: {', '.join(map(format_swept_value, values))}"
    yield "Device", {"auto": "CUDA if available, else the CPU"}.get(spec.device, spec.device)
    yield "Prompts", spec.prompts if isinstance(spec.prompts, str) else "in the benchmark file"
    cuts = all_prompt_cuts(plan)
    for name, model in benchmark.models.items():
        yield from model_facts(plan, model, cuts.get(name, ""))
    kind, features = benchmark.extractor.kind, benchmark.features
    yield "Features", kind.name if features is None else _place(features, "config.json")
    if benchmark.diversity:
        names = [metric.display_name for metric in benchmark.diversity.values()]
        yield "Diversity", f"equation (8), {', '.join(names)}"
    yield from _judge_facts(benchmark)


def model_facts(
    plan: Plan, model: ResolvedModel, cuts: PromptCuts | str
) -> Iterator[tuple[str, str]]:
    """Yield what the plan says of a model, as (title, text) pairs."""
    spec = plan.benchmark.spec
    is_loaded = model in plan.loaded_models
    yield model.name, _place(model.pipeline, INDEX)
    if model.config is not None:
        yield "  Configuration", _place(model.config, INDEX)
    if model.vae is not None:
        yield "  VAE", _place(model.vae, "config.json")
    if model.spec.left_out:
        yield "  Left out", ", ".join(model.spec.left_out)
    yield "  Samples", describe_sampling(model)
    if model.timesteps is None:
        unknown = "the scheduler is unknown until the model is downloaded"
        yield "  NFE", f"counted with one timestep per step: {unknown}"
    yield from _titled("  Prompts", describe_cuts(cuts))
    yield from _lora_facts(model, is_loaded)
    memory = model_memory(model, spec.dtype) if is_loaded else None
    if memory is not None:
        memory = memory.batched(spec.guidance_batching)
        yield from _titled("  GPU memory", memory.describe(spec.batch_size, model.spec.offload))


def _titled(title: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    yield from zip([title, *[""] * len(lines)], lines, strict=False)


def _lora_facts(model: ResolvedModel, is_loaded: bool) -> Iterator[tuple[str, str]]:
    if not model.loras:
        yield "  LoRA", "none"
    for spec, lora in zip(model.spec.loras, model.loras, strict=True):
        name = _place(lora.source, lora.source.weight_name or "README.md")
        scale = f", scale {spec.scale:g}" if len(model.loras) > 1 else ""
        yield "  LoRA", f"{name}{scale}{', part of the base model' if spec.part_of_base else ''}"
        if lora.file is not None:
            yield "", lora.file.summary()
        if lora.source.kind == "absent" and is_loaded:
            yield "  To do", lora.source.how_to_get()


def _place(source: Source, marker: str) -> str:
    """Return the name of a model's files, and whether they are on this machine."""
    if source.kind == "absent":
        return f"{source.location}  (not found)"
    if source.kind != "hub":
        return f"{source.name}  (found)"
    state = "in the local cache" if cached(source, marker) else "to be downloaded from the hub"
    return f"{source.name}  ({state})"


def show_outlook(folder: RunFolder, found: tuple[list[StageOutlook], str | None] | None) -> None:
    """Print what a run would keep of its folder, what it would do, and why it would be refused."""
    if found is None:
        return
    stages, refused = found
    show_path("\nIn the run folder", folder.path)
    facts = _grid()
    for stage in stages:
        lines = [f"{stage.kept:,} kept, {stage.to_do:,} to do", *stage.why]
        facts.add_row(Text(stage.name, "bold"), Text("\n".join(lines)))
    console.print(facts)
    if refused is not None:
        _print_line(("The run is refused", "bold red"), f": {refused}")


def _judge_facts(benchmark: LoadedBenchmark) -> Iterator[tuple[str, str]]:
    judge = benchmark.spec.judge
    if judge is None or benchmark.rubric is None:
        return
    server = "a server that the run launches" if judge.launch else ", ".join(judge.base_urls)
    where = f"{judge.model} at {server}"
    if benchmark.judge is not None:
        where = _place(benchmark.judge, "config.json")
    yield "Judge", f"{where}, rubric {benchmark.rubric.name}"
    if benchmark.rubric.caveat is not None:
        yield "  Caveat", benchmark.rubric.caveat
    if benchmark.judge is None and not judge.launch:
        yield "  Server", "must be running when the run starts; see 'autolora-eval doctor'"


def show_run(run: Run) -> None:
    """Print a run's result table, what is missing from it, and the path of the report."""
    from autolora_eval.analysis.metrics import run_metrics

    metrics = run_metrics(run.manifest)
    points = {cell.id: cell.point for cell in run.manifest.cells}
    swept = list(dict.fromkeys(name for point in points.values() for name in point))
    shown = metrics
    if console.width < NAMES_WIDTH + COLUMN_WIDTH * (len(metrics) + len(swept) + 1):
        shown = [metric for metric in metrics if metric.kind != "extra"]
    table = _table()
    longest = int(run.table["method"].str.len().max())
    table.add_column("Model", overflow="fold")
    table.add_column("Method", overflow="fold", no_wrap=longest <= 16)
    for name in swept:
        table.add_column(Text(name.replace("_", "\n")), justify="right", no_wrap=True)
    for head in [f"{metric.label} {metric.arrow}" for metric in shown] + ["NFE"]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in run.table.to_dict("records"):
        point = points[row["cell"]]
        at = [format_swept_value(point[name]) if name in point else DASH for name in swept]
        values = [format_fixed(row[metric.column]) for metric in shown]
        table.add_row(
            *map(Text, (row["model"], row["method"], *at)), *values, format_nfe(row["nfe"])
        )
    console.print(table)
    hidden = [metric.label for metric in metrics if metric not in shown]
    if hidden:
        _print_line(f"For {join_names(hidden)}, see {run.folder.table('md').name}")
    show_missing(run)
    show_path("report", run.folder.report_pdf)


def show_missing(run: Run) -> None:
    """Print how many images have no features or scores, and what else the numbers lack."""
    for column, what in (("image_error", "unusable"), ("unscored_reason", "unscored")):
        reasons = run.scores[column].value_counts()
        if len(reasons):
            counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            _print_line(f"{reasons.sum()} of {len(run.scores)} images {what}: {counts}")
    _show_prompt_cuts(run.manifest.prompt_cuts)
    if judge := run.manifest.judge:
        for caveat in filter(judge.settings.get, ("images_dropped", "unlisted")):
            show_caveat(getattr(Sentences("caveats"), caveat)(judge.model))
    for cell, images in run.manifest.image_sets.items():
        show_image_set(cell, images, run.folder.image_set(cell))


def show_failed_images(folder: RunFolder) -> None:
    """Print how many images of each cell could not be made, and the first reason."""
    for cell in folder.read_manifest().cells:
        path = folder.failed_images(cell.id)
        failed = [r for r in rows_of_images(path) if r["settings_key"] == cell.settings_key]
        if failed:
            _print_line(f"{cell.id}: {pluralize(len(failed), 'image')} not made, see {path}")
            _print_line(f"  {failed[0]['reason']}")


def show_image_set(cell: str, record: ImageSetRecord, report: Path | None = None) -> None:
    """Print what was found in a folder or listing of images, and the path of its report."""
    from autolora_eval.generation.image_validation import ISSUES

    n_images = pluralize(record.images, "image")
    _print_line(f"{cell}: {n_images} ({record.read_as}), {record.matched} used by the benchmark")
    issues = {name: count for name in ISSUES if (count := getattr(record, name))}
    for name, count in issues.items():
        _print_line(f"  {count} {name.replace('_', ' ')} ({ISSUES[name]})")
    if record.beyond_limits:
        _print_line(f"  {record.beyond_limits} more outside the limits of this run")
    if record.seeds_by_order:
        _print_line("  seeds not known: numbered in order, so they share no noise with other cells")
    if issues and report is not None:
        show_path("  list of all images", report)


def show_agreement(folder: RunFolder, found: HumanAgreement) -> None:
    """Print how well the judge agrees with people, and why a value or interval is missing."""
    from autolora_eval.analysis.human_agreement import EXPECTED, statistic_label
    from autolora_eval.analysis.reliability import ALL

    ratings, images = pluralize(found.n_ratings, "rating"), pluralize(found.n_images, "image")
    raters = pluralize(found.n_raters, "person", "people")
    _print_line(f"{ratings} of {images} by {raters}; 95% intervals in brackets")
    table = _table()
    table.add_column("Score", overflow="fold")
    table.add_column("")
    for head in ("Value", "", "Images"):
        table.add_column(head, justify="right")
    reasons: dict[str, None] = {}
    for row in found.table[found.table["cell"] == ALL].to_dict("records"):
        label, signed = statistic_label(row)
        value, low, high = (
            format_fixed(row[key], signed=signed) for key in ("value", "low", "high")
        )
        score = f"{row['score']}, expected" if row["compared"] == EXPECTED else row["score"]
        within = "" if low == DASH else f"[{low}, {high}]"
        table.add_row(Text(score), Text(label), value, Text(within), f"{row['n_images']:,}")
        if isinstance(row["reason"], str):
            reasons[f"{label}: {row['reason']}"] = None
    console.print(table)
    for reason in reasons:
        console.print(Text(reason, "dim"))
    show_path("agreement", folder.agreement)
    _print_line(f"To add it to the report, run: autolora-eval report {folder.path}")


def show_caveat(text: str) -> None:
    """Print a caveat about the numbers that follow."""
    _print_line(("caveat: ", "bold yellow"), text)


def show_path(what: str, path: Path | str, detail: str = "") -> None:
    """Print where something is or was written."""
    _print_line((what, "bold"), f": {path}", f" ({detail})" if detail else "")
