"""The servers of one judge: load balancing and circuit breakers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judges.server import Server

FAILURE_THRESHOLD = 3  # consecutive failures after which a server is probed
PROBE_INTERVAL = 10.0  # seconds between probes of a server that is down while others answer
PROBE_INTERVAL_ALONE = 1.0  # the same while no server answers


class OtherModelError(AutoLoRAEvalError):
    """Two servers serve different models under the judge's name."""


class JudgeUnavailableError(AutoLoRAEvalError):
    """No server of the judge answers any more. Earlier judgements are kept."""


class ServerPool:
    """Chooses the server of each call.

    A server is probed after several consecutive failures. While it is down, the others are used,
    and it is probed from time to time. The run stops when all servers have been down for
    `give_up_after` seconds. `probe` raises AutoLoRAEvalError if a server does not serve the judge
    now.
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

    async def check(self) -> None:
        """Probe all servers at once.

        Raises:
            AutoLoRAEvalError: if no server is up, or two serve different models.
        """
        probes = [self._probe(server) for server in self.servers]
        errors = await asyncio.gather(*probes, return_exceptions=True)
        for server, error in zip(self.servers, errors, strict=True):
            if isinstance(error, AutoLoRAEvalError) and not isinstance(error, OtherModelError):
                server.down_reason, server.last_probe = str(error), time.monotonic()
            elif error is not None:
                raise error
        if not self._up():
            raise AutoLoRAEvalError("\n".join(str(server.down_reason) for server in self.servers))

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

        One failure is enough for a probe if the server was unreachable.
        """
        server.failures += 1
        async with self._probing:
            may_be_down = server.failures >= FAILURE_THRESHOLD or (
                unreachable and time.monotonic() - server.last_probe >= PROBE_INTERVAL_ALONE
            )
            if may_be_down and server.down_reason is None:
                await self._update(server)
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
                        "judgements so far are kept: restart the server, and run the same "
                        "command again to continue."
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
