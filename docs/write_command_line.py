"""Write docs/reference/command_line.md from the command line's own help.

Run: python docs/write_command_line.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from autolora_eval.cli import app

PAGE = Path(__file__).parent / "reference" / "command_line.md"
HEAD = """# Command line

<!-- Written by docs/write_command_line.py. Change the help texts in autolora_eval/cli.py. -->

- The exit code is 0 for success, 1 for a failure, 2 for input that cannot be used, and 130 after
  Ctrl-C.
- `autolora-eval --debug COMMAND …` shows the traceback of a failure.
- A run folder can be [at a URL](../how_to/cluster.md#without-a-shared-disk).

| environment variable | effect |
| --- | --- |
| `AUTOLORA_EVAL_CACHE` | the folder for caches of judge replies, hashes and copies of run folders |
| `AUTOLORA_EVAL_JUDGE_URL` | the address of the judge server in the shipped benchmarks |
| `AUTOLORA_EVAL_JUDGE_API_KEY` | the API key of the judge server; it is never written to a file |
| `AUTOLORA_EVAL_ALLOW` | names of other variables that a benchmark may read, separated by commas |
| `AUTOLORA_EVAL_DEBUG` | `1` shows the traceback of a failure |
| `HF_HUB_OFFLINE` | `1` makes huggingface_hub use downloaded files only |

## Arguments and options of several commands
"""
# Markdown would read the brackets of reports/<benchmark name> as a tag.
_BRACKETS = re.compile(r"(?:[\w./-]*<[\w ]+>)+(?:[\w./-]*\w)?")


def page() -> str:
    """Return the page's text."""
    commands = typer.main.get_command(app).commands.items()
    usages, rows = {}, {}
    for name, command in commands:
        with typer.Context(command, info_name=f"autolora-eval {name}") as context:
            usage = command.get_usage(context).removeprefix("Usage: ")
            usages[name] = re.sub(r"[{}]", "", usage)
            rows[name] = dict(_row(one, context) for one in command.params)
    count = Counter(row for described in rows.values() for row in described.items())
    shared = dict(row for row, n in count.items() if n > 1)
    sections = [
        _section(name, str(command.help), usages[name], rows[name], shared)
        for name, command in commands
    ]
    return "\n".join([HEAD, *_items(shared), "", *sections])


def _row(parameter: Any, context: Any) -> tuple[str, str]:  # noqa: ANN401
    name, meaning = parameter.get_help_record(context)
    if parameter.param_type_name == "argument":  # the usage says whether it is required
        name, meaning = name.partition(" <")[0], meaning.removesuffix("[required]")
    meaning = " ".join(meaning.removesuffix("[x>=1]").split())
    return name, _BRACKETS.sub(r"`\g<0>`", meaning)


def _items(rows: Mapping[str, str]) -> list[str]:
    return [f"- `{name}`: {meaning}" for name, meaning in rows.items()]


def _section(
    name: str, help_: str, usage: str, rows: Mapping[str, str], shared: Mapping[str, str]
) -> str:
    own = {name: meaning for name, meaning in rows.items() if shared.get(name) != meaning}
    options = [one.partition(" ")[0] for one in rows.keys() - own.keys() if one.startswith("-")]
    above = ", ".join(f"`{option}`" for option in sorted(options))
    lines = [*_items(own), *([f"- see above: {above}"] if above else [])]
    return "\n".join(
        [f"## `autolora-eval {name}`", "", help_, "", "```text", usage, "```", "", *lines, ""]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
