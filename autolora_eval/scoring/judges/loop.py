"""An event loop in a thread of its own, and the way from it back to ordinary code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class LoopThread:
    """An event loop that works wherever it is called from, also inside another loop (Jupyter)."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; its result can be waited for from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result."""
        return self.start(work).result()

    def as_completed(
        self, work: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], ahead: int
    ) -> Iterator[list[tuple[T, R]]]:
        """Yield each item with its result as it comes, those that come together in one group.

        Args:
            work: what is done with an item.
            items: taken one by one, never more than `ahead` of them unfinished.
            ahead: how many may be unfinished.

        Raises:
            Exception: the first that `work` raised, after the results that came before it.
        """
        running = _Running[T, R]()
        try:
            for item in items:
                running.add(item, self.start(work(item)))
                yield from running.finished(wait=len(running) >= ahead)
            while len(running):
                yield from running.finished(wait=True)
        finally:
            running.cancel()

    def close(self) -> None:
        """Cancel what runs and end the thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Running(Generic[T, R]):
    """What has been started and not yet been handed back."""

    def __init__(self) -> None:
        self._futures: set[Future[R]] = set()
        self._done: SimpleQueue[tuple[T, Future[R]]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._futures)

    def add(self, item: T, future: Future[R]) -> None:
        self._futures.add(future)
        future.add_done_callback(lambda done: self._done.put((item, done)))

    def finished(self, *, wait: bool) -> Iterator[list[tuple[T, R]]]:
        """Yield what is done as one group, if anything is; wait for the first if asked to."""
        group: list[tuple[T, R]] = []
        failure: BaseException | None = None
        for item, future in self._take(wait):
            self._futures.discard(future)
            error = future.exception()
            if error is None:
                group.append((item, future.result()))
            else:
                failure = failure or error
        if group:
            yield group
        if failure is not None:
            raise failure

    def _take(self, wait: bool) -> Iterator[tuple[T, Future[R]]]:
        if wait:
            yield self._done.get()
        while True:
            try:
                yield self._done.get_nowait()
            except Empty:
                return

    def cancel(self) -> None:
        for future in list(self._futures):
            future.cancel()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
