"""Arguments and options that several commands share, and how the commands are listed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from autolora_eval import __version__
from autolora_eval._errors import validation_message
from autolora_eval.runs.file_systems import is_url

# The headings of `autolora-eval --help`.
RUN, ANALYZE, METHODS = "Run a benchmark", "Analyze finished runs", "Methods and judges"


class Commands(TyperGroup):
    """Commands under their headings. Typer's own headings import rich, which takes 0.3 s."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the headings and the commands."""
        for heading in (RUN, ANALYZE, METHODS):
            rows = [
                (name, command.get_short_help_str(limit=200))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == heading
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run a command. What typer says of a wrong value lacks the value."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValueError) and hasattr(error.__cause__, "errors"):
                item = error.__cause__.errors()[0]
                message = validation_message(item).partition(", unable to parse")[0]
                message = message.replace("should be greater", "should be a number greater")
                message = message.replace("Input should be", "expected")
                got = f"'{item['input']}'"
                error.message = message if got in message else f"{message} (got {got})."
            raise


def named_path(text: str) -> Path:
    """Return a path. An empty text, from a variable that is not set, would be this folder."""
    if not text.strip():
        raise typer.BadParameter("expected the name of a file or folder (got an empty text).")
    if is_url(text):
        raise typer.BadParameter(f"expected a path of this machine (got the URL '{text}').")
    return Path(text)


def _path_or_url(text: str) -> str | Path:
    return text if is_url(text) else named_path(text)


def _opened(*, finished: bool) -> Callable[[typer.Context, Any], Any]:
    """Return a callback that replaces URLs by working copies, which are sent as the command ends.

    If `finished`, a run must be at the URL.
    """

    def open_all(context: typer.Context, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list | tuple):
            return [open_all(context, one) for one in value]
        if not isinstance(value, str) or not is_url(value):
            return value
        from autolora_eval._display import show_path
        from autolora_eval.runs.storage import working_copy

        stored = partial(show_path, "stored")
        return context.with_resource(working_copy(value, finished=finished, stored=stored))

    return open_all


def _finished_run(help_: str) -> Any:  # noqa: ANN401
    return typer.Argument(
        parser=_path_or_url, callback=_opened(finished=True), metavar="RUN", help=help_
    )


def _run_to_write(help_: str) -> Any:  # noqa: ANN401
    return typer.Option(
        parser=_path_or_url, callback=_opened(finished=False), metavar="FOLDER", help=help_
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autolora-eval {__version__}")
        raise typer.Exit


DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback if a command fails.")
]
VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
]
BenchmarkOrRun = Annotated[
    str,
    typer.Argument(
        callback=_opened(finished=True),
        metavar="BENCHMARK",
        help="A benchmark file, the name of a shipped benchmark such as 'quickstart', or a run "
        "folder (a path or a URL).",
    ),
]
OutputOption = Annotated[
    Path | None,
    _run_to_write(
        "The run folder to write, or a URL such as s3://bucket/mine. Default: "
        "reports/<benchmark name>."
    ),
]
JointOutputOption = Annotated[
    Path | None,
    _run_to_write("The joint run folder to write, or a URL. Default: reports/compare-<run names>."),
]
RunFolderArgument = Annotated[Path, _finished_run("The folder of a finished run, or its URL.")]
RunFolderArguments = Annotated[
    list[Path], _finished_run("The folders of two or more finished runs, or their URLs.")
]
RunOrArchive = Annotated[
    Path, _finished_run("The folder of a finished run or its URL, or an archive of a run.")
]
AcceptVersions = Annotated[
    bool,
    typer.Option(
        "--accept-versions",
        help="Resume even if the finished images were made with other versions of torch, "
        "diffusers, peft or transformers. The report names both.",
    ),
]
LimitPrompts = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Use only the first N prompts.")
]
LimitSeeds = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Use only the first N seeds.")
]
ArchiveOption = Annotated[
    Path | None,
    typer.Option(parser=named_path, metavar="FILE", help="The archive to write. Default: RUN.zip."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NoCode = Annotated[
    bool,
    typer.Option(
        "--no-code",
        help="For a file from someone else: list what a run would import, start, read, fetch, "
        "send and write. Nothing is imported or started.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        parser=named_path,
        metavar="PATH",
        help="Score existing images: a folder <prompt>/<seed>.png, an imagefolder, a .csv, .tsv, "
        ".jsonl or .parquet listing, or a saved dataset. The default of --output is then "
        "reports/<benchmark name>-<name>.",
    ),
]
CellArgument = Annotated[
    str,
    typer.Argument(
        metavar="CELL", help="A cell's id, or the name of a method that has a single cell."
    ),
]
PromptArgument = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="A prompt's index or its text.")
]
SeedArgument = Annotated[int | None, typer.Argument(metavar="SEED", help="The seed of one image.")]
RatingsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RATINGS",
        help="A CSV file with one rating per row. Columns: 'file' as in scores.parquet (or "
        "'cell', 'prompt' and 'seed'), 'rater' if there are several raters, and one column per "
        "score, such as 'pc'.",
    ),
]
MethodNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="Show all details of these methods: names, or dotted paths of guiders.",
    ),
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A parameter of the guider, with the value as in YAML. Repeat the option for more "
        "parameters.",
    ),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="Run the models in this process (local), or in the processes of a Ray cluster (ray)."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="The address of an existing Ray cluster, such as 'auto'. Implies --engine ray.",
    ),
]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="The method that the others are compared with. Default: the baseline of the runs.",
    ),
]
AnyJudges = Annotated[
    bool,
    typer.Option("--allow-different-judges", help="Compare scores even if the judges differ."),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A prompt. Repeat the option for more prompts."),
]
JudgeName = Annotated[str | None, typer.Option(metavar="MODEL", help="A judge model on a server.")]
ImagesModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model of the benchmark that --images belong to. Default: the first one.",
    ),
]
