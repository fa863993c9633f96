"""An event loop in a thread of its own, and the way from it back to ordinary code."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import tenacity

from autolora_eval._devices import require
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.images import ImageError, read_picture
from autolora_eval.scoring.judges import openai_protocol as protocol
from autolora_eval.scoring.judges.base import Reply, Request, is_transient
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.launched_identity import launched_identity
from autolora_eval.scoring.judges.server_pool import (
    JudgeUnavailableError,
    OtherModelError,
    Server,
    ServerPool,
)
from autolora_eval.scoring.judges.structured_output import detect_structured_output
from autolora_eval.scoring.rubric import Rubric

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


# --------------------
# The judge on a server: vLLM's, or any other that speaks the OpenAI protocol.


MAX_IMAGE_BYTES = 20_000_000
PROBE_SECONDS = 5.0
REDACTED = "[key]"
# Once so many calls have failed one after the other, retries included, no more are made.
MAX_CONSECUTIVE_FAILURES = 50
# A call that so many servers were lost with, one after the other, may be what brings them down.
MAX_FAILOVERS = 5
# Whatever is shorter is no secret, but a word such as 'x' that a local server is content with.
SHORTEST_KEY = 8
# Statuses that another try does not change; a later run asks again.
_LASTING = tuple(f"http_{status}" for status in range(400, 500) if status not in (408, 425, 429))
# Of these, the ones that say something of the question, and nothing of the server.
_OF_THE_QUESTION = ("http_400", "http_413", "http_422")


class OpenAIJudge:
    """A vision-language model behind one or several OpenAI-compatible servers.

    The key is read from the environment and never written.

    Args:
        spec: the benchmark's `judge`.
        rubric: what replies are held to; without one they are not.
        base_urls: where it is served, if not where `spec` says.

    Raises:
        MissingDependencyError: the package `openai` is not installed.
        AutoLoRAEvalError: the key or a proxy of the environment cannot be used.
    """

    def __init__(
        self, spec: JudgeConfig, rubric: Rubric | None = None, base_urls: list[str] | None = None
    ) -> None:
        require("openai", "openai")
        self.spec, self.rubric = spec, rubric
        self._key = os.environ.get(spec.api_key_env) or ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise AutoLoRAEvalError(
                f"the key in {spec.api_key_env} holds what no key does, such as a line break or an "
                "umlaut: set it anew."
            )
        key = self._key or "EMPTY"
        servers = [Server(url, protocol.client(url, key)) for url in base_urls or spec.base_urls]
        self._servers = ServerPool(servers, self._probe, spec.give_up_after)
        self._loop = LoopThread()
        self._served: Json | None = None
        self._mode = protocol.StructuredOutput("plain")
        self._identity: Json | None = None
        self._failed_in_a_row = 0

    def identity(self) -> Json:
        """Return the model as the server tells it, how replies are constrained, and the sampling.

        Raises:
            AutoLoRAEvalError: no server is there, or none serves the model.
        """
        if self._identity is None:
            self.check()
            self._mode = self._loop.run(
                detect_structured_output(self.spec, self.rubric, self._until_answered)
            )
            served = self._served or {}
            self._identity = {
                "backend": "openai",
                "model": self.spec.model,
                "revision": self.spec.revision,
                "root": served.get("root"),
                "constraint": self._mode.name,
                "logprobs": self._mode.top_logprobs > 0,
                "temperature": self.spec.temperature,
                "max_tokens": self.spec.max_tokens,
                "seed": self.spec.seed,
                **launched_identity(self.spec),
            }
        return self._identity

    def facts(self) -> Json:
        """Return what else is known of the servers, for the record."""
        return {
            "base_urls": [server.url for server in self._servers.servers],
            "served_by": (self._served or {}).get("owned_by"),
            "server_version": (self._served or {}).get("version"),
        }

    def check(self) -> None:
        """Ask the servers which models they serve.

        Raises:
            AutoLoRAEvalError: none is there, none serves the judge's model, or two serve
                different ones under its name.
        """
        self._loop.run(self._check())

    async def _check(self) -> None:
        servers = self._servers.servers
        asked = [self._probe(server) for server in servers]
        for server, error in zip(
            servers, await asyncio.gather(*asked, return_exceptions=True), strict=True
        ):
            if isinstance(error, AutoLoRAEvalError) and not isinstance(error, OtherModelError):
                server.gone, server.last_probe = str(error), time.monotonic()
            elif error is not None:
                raise error
        if all(server.gone for server in servers):
            raise AutoLoRAEvalError("\n".join(str(server.gone) for server in servers))

    async def _probe(self, server: Server) -> None:
        """Ask a server whether it serves the judge, the same as the others do."""
        served = await protocol.served_model(server, self.spec, PROBE_SECONDS)
        if self._holds_key(str(served)):
            served = {}  # whatever it is, it is not to be written down
        if self._served is None:
            self._served = served
        elif served.get("root") != self._served.get("root"):
            raise OtherModelError(
                f"the judge's server at {server.url} serves '{served.get('root')}' as "
                f"'{self.spec.model}', and another serves '{self._served.get('root')}'. All of "
                "judge.base_url must serve one model."
            )

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield each request with its reply as it comes.

        At most `concurrency` calls are under way; as many images again are read ahead.

        Raises:
            AutoLoRAEvalError: no server is there, or calls fail one after the other.
        """
        self.identity()
        # In the loop's thread, so that it belongs to it.
        self._slots = asyncio.Semaphore(self.spec.concurrency)
        yield from self._loop.as_completed(self._reply, requests, 2 * self.spec.concurrency)

    def close(self) -> None:
        """Close connections and the thread."""
        try:
            for server in self._servers.servers:
                self._loop.run(server.client.close())
        finally:
            self._loop.close()

    async def _reply(self, request: Request) -> Reply:
        """Return the reply to one request, however many calls it takes."""
        try:
            picture = await asyncio.to_thread(read_picture, request.image, MAX_IMAGE_BYTES)
        except ImageError as error:
            return Reply(None, str(error), False, self.spec.model, 0.0, attempts=0)
        body = protocol.chat(self.spec, request.question, picture, request.repeat, self._mode)
        async with self._slots:
            reply = await self._until_answered(body)
        self._stop_if_hopeless(reply)
        return self._without_key(replace(reply, sent=picture.facts()))

    def _without_key(self, reply: Reply) -> Reply:
        """Blot out the key, should a server repeat it: what it says is written down."""
        if not self._holds_key(f"{reply.text} {reply.model}"):
            return reply
        text = None if reply.text is None else reply.text.replace(self._key, REDACTED)
        return replace(reply, text=text, model=reply.model.replace(self._key, REDACTED))

    def _holds_key(self, text: str) -> bool:
        return len(self._key) >= SHORTEST_KEY and self._key in text

    async def _until_answered(self, body: Json) -> Reply:
        """Call until there is a reply, with exponential back-off and as the server asks to wait."""
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(_worth_another_try),
            stop=tenacity.stop_after_attempt(1 + self.spec.max_retries),
            wait=_Wait(self.spec.timeout),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        calls = 0

        async def one_call() -> protocol.Answer:
            nonlocal calls
            answer = await self._one_call(body)
            calls += answer.reply.attempts
            return answer

        answer: protocol.Answer = await retrying(one_call)
        return replace(answer.reply, attempts=calls)

    async def _one_call(self, body: Json) -> protocol.Answer:
        """Make one call. One that is lost because its server is gone is made again elsewhere."""
        calls = 0
        while True:
            calls += 1
            server = await self._servers.acquire()
            server.busy += 1
            server.asked += 1
            try:
                answer = await protocol.call(server.client, body, self.spec.timeout)
            finally:
                server.busy -= 1
            answer = replace(answer, reply=replace(answer.reply, attempts=calls))
            reason = answer.reply.reason
            if not is_transient(reason) or reason in _OF_THE_QUESTION:
                self._servers.answered(server)
                return answer
            await self._servers.failed(server, unreached=reason == "connection")
            if server.gone is None or calls == MAX_FAILOVERS:
                return answer

    def _stop_if_hopeless(self, reply: Reply) -> None:
        """Stop a run whose server is there and answers no call."""
        if not is_transient(reply.reason) or reply.reason in _OF_THE_QUESTION:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(MAX_CONSECUTIVE_FAILURES, 2 * self.spec.concurrency):
            raise JudgeUnavailableError(
                f"the judge's server at {', '.join(self.facts()['base_urls'])} is there, but the "
                f"last {self._failed_in_a_row} questions had no answer, {reply.attempts} call(s) "
                f"for the last: {reply.reason}. Look into its log. What it judged so far is kept: "
                "run the same command again."
            )


class _Wait(tenacity.wait.wait_base):
    """Exponential back-off with full jitter; where the server says how long, at least so long."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._backoff = tenacity.wait_random_exponential(multiplier=0.5, max=min(30.0, longest))

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        backoff = float(self._backoff(retry_state))
        told: Any = retry_state.outcome and retry_state.outcome.result().retry_after
        return backoff if told is None else min(told, self._longest) + min(backoff, 1.0)


def _worth_another_try(answer: protocol.Answer) -> bool:
    reply = answer.reply
    lost = reply.attempts == MAX_FAILOVERS
    return is_transient(reply.reason) and reply.reason not in _LASTING and not lost
