"""Runs the code of a documentation page, as a reader would enter it.

- A block with `title="FILE"` is written to that file.
- A block with `title="FILE, KEY:"` is YAML that is put under that top-level key of the file, or
  replaces the key if the block starts with it.
- A `console` block is run line by line; every line is an `autolora-eval` command. A backslash at
  its end continues it.
- A `python` block without a title is executed.
- Other blocks (`sh`, `py`, `yml`, `text`) are not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from command import run_command

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order."""
    for language, title, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        yield Block(language, title, text)


def run_page(page: Path) -> list[str]:
    """Run the blocks of a page in the current folder; return the commands that were run.

    Raises:
        AssertionError: if a command fails.
    """
    commands = []
    for block in blocks(page):
        if block.title:
            _write(block)
        elif block.language == "console":
            for line in block.text.replace("\\\n", "").splitlines():
                run_line(line)
                commands.append(line.split()[1])
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), {"__name__": page.stem})
    return commands


def run_line(line: str) -> None:
    """Run one command line in this process, and require that it succeeds."""
    program, *words = shlex.split(line)
    assert program == "autolora-eval", line
    finished = run_command(*words)
    assert finished.code == 0, f"{line}\n{finished.stdout}\n{finished.stderr}"


def _write(block: Block) -> None:
    name, _, key = block.title.partition(", ")
    if not key:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(block.text, encoding="utf-8")
        return
    data = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    added = yaml.safe_load(block.text)
    if key.removesuffix(":") in added:
        data |= added
    else:
        data[key.removesuffix(":")] |= added
    Path(name).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
