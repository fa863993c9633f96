"""The command line in this process: no start of Python for each case."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from autolora_eval import _display, cli


@dataclass(frozen=True)
class Finished:
    """The exit code of a command and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """The standard output without line breaks and repeated blanks."""
        return " ".join(self.stdout.split())


def run_command(*arguments: object, width: int = 200) -> Finished:
    """Run `autolora-eval ARGUMENTS` through the entry point, on a terminal of that width."""
    code, stdout, stderr = 0, io.StringIO(), io.StringIO()
    argv = ["autolora-eval", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(_display.console, "_width", width),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
    return Finished(code, stdout.getvalue(), stderr.getvalue())
