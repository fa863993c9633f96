"""The commands. Each imports what it needs when it runs, so that `--help` stays fast."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from autolora_eval import _options as options
from autolora_eval._errors import UsageError, failure_message, interrupt_again
from autolora_eval._text import printable

DEBUG = "AUTOLORA_EVAL_DEBUG"

app = typer.Typer(
    name="autolora-eval",
    cls=options.Commands,
    help="Evaluate guidance methods on LoRA-tuned diffusion models: diversity, scores by a "
    "vision-language judge, and their product.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _common_options(
    debug: options.DebugOption = False, version: options.VersionOption = False
) -> None:
    if debug:
        os.environ[DEBUG] = "1"


@app.command(rich_help_panel=options.RUN)
def init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write, such as mine.yaml.")
    ],
    pipeline: Annotated[str, typer.Option(metavar="PATH", help="A pipeline folder or hub id.")],
    lora: Annotated[str, typer.Option(metavar="PATH", help="A LoRA file, folder or hub id.")],
    prompt: options.PromptOption = None,
    judge: options.JudgeName = None,
) -> None:
    """Write a commented benchmark file for your model and LoRA, and its JSON Schema."""
    from autolora_eval import _display as display
    from autolora_eval.config.starter import write_starter

    schema = write_starter(file, pipeline, lora, prompt or ["a castle at night"], judge)
    display.show_path("schema", schema)
    display.show_path("benchmark", file)


@app.command(rich_help_panel=options.RUN)
def plan(
    benchmark: options.BenchmarkOrRun,
    output: options.OutputOption = None,
    limit_prompts: options.LimitPrompts = None,
    limit_seeds: options.LimitSeeds = None,
    no_code: options.NoCode = False,
) -> None:
    """Show what a run would do, reuse and cost, without loading a model."""
    from autolora_eval import _display as display
    from autolora_eval.config.no_code import would_do
    from autolora_eval.generation.outlook import run_outlook
    from autolora_eval.generation.preflight import check_image_sets
    from autolora_eval.pipeline.run_pipeline import RunPipeline

    if no_code:
        for what, where in would_do(benchmark):
            display.show_path(what, where)
        return
    pipeline = RunPipeline(benchmark, output, limit_prompts, limit_seeds)
    display.show_plan(pipeline.plan)
    for cell, images in check_image_sets(pipeline.plan, pipeline.folder).items():
        display.show_image_set(cell, images)
    display.show_outlook(pipeline.folder, run_outlook(pipeline.plan, pipeline.folder))


@app.command(rich_help_panel=options.RUN)
def run(
    benchmark: options.BenchmarkOrRun,
    output: options.OutputOption = None,
    limit_prompts: options.LimitPrompts = None,
    limit_seeds: options.LimitSeeds = None,
    accept_versions: options.AcceptVersions = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the plan, like the command plan.")
    ] = False,
    engine: options.EngineOption = "local",
    ray_address: options.RayAddress = None,
) -> None:
    """Run all stages: generate, score, report. Run the same command again to resume."""
    from autolora_eval import _display as display
    from autolora_eval.pipeline.run_pipeline import RunPipeline

    if dry_run:
        plan(benchmark, output, limit_prompts, limit_seeds)
        return
    pipeline = RunPipeline(
        *(benchmark, output, limit_prompts, limit_seeds),
        *(display.progress(), accept_versions, engine, ray_address),
    )
    display.announce(pipeline.plan, pipeline.folder)
    display.show_run(pipeline.run())


@app.command(rich_help_panel=options.RUN)
def generate(
    benchmark: options.BenchmarkOrRun,
    output: options.OutputOption = None,
    limit_prompts: options.LimitPrompts = None,
    limit_seeds: options.LimitSeeds = None,
    accept_versions: options.AcceptVersions = False,
    engine: options.EngineOption = "local",
    ray_address: options.RayAddress = None,
) -> None:
    """Generate the images of a benchmark (the first stage of run)."""
    from autolora_eval import _display as display
    from autolora_eval._files import writing
    from autolora_eval.pipeline.run_pipeline import RunPipeline

    pipeline = RunPipeline(
        *(benchmark, output, limit_prompts, limit_seeds),
        *(display.progress(), accept_versions, engine, ray_address),
    )
    with writing(pipeline.folder.path):
        pipeline.check_requirements(judged=False)
        pipeline.generate()
    display.show_failed_images(pipeline.folder)
    display.show_path("images", pipeline.folder.path / "images")


@app.command(rich_help_panel=options.RUN)
def score(
    benchmark: options.BenchmarkOrRun,
    output: options.OutputOption = None,
    limit_prompts: options.LimitPrompts = None,
    limit_seeds: options.LimitSeeds = None,
    images: options.ImagesOption = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The name of --images in the tables.")
    ] = "Images",
    model: options.ImagesModel = None,
    engine: options.EngineOption = "local",
    ray_address: options.RayAddress = None,
) -> None:
    """Extract features, judge the images and write the tables (the second stage of run)."""
    from autolora_eval import _display as display
    from autolora_eval._files import writing
    from autolora_eval.pipeline.run_pipeline import RunPipeline, score_images
    from autolora_eval.runs.folder import open_run

    progress = display.progress()
    if images is not None:
        if engine == "ray" or ray_address:
            raise UsageError("--images is scored by the local engine only: leave out --engine.")
        limits = {"limit_prompts": limit_prompts, "limit_seeds": limit_seeds}
        display.show_run(
            score_images(
                images, benchmark, output, name=name, model=model, progress=progress, **limits
            )
        )
        return
    if model is not None or name != "Images":
        given = f"--name '{name}'" if model is None else f"--model '{model}'"
        raise UsageError(f"{given} describes --images: add --images, or leave it out.")
    pipeline = RunPipeline(
        *(benchmark, output, limit_prompts, limit_seeds),
        *(progress, False, engine, ray_address),
    )
    with writing(pipeline.folder.path):
        pipeline.score()
    display.show_missing(open_run(pipeline.folder.path))
    display.show_path("table", pipeline.folder.table("csv"))


@app.command(rich_help_panel=options.RUN)
def report(benchmark: options.BenchmarkOrRun, output: options.OutputOption = None) -> None:
    """Draw the figures and write report.pdf and report.html (the last stage of run)."""
    from autolora_eval import _display as display
    from autolora_eval._files import writing
    from autolora_eval.pipeline.run_pipeline import RunPipeline
    from autolora_eval.report import write_report
    from autolora_eval.runs.folder import open_run

    is_benchmark = Path(benchmark).suffix in (".yaml", ".yml") or not Path(benchmark).exists()
    path = RunPipeline(benchmark, output).folder.path if is_benchmark else Path(benchmark)
    folder = open_run(path).folder
    with writing(path):
        write_report(folder)
    display.show_path("report", folder.report_pdf)


@app.command(rich_help_panel=options.ANALYZE)
def compare(
    runs: options.RunFolderArguments,
    output: options.JointOutputOption = None,
    baseline: options.BaselineOption = None,
    allow_different_judges: options.AnyJudges = False,
) -> None:
    """Put several runs into one table and report, with paired comparisons."""
    from autolora_eval import _display as display
    from autolora_eval._files import slug
    from autolora_eval.pipeline.run_pipeline import compare as joint_run

    folder = output or Path("reports") / slug(f"compare-{'-'.join(run.name for run in runs)}")
    judges = {"allow_different_judges": allow_different_judges}
    joint, differences = joint_run(runs, folder, baseline=baseline, **judges)
    for difference in differences:
        display.show_caveat(difference.message)
    display.show_run(joint)


@app.command(rich_help_panel=options.ANALYZE)
def explain(
    run: options.RunFolderArgument,
    cell: options.CellArgument,
    prompt: options.PromptArgument = None,
    seed: options.SeedArgument = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show where a number comes from: images, hashes, neighbours and the judge's replies."""
    from autolora_eval import _display as display
    from autolora_eval.analysis.explain import explain as explain_run
    from autolora_eval.analysis.explain import print_explanation

    explanation = explain_run(run, cell, prompt, seed)
    if as_json:
        typer.echo(printable(json.dumps(explanation.as_data(), ensure_ascii=False, indent=1)))
    else:
        print_explanation(explanation, display.console)


@app.command(rich_help_panel=options.ANALYZE)
def verify(run: options.RunOrArchive) -> None:
    """Check a run's files against its records. Exit code 1 if any is missing, changed or extra."""
    from autolora_eval import _display as display
    from autolora_eval.analysis.archive import verify as verify_run
    from autolora_eval.analysis.archive import verify_archive

    found = verify_archive(run) if run.is_file() else verify_run(run)
    for finding in found:
        display.show_path(*finding)
    if found:
        raise typer.Exit(1)
    display.show_path("verified", run)


@app.command(rich_help_panel=options.ANALYZE)
def pack(run: options.RunFolderArgument, output: options.ArchiveOption = None) -> None:
    """Write a run into one archive, with a dataset card and the hash of every file."""
    from autolora_eval import _display as display
    from autolora_eval.analysis.archive import pack as pack_run

    display.show_path("archive", pack_run(run, output))


@app.command(rich_help_panel=options.ANALYZE)
def agreement(run: options.RunFolderArgument, ratings: options.RatingsArgument) -> None:
    """Compare the judge with human ratings of the same images."""
    from autolora_eval import _display as display
    from autolora_eval._files import writing
    from autolora_eval.analysis.human_agreement import write_agreement
    from autolora_eval.runs.folder import open_run

    opened = open_run(run)
    with writing(run):
        display.show_agreement(opened.folder, write_agreement(opened, ratings))


@app.command(rich_help_panel=options.METHODS)
def methods(
    names: options.MethodNames = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show all details of every method.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """List the available methods: built in, from diffusers, and from installed packages."""
    from autolora_eval import _display as display
    from autolora_eval.guidance import catalogue

    found = catalogue.listed_as(names, [Path.cwd()]) if names else list(catalogue.catalogue())
    if as_json:
        typer.echo(printable(catalogue.as_json(found)))
    elif names or verbose:
        catalogue.show_details(found, display.console)
    else:
        catalogue.show_list(found, display.console)


@app.command(rich_help_panel=options.METHODS)
def check(
    guider: Annotated[
        str,
        typer.Argument(
            metavar="GUIDER", help="The dotted path of a guider class, or the name of a method."
        ),
    ],
    parameter: options.ParameterOption = None,
    model: Annotated[
        Literal["sdxl", "sd3"], typer.Option(help="The architecture of the tiny model.")
    ] = "sdxl",
) -> None:
    """Test a guider on a tiny model with random weights. Exit code 1 if a check fails."""
    from autolora_eval._progress import SafeConsole
    from autolora_eval.guider_checks.runner import check_command

    if not check_command(guider, parameter or [], model, SafeConsole(), SafeConsole(stderr=True)):
        raise typer.Exit(1)


@app.command(rich_help_panel=options.METHODS)
def doctor(
    benchmark: Annotated[
        str | None,
        typer.Argument(metavar="BENCHMARK", help="A benchmark. Its judge is examined first."),
    ] = None,
) -> None:
    """List which judge backends can run on this machine, and what the others need."""
    from autolora_eval import _display as display
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.scoring.judges import doctor

    asked = None if benchmark is None else load_benchmark(benchmark)
    judge = () if asked is None else (asked.spec.name, asked.spec.judge, asked.judge)
    doctor.show(doctor.examine(*judge), display.console)


def _print_error(message: str) -> None:
    typer.echo(typer.style("error: ", "red", bold=True) + printable(message), err=True)


def main() -> None:
    """Run the command line.

    Exit codes: 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C. Tracebacks are
    shown only with `--debug`.
    """
    hook, sys.unraisablehook = sys.unraisablehook, interrupt_again
    try:
        app()
    except SystemExit as error:
        if error.code == 130:  # Ctrl-C, at which typer exits silently
            _print_error("interrupted. Finished work is kept: run the same command to resume.")
        raise
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exception(error)
        else:
            _print_error(failure_message(error))
        sys.exit(getattr(error, "exit_code", 1))
    finally:
        sys.unraisablehook = hook
        gc.freeze()  # or the exit looks for a second through all that torch and diffusers made
