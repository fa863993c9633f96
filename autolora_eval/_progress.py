"""The console, the progress of long stages, and the notices of libraries, which would break it.

Progress is bars with ETA on a terminal, and plain lines in a log.
"""

from __future__ import annotations

import logging
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.segment import Segment
from rich.text import Text

from autolora_eval._text import printable

LOG_EVERY_SECONDS = 20.0


class SafeConsole(Console):
    """A console that prints control characters of prompts, names and replies as U+FFFD."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable; colours are not part of their text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


class Advance(Protocol):
    """Callback: advance by n, with an optional status note."""

    def __call__(self, n: int, note: str = "") -> None:
        """Advance by n and show the note."""


class _Rate(ProgressColumn):
    """Column with the items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


class Progress:
    """Draws the progress of a run's stages.

    Args:
        console: the console to draw on. The default draws nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print a line between the bars."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Draw one stage and yield the callback that advances it."""
        if self.console is None:
            yield lambda n, note="": None
        elif self.console.is_terminal:
            with self._bars() as bars:
                task = bars.add_task(name, total=total, note="")

                def advance_bar(n: int, note: str = "") -> None:
                    bars.update(task, advance=n, note=note)

                yield advance_bar
        else:
            with self._lines(name, total) as advance:
                yield advance

    def _bars(self) -> RichProgress:
        return RichProgress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("·"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            _Rate(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )

    @contextmanager
    def _lines(self, name: str, total: int) -> Iterator[Advance]:
        assert self.console is not None
        console, start = self.console, time.monotonic()
        done, last_line, shown = 0, start, ""

        def advance(n: int, note: str = "") -> None:
            nonlocal done, last_line, shown
            done += n
            shown = f", {note}" if note else ""
            now = time.monotonic()
            if now - last_line >= LOG_EVERY_SECONDS and done:
                left = (now - start) / done * (total - done)
                console.print(f"{name}: {done}/{total}, about {left:.0f} s left{shown}")
                last_line = now

        yield advance
        console.print(f"{name}: {done}/{total} in {time.monotonic() - start:.0f} s{shown}")


# ---- Notices of model libraries
# They would break the display, and most do not concern the images. Those that do are shown once.


_NAMES = ("diffusers", "transformers", "peft", "huggingface_hub")
# It prints the traceback of every exception before it raises it.
_REPORTS_TWICE = "diffusers.modular_pipelines.modular_pipeline"
_MATTERS = re.compile(
    r"truncat|missing|unexpected|mismatch|ignor|mixture|fall(s|ing)? back|float16|half precision"
    r"|not (been )?(used|initiali[sz]ed|expected|supported|implemented)|\bnan\b|overflow"
    r"|incorrect|wrong",
    re.IGNORECASE,
)
# Notices that are intended, change nothing, or are covered by an error of this package.
_EXPECTED = re.compile("generation flags|requires torchvision|Failed to create component")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WARNING_LENGTH, _BEGINNING = 400, 60
_shown: set[str] = set()


def forget_warnings() -> None:
    """Show warnings of libraries again, since another run begins."""
    _shown.clear()


def _show_once(library: str, text: str) -> None:
    """Show a library's warning once if it may matter to the images."""
    if _MATTERS.search(text) and not _EXPECTED.search(text) and text[:_BEGINNING] not in _shown:
        _shown.add(text[:_BEGINNING])
        short = textwrap.shorten(_COLOUR.sub("", text), _WARNING_LENGTH, placeholder=" …")
        sys.stderr.write(f"warning of {library}: {short}\n")


class _Notices(logging.Handler):
    """Replacement for a library's handlers: passes errors on and shows warnings that matter."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self.handlers = handlers or [handler for handler in [logging.lastResort] if handler]

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            for handler in self.handlers if record.name != _REPORTS_TWICE else ():
                handler.handle(record)
        elif record.levelno >= logging.WARNING:
            _show_once(record.name.partition(".")[0], record.getMessage())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notices and bars of the model libraries off the screen.

    Errors still show, and each warning that may matter to the images shows once in a run.
    """
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _NAMES]
    before = [(logger, logger.level, logger.handlers) for logger in loggers]
    show = warnings.showwarning
    for logger in loggers:
        # `setLevel` walks over all loggers, and this block is entered at every batch.
        if logger.getEffectiveLevel() != logging.WARNING:
            logger.setLevel(logging.WARNING)
        logger.handlers = [_Notices(logger.handlers)]
    warnings.showwarning = partial(_show_warning, show)
    # diffusers is heavy, and not every stage has imported it.
    bars = [transformers_logging, *filter(None, [sys.modules.get("diffusers.utils.logging")])]
    bars = [library for library in bars if library.is_progress_bar_enabled()]
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in bars:
            library.enable_progress_bar()
        warnings.showwarning = show
        for logger, level, handlers in before:
            if logger.level != level:
                logger.setLevel(level)
            logger.handlers = handlers


def _show_warning(
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    *more: Any,  # noqa: ANN401
) -> None:
    """Replace `warnings.showwarning`: show only warnings of model libraries that matter."""
    library = next((name for name in (*_NAMES, "torch") if name in Path(filename).parts), None)
    if library is None:
        show(message, category, filename, lineno, *more)
    elif not issubclass(category, DeprecationWarning | FutureWarning):
        _show_once(library, str(message))
