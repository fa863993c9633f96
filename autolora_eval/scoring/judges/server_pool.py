"""The servers of one judge: load balancing, and a circuit breaker for each server and for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autolora_eval._errors import AutoLoRAEvalError

if TYPE_CHECKING:
    import aiohttp

FAILURE_THRESHOLD = 3  # consecutive failures after which a server is probed
PROBE_INTERVAL = 10.0  # seconds between probes of a server that is down while others answer
PROBE_INTERVAL_ALONE = 1.0  # the same while no server answers


class OtherModelError(AutoLoRAEvalError):
    """Two servers serve different models under the judge's name."""


class JudgeUnavailableError(AutoLoRAEvalError):
    """No server of the judge answers any more. Earlier judgements are kept."""


@dataclass
class Server:
    """One address at which the judge is served.

    Attributes:
        url: the address, ending in `/v1`.
        session: the connections to it.
        active_calls: calls in progress.
        total_calls: calls made so far.
        failures: consecutive failed calls.
        down_reason: why the server is not used; None while it is used.
        last_probe: monotonic time of the last probe.
    """

    url: str
    session: aiohttp.ClientSession
    active_calls: int = 0
    total_calls: int = 0
    failures: int = 0
    down_reason: str | None = None
    last_probe: float = 0.0


class ServerPool:
    """Chooses the server of each call.

    A server is probed after several consecutive failures. While it is down the others are used,
    and it is probed now and then. The run stops once all have been down for `give_up_after`
    seconds.

    Args:
        servers: all servers of the judge.
        probe: raises AutoLoRAEvalError if a server does not serve the judge now.
        give_up_after: seconds.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        probe: Callable[[Server], Awaitable[None]],
        give_up_after: float,
    ) -> None:
        self.servers = list(servers)
        self._probe, self._give_up_after = probe, give_up_after
        self._probing = asyncio.Lock()
        # References that keep background probes from being garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(self) -> Server:
        """Return the server that is up and has the fewest calls in progress.

        Raises:
            JudgeUnavailableError: if no server has been up for `give_up_after` seconds.
        """
        up = self._up()
        if not up:
            up = await self._wait_for_one()
        elif len(up) < len(self.servers):
            self._probe_in_background()
        return min(up, key=lambda server: (server.active_calls, server.total_calls))

    async def record_failure(self, server: Server, *, unreachable: bool) -> None:
        """Count a failed call, and probe its server if that may be down.

        Args:
            server: the server that was called.
            unreachable: True if there was no answer at all, which is reason enough for a probe.
        """
        server.failures += 1
        async with self._probing:
            may_be_down = server.failures >= FAILURE_THRESHOLD or (
                unreachable and time.monotonic() - server.last_probe >= PROBE_INTERVAL_ALONE
            )
            if may_be_down and server.down_reason is None:
                await self._update(server)
                server.failures = 0

    def record_success(self, server: Server) -> None:
        """Reset the count of consecutive failures."""
        server.failures = 0

    def _up(self) -> list[Server]:
        return [server for server in self.servers if server.down_reason is None]

    def _probe_in_background(self) -> None:
        now = time.monotonic()
        for server in self.servers:
            if server.down_reason is not None and now - server.last_probe >= PROBE_INTERVAL:
                server.last_probe = now
                task = asyncio.create_task(self._update(server))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _wait_for_one(self) -> list[Server]:
        """Probe all servers until one is up, and return those that are."""
        start = time.monotonic()
        async with self._probing:
            while not (up := self._up()):
                if time.monotonic() - start >= self._give_up_after:
                    raise JudgeUnavailableError(
                        f"{self.servers[0].down_reason} It answered earlier in this run. The "
                        "judgements so far are kept: restart the server, and re-run the same "
                        "command to continue."
                    )
                await asyncio.sleep(min(PROBE_INTERVAL_ALONE, self._give_up_after / 4))
                await asyncio.gather(*(self._update(server) for server in self.servers))
            return up

    async def _update(self, server: Server) -> None:
        """Probe a server and record whether it is up."""
        try:
            await self._probe(server)
            server.down_reason = None
        except AutoLoRAEvalError as error:
            server.down_reason = str(error)
        server.last_probe = time.monotonic()
