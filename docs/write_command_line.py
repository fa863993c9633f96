"""Write docs/reference/command_line.md from the command line's own help.

Run: python docs/write_command_line.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from autolora_eval.cli import app

PAGE = Path(__file__).parent / "reference" / "command_line.md"
HEAD = """# Command line

<!-- Written by docs/write_command_line.py. Change the help texts in autolora_eval/cli.py. -->

- `BENCHMARK` is a benchmark file, the name of a shipped benchmark such as `quickstart`, or a run
  folder.
- `RUN` is a run folder. It can be [at a URL](../how_to/cluster.md#without-a-shared-disk).
- The exit code is 0 for success, 1 for a failure, 2 for input that cannot be used, and 130 after
  Ctrl-C.
- `autolora-eval --debug COMMAND …` shows the traceback of a failure.

| environment variable | effect |
| --- | --- |
| `AUTOLORA_EVAL_CACHE` | the folder for caches of judge replies, hashes and copies of run folders |
| `AUTOLORA_EVAL_JUDGE_URL` | the address of the judge server in the shipped benchmarks |
| `AUTOLORA_EVAL_JUDGE_API_KEY` | the API key of the judge server; it is never written to a file |
| `AUTOLORA_EVAL_ALLOW` | names of other variables that a benchmark may read, separated by commas |
| `AUTOLORA_EVAL_DEBUG` | `1` shows the traceback of a failure |
| `HF_HUB_OFFLINE` | `1` makes huggingface_hub use downloaded files only |
"""
# Markdown would read the brackets of reports/<benchmark name> as a tag.
_BRACKETS = re.compile(r"(?:[\w./-]*<[\w ]+>)+(?:[\w./-]*\w)?")


def page() -> str:
    """Return the page's text."""
    group = typer.main.get_command(app)
    sections = [_section(name, command) for name, command in group.commands.items()]
    return "\n".join([HEAD, *sections])


def _section(name: str, command: Any) -> str:  # noqa: ANN401
    with typer.Context(command, info_name=f"autolora-eval {name}") as context:
        usage = re.sub(r"[{}]", "", command.get_usage(context).removeprefix("Usage: "))
        rows = list(_rows(command, context))
    title = f"## `autolora-eval {name}`"
    return "\n".join([title, "", command.help, "", "```text", usage, "```", "", *rows, ""])


def _rows(command: Any, context: Any) -> Iterator[str]:  # noqa: ANN401
    for parameter in command.params:
        name, meaning = parameter.get_help_record(context)
        if parameter.param_type_name == "argument":  # the usage says whether it is required
            name, meaning = name.partition(" <")[0], meaning.removesuffix("[required]")
        meaning = meaning.removesuffix("[x>=1]")
        yield f"- `{name}`: " + _BRACKETS.sub(r"`\g<0>`", " ".join(meaning.split()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
