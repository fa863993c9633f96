"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._version import __version__

app = typer.Typer(
    name="autolora-eval",
    help="Evaluate guidance methods on LoRA-tuned diffusion models: diversity, judged prompt "
    "fidelity, and their join.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_DEBUG = "AUTOLORA_EVAL_DEBUG"
INTERRUPTED = 130

BenchmarkOrRun = Annotated[
    str,
    typer.Argument(
        help="A benchmark file, the name of a shipped one such as 'quickstart', or a run folder."
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option(help="The run folder. Default: reports/<benchmark name>.")
]
LimitPrompts = Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")]
LimitSeeds = Annotated[int | None, typer.Option(min=1, help="Only the first so many seeds.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autolora-eval {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


@app.command()
def run(
    benchmark: BenchmarkOrRun,
    output: OutputOption = None,
    limit_prompts: LimitPrompts = None,
    limit_seeds: LimitSeeds = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
) -> None:
    """Run a benchmark: generate, score, tables, report. Run it again to resume."""
    from autolora_eval import _display as display
    from autolora_eval._pipeline import RunPipeline

    if dry_run:
        plan(benchmark, limit_prompts, limit_seeds)
        return
    stages = RunPipeline.start(benchmark, output, limit_prompts, limit_seeds, display.progress())
    display.announce(stages.plan, stages.folder)
    display.show_run(stages.run())


@app.command()
def plan(
    benchmark: BenchmarkOrRun,
    limit_prompts: LimitPrompts = None,
    limit_seeds: LimitSeeds = None,
) -> None:
    """Print cells, images, denoiser passes, judge calls and disk; loads no model."""
    from autolora_eval import _display as display
    from autolora_eval._pipeline import RunPipeline

    display.show_plan(RunPipeline.start(benchmark, None, limit_prompts, limit_seeds).plan)


@app.command()
def generate(
    benchmark: BenchmarkOrRun,
    output: OutputOption = None,
    limit_prompts: LimitPrompts = None,
    limit_seeds: LimitSeeds = None,
) -> None:
    """Make the images of a benchmark, and nothing else."""
    from autolora_eval import _display as display
    from autolora_eval._pipeline import RunPipeline

    stages = RunPipeline.start(benchmark, output, limit_prompts, limit_seeds, display.progress())
    stages.refuse_if_something_is_missing(judged=False)
    stages.generate()
    display.show_done("images", stages.folder.path / "images")


@app.command()
def score(
    benchmark: BenchmarkOrRun,
    output: OutputOption = None,
    limit_prompts: LimitPrompts = None,
    limit_seeds: LimitSeeds = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Score these images, made elsewhere, by the benchmark's measure: a folder "
            "<prompt>/<seed>.png, an imagefolder, a .csv, .jsonl or .parquet, or a saved dataset.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What --images are called in the table.")] = "Images",
    model: Annotated[
        str | None,
        typer.Option(help="The benchmark's model that --images are of.", show_default=False),
    ] = None,
) -> None:
    """Take features, judge the images that are there, and write the tables."""
    from autolora_eval import _display as display
    from autolora_eval._pipeline import RunPipeline, score_images

    if images is not None:
        found = score_images(
            images,
            benchmark,
            output,
            name=name,
            model=model,
            limit_prompts=limit_prompts,
            limit_seeds=limit_seeds,
            progress=display.progress(),
        )
        display.show_run(found)
        return
    stages = RunPipeline.start(benchmark, output, limit_prompts, limit_seeds, display.progress())
    stages.score()
    display.show_done("table", stages.folder.table("csv"))


@app.command()
def report(benchmark: BenchmarkOrRun, output: OutputOption = None) -> None:
    """Draw the figures and write report.pdf and report.html from a run's tables."""
    from autolora_eval import _display as display
    from autolora_eval._pipeline import RunPipeline
    from autolora_eval.report import write_report
    from autolora_eval.runs.folder import open_run

    is_benchmark = Path(benchmark).suffix in (".yaml", ".yml") or not Path(benchmark).exists()
    path = RunPipeline.start(benchmark, output).folder.path if is_benchmark else Path(benchmark)
    folder = open_run(path).folder
    write_report(folder)
    display.show_done("report", folder.report_pdf)


@app.command()
def agreement(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    ratings: Annotated[
        Path,
        typer.Argument(
            help="CSV, one row a rating: 'file' as in scores.parquet, or 'cell', 'prompt' and "
            "'seed'; 'rater', if there are several; a column for each score, such as 'pc'."
        ),
    ],
) -> None:
    """Compare the judge with people's ratings of the same images, for the next report."""
    from autolora_eval import _display as display
    from autolora_eval.analysis.human_agreement import write_agreement
    from autolora_eval.runs.folder import open_run

    opened = open_run(run)
    display.show_agreement(opened.folder, write_agreement(opened, ratings))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The benchmark file to write, such as mine.yaml.")],
    pipeline: Annotated[str, typer.Option(help="A pipeline folder or hub id.")],
    lora: Annotated[str, typer.Option(help="A .safetensors file, a folder or a hub id.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may be given again.", show_default=False)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="The judge that a server serves.", show_default=False)
    ] = None,
) -> None:
    """Write a commented benchmark for your model and LoRA, and the schema that editors check."""
    from autolora_eval import _display as display
    from autolora_eval.config.starter import write_starter

    schema = write_starter(file, pipeline, lora, prompt or ["a castle at night"], judge)
    display.show_done("schema", schema)
    display.show_done("benchmark", file)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more finished run folders.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The joint run folder. Default: reports/compare-<their names>."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are compared with.", show_default=False),
    ] = None,
    allow_different_judges: Annotated[
        bool,
        typer.Option("--allow-different-judges", help="Also where the judges are not the same."),
    ] = False,
) -> None:
    """Put cells of several runs into one table and report, paired over what they share."""
    from autolora_eval import _display as display
    from autolora_eval._files import slug
    from autolora_eval.analysis.compare_runs import compare as joint_run

    folder = output or Path("reports") / slug(f"compare-{'-'.join(run.name for run in runs)}")
    found, differences = joint_run(
        runs, folder, baseline=baseline, allow_different_judges=allow_different_judges
    )
    for difference in differences:
        display.show_caveat(difference.message)
    display.show_run(found)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    cell: Annotated[
        str, typer.Argument(help="A cell's id, its method, or a part of the id that only it has.")
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="A prompt's number, its text or a part of it.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Argument(help="An image's.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain a number: the images, hashes, neighbours and judge replies behind it."""
    from autolora_eval import _display as display
    from autolora_eval.analysis._explanation import print_explanation
    from autolora_eval.analysis.explain import explain as explain_run

    explanation = explain_run(run, cell, prompt, seed)
    if as_json:
        typer.echo(json.dumps(explanation.as_data(), ensure_ascii=False, indent=1))
    else:
        print_explanation(explanation, display.console)


@app.command()
def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Tell all of these: names, or dotted paths of guiders.",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell all of each.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the methods: built in, of diffusers, of installed packages, the broken ones too."""
    from autolora_eval import _display as display
    from autolora_eval.guidance.catalogue import catalogue, listed_as

    found = listed_as(names, [Path.cwd()]) if names else list(catalogue())
    if as_json:
        typer.echo(display.as_json(found))
    elif names or verbose:
        display.show_details(found, display.console)
    else:
        display.show_list(found, display.console)


@app.command()
def check(
    guider: Annotated[
        str, typer.Argument(help="The dotted path of its class, or the name of a method.")
    ],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value, the value as in YAML; may be given again.", show_default=False
        ),
    ] = None,
    model: Annotated[
        Literal["sdxl", "sd3"], typer.Option(help="The family that it is tried on.")
    ] = "sdxl",
) -> None:
    """Test a guider against the laws, on a tiny random model; 1 if it breaks one."""
    from autolora_eval import _display as display
    from autolora_eval._devices import quiet_libraries

    with quiet_libraries():
        from autolora_eval.guider_checks.command import check as try_laws

        kept = try_laws(guider, parameter or [], model, display.console)
    if not kept:
        raise typer.Exit(1)


@app.command()
def doctor(
    benchmark: Annotated[
        str | None,
        typer.Argument(
            help="A benchmark, whose judge is then looked at first.", show_default=False
        ),
    ] = None,
) -> None:
    """Tell which judges can run on this machine, and what the others lack; loads no model."""
    from autolora_eval import _display as display
    from autolora_eval.config.load import load_benchmark
    from autolora_eval.scoring.judges import doctor

    if benchmark is None:
        diagnosis = doctor.examine()
    else:
        loaded = load_benchmark(benchmark)
        diagnosis = doctor.examine(loaded.spec.name, loaded.spec.judge, loaded.judge)
    doctor.show(diagnosis, display.console)


def main() -> None:
    """Run the command line: 0 done, 1 failed, 2 usage; no traceback unless asked for."""
    try:
        app()
    except AutoLoRAEvalError as error:
        _fail(error, str(error), error.exit_code)
    except SystemExit as error:
        if error.code == INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            _tell("interrupted. What was made is kept: run the same command to go on.")
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        _fail(error, f"{message}\nFor the traceback: autolora-eval --debug …", 1)


def _fail(error: Exception, message: str, code: int) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    else:
        _tell(message)
    sys.exit(code)


def _tell(message: str) -> None:
    typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(message, err=True)
