"""The terminal: text of others cannot control it, and every failure has a message."""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path

import typer

from autolora_eval._errors import AutoLoRAEvalError, MissingDependencyError
from autolora_eval._text import printable

# Packages of the extras, by the names that they are imported by.
_EXTRAS = {
    **dict.fromkeys(
        ("torch", "diffusers", "peft", "transformers", "accelerate", "llguidance"), "models"
    ),
    **dict.fromkeys(("openai", "tenacity"), "openai"),
    "datasets": "datasets",
    "timm": "timm",
    "torchmetrics": "metrics",
}


def print_error(message: str) -> None:
    """Print a failure."""
    typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(printable(message), err=True)


def failure_message(error: Exception) -> str:
    """Return what a failure says: what was found, where, and the next step.

    This is the one place that turns exceptions of other libraries into messages.
    """
    if isinstance(error, AutoLoRAEvalError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).split(".")[0]
        if package in _EXTRAS:
            return str(MissingDependencyError(package, _EXTRAS[package]))
    if isinstance(error, OSError) and error.filename is not None:
        return _about_file(error)
    # safetensors is written in Rust: its error has the number in its text only.
    of_rust = re.search(r"\(os error (\d+)\)", str(error))
    number = int(of_rust[1]) if of_rust else getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Free some space, and re-run the same command to continue."
    if number in (errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE):
        reason = os.strerror(number)
        return f"a file cannot be written: {reason}. Finished work is kept; re-run to continue."
    if isinstance(error, MemoryError):
        return "this machine has too little memory. Finished work is kept."
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "autolora_eval" in Path(frame.filename).parts]
    at = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return (
        f"something that autolora-eval does not expect: {type(error).__name__}: {error}{at}\n"
        "Please report it with the traceback, which this shows: autolora-eval --debug …"
    )


def _about_file(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        advice = "Free some space, and re-run the same command to continue."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Change its permissions, or name another place."
    else:
        advice = "Correct the path, or remove what is there."
    reason = error.strerror or type(error).__name__
    return f"'{error.filename2 or error.filename}' cannot be used: {reason}. {advice}"
