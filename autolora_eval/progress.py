"""Progress on long work: bars with rate and ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

Advance = Callable[[int], None]
LOG_EVERY_SECONDS = 20.0


class Progress:
    """Draws the progress of a run's stages.

    Args:
        console: where to; None draws nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Draw one stage; yields a function that is told how much was done.

        Args:
            name: of the stage.
            total: how much there is to do.
        """
        if self.console is None:
            yield lambda n: None
        elif self.console.is_terminal:
            with self._bars() as bars:
                task = bars.add_task(name, total=total)
                yield lambda n: bars.advance(task, n)
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
            console=self.console,
        )

    @contextmanager
    def _lines(self, name: str, total: int) -> Iterator[Advance]:
        assert self.console is not None
        console, start = self.console, time.monotonic()
        done, told = 0, start

        def advance(n: int) -> None:
            nonlocal done, told
            done += n
            now = time.monotonic()
            if now - told >= LOG_EVERY_SECONDS and done:
                left = (now - start) / done * (total - done)
                console.print(f"{name}: {done}/{total}, about {left:.0f} s left")
                told = now

        yield advance
        console.print(f"{name}: {done}/{total} in {time.monotonic() - start:.0f} s")
