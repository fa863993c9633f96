"""Errors with a message for the user, and the messages for errors of other libraries."""

from __future__ import annotations

import _thread
import difflib
import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class AutoLoRAEvalError(Exception):
    """An error with a message for the user: what was found, what was expected, what to do next."""

    exit_code = 1


class UsageError(AutoLoRAEvalError):
    """The user's input cannot be used. Nothing was loaded or lost."""

    exit_code = 2


class MissingDependencyError(AutoLoRAEvalError):
    """A package of an extra that this step needs is not installed."""

    def __init__(self, packages: str | Sequence[str], extra: str) -> None:
        names = [packages] if isinstance(packages, str) else packages
        listed = ", ".join(f"'{name}'" for name in names)
        subject, them = ("The package", "it") if len(names) == 1 else ("The packages", "them")
        super().__init__(
            f"{subject} {listed} {'is' if len(names) == 1 else 'are'} not installed, and this step "
            f"needs {them}. Install {them} with: pip install 'autolora-eval[{extra}]'"
        )


# The extra that installs a package, by the name that the package is imported by.
_EXTRAS = {
    **dict.fromkeys(
        ("torch", "diffusers", "peft", "transformers", "accelerate", "llguidance"), "models"
    ),
    **dict.fromkeys(("aiohttp", "anyio"), "openai"),
    "datasets": "datasets",
    "timm": "timm",
    "torchmetrics": "metrics",
}
# Exceptions of code that reads a file with other content than expected.
_DAMAGED: tuple[type[Exception], ...] = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(NotImplementedError, RecursionError, StopIteration, OSError),
)


@contextmanager
def as_damaged(path: Path) -> Iterator[None]:
    """Report a file or run folder as damaged if reading it fails.

    Raises:
        UsageError: with the cause; `--debug` shows where.
    """
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of pyarrow
            raise
        raise UsageError(
            f"'{path}' is damaged, or was not written by autolora-eval: {type(error).__name__}: "
            f"{error!s:.200}. Nothing was changed. Get it again, or score the run again."
        ) from error


def did_you_mean(word: str, known: Iterable[str], *, or_list: bool = True) -> str:
    """Return " Did you mean 'x'?" for the nearest known word; "" if there is nothing to suggest.

    Args:
        word: what the user wrote.
        known: what would have been accepted.
        or_list: return " Known: …", with all of them, if none is near.
    """
    choices = list(known)
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{lowered[near[0]]}'?"
    return f" Known: {', '.join(choices)}." if choices and or_list else ""


def release_frames(error: BaseException | None) -> None:
    """Clear the local variables that an error and its causes keep alive.

    They are those of the functions in its traceback, and of their callers that have ended.
    Otherwise a kept error keeps the pipeline that raised it, and the next one needs twice the
    memory. The lines of the traceback remain.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for outermost, _ in traceback.walk_tb(error.__traceback__):
            frame: FrameType | None = outermost
            while frame is not None:
                try:
                    frame.clear()
                except RuntimeError:  # the frame and its callers are running
                    break
                frame = frame.f_back
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def validation_message(item: Mapping[str, Any]) -> str:
    """Return the message of one of pydantic's errors, as the validator raised it."""
    return str(item["msg"]).removeprefix("Value error, ")


def failure_message(error: Exception) -> str:
    """Return the message of any exception that ends a command."""
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
        return "the disk is full. Free some space, and run the same command again to continue."
    if number in (errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE):
        reason = os.strerror(number)
        return (
            f"a file cannot be written: {reason}. Finished work is kept: run the same command "
            "again to continue."
        )
    if isinstance(error, MemoryError):
        return "this machine has too little memory. Finished work is kept."
    return _unexpected(error)


def _unexpected(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "autolora_eval" in Path(frame.filename).parts]
    at = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return (
        f"an unexpected {type(error).__name__}: {error}{at}\n"
        "Please report it with the traceback. To see it, run: autolora-eval --debug …"
    )


def _about_file(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        advice = "Free some space, and run the same command again to continue."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Change its permissions, or choose another path."
    else:
        advice = "Correct the path, or remove what is there."
    reason = error.strerror or type(error).__name__
    return f"'{error.filename2 or error.filename}' cannot be used: {reason}. {advice}"


def interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a Ctrl-C that Python ignores since it came in a destructor, but not in this hook."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)
