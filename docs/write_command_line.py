"""Write docs/reference/command_line.md from the command line's own help.

Run: python docs/write_command_line.py
"""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

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


def page() -> str:
    """Return the page's text."""
    command = typer.main.get_command(app)
    with typer.Context(command, info_name="autolora-eval") as context:
        text = get_docs_for_click(obj=command, ctx=context, name="autolora-eval")
    commands = text[text.index("\n## ") :]  # without the list of commands, which the sections are
    plain = commands.replace("```console\n$ ", "```text\n").replace("\n* ", "\n- ")
    return HEAD + re.sub(r"\n{3,}", "\n\n", plain).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
