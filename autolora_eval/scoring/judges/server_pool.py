"""The servers of one judge: used evenly, left out while they are gone, given up when all are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autolora_eval._errors import AutoLoRAEvalError

FAILURE_THRESHOLD = 3  # failures in a row after which a server is asked whether it is there
ASK_AGAIN = 10.0  # seconds until a server that was gone is asked again while others answer
ASK_AGAIN_ALONE = 1.0  # the same while none answers


class OtherModelError(AutoLoRAEvalError):
    """Two servers serve different models under the judge's name."""


class JudgeUnavailableError(AutoLoRAEvalError):
    """No server of the judge answers any more. What it judged so far is kept."""


@dataclass
class Server:
    """One address at which the judge is served.

    Attributes:
        url: the address.
        client: speaks to it.
        busy: calls under way.
        asked: calls made so far.
        failures: calls that failed since the last that did not.
        gone: why it is left out; None while it is used.
        asked_at: when it was last asked whether it is there, by a clock that only counts on.
    """

    url: str
    client: Any
    busy: int = 0
    asked: int = 0
    failures: int = 0
    gone: str | None = None
    last_probe: float = 0.0


class ServerPool:
    """Chooses the server of each call; a circuit breaker for each and for all.

    A server whose calls fail several times in a row is asked whether it is there. While it is
    not, the others are used, and it is asked again now and then. Once none has answered for
    `give_up_after` seconds, the run is stopped.

    Args:
        servers: all of them.
        is_there: raises AutoLoRAEvalError if a server does not serve the judge now.
        give_up_after: seconds.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        is_there: Callable[[Server], Awaitable[None]],
        give_up_after: float,
    ) -> None:
        self.servers = list(servers)
        self._probe, self._give_up_after = is_there, give_up_after
        self._asking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(self) -> Server:
        """Return the server with the least to do, of those that are there.

        Raises:
            JudgeGoneError: none has been there for `give_up_after` seconds.
        """
        there = [server for server in self.servers if server.gone is None]
        if not there:
            there = await self._wait_for_one()
        elif len(there) < len(self.servers):
            self._ask_the_gone_again()
        return min(there, key=lambda server: (server.busy, server.asked))

    async def failed(self, server: Server, *, unreached: bool) -> None:
        """Note a failed call; ask a server in doubt whether it is there.

        Args:
            server: that was called.
            unreached: whether there was no answer at all, which alone is reason for doubt.
        """
        server.failures += 1
        async with self._asking:
            in_doubt = server.failures >= FAILURE_THRESHOLD or (
                unreached and time.monotonic() - server.last_probe >= ASK_AGAIN_ALONE
            )
            if in_doubt and server.gone is None:
                await self._ask(server)
                server.failures = 0

    def answered(self, server: Server) -> None:
        """Note a call that was answered."""
        server.failures = 0

    def _ask_the_gone_again(self) -> None:
        """Ask, beside the calls that others answer, those that have not been asked for a while."""
        now = time.monotonic()
        for server in self.servers:
            if server.gone is not None and now - server.last_probe >= ASK_AGAIN:
                server.last_probe = now
                task = asyncio.create_task(self._ask(server))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _wait_for_one(self) -> list[Server]:
        """Ask all until one is there, and return those that are."""
        start = time.monotonic()
        async with self._asking:
            while True:
                there = [server for server in self.servers if server.gone is None]
                if there:
                    return there
                if time.monotonic() - start >= self._give_up_after:
                    raise JudgeUnavailableError(
                        f"{self.servers[0].gone} It was there before and cannot be reached any "
                        "more. What it judged so far is kept: start it again, and run the same "
                        "command again."
                    )
                await asyncio.sleep(min(ASK_AGAIN_ALONE, self._give_up_after / 4))
                await asyncio.gather(*(self._ask(server) for server in self.servers))

    async def _ask(self, server: Server) -> None:
        try:
            await self._probe(server)
            server.gone = None
        except AutoLoRAEvalError as error:
            server.gone = str(error)
        server.last_probe = time.monotonic()
