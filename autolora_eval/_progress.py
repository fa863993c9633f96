"""The console, and progress of long stages: bars with ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

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
        """Draw one stage and yield the callback that advances it.

        Args:
            name: name of the stage.
            total: number of items of the stage.
        """
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
