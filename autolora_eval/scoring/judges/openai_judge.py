"""The judge on a server: vLLM's, or any other server that speaks the OpenAI protocol."""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from threading import Event

from anyio.from_thread import BlockingPortal, start_blocking_portal

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.images import ImageError, read_picture
from autolora_eval.scoring.judge import Reply, Request, is_transient
from autolora_eval.scoring.judges import openai_protocol as protocol
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.server import (
    Server,
    open_server,
    proxy,
    redacted,
    served_model,
)
from autolora_eval.scoring.judges.server_pool import (
    JudgeUnavailableError,
    OtherModelError,
    ServerPool,
)
from autolora_eval.scoring.judges.vllm_command import launched_identity
from autolora_eval.scoring.rubric import Rubric

MAX_IMAGE_BYTES = 20_000_000
BACKOFF_SECONDS = 0.5  # upper bound of the first random wait before a retry; it then doubles
# The run stops after this many consecutive failed questions, each with all of its retries.
MAX_CONSECUTIVE_FAILURES = 50
# A question that fails on this many servers in a row may be what crashes them.
MAX_FAILOVERS = 5
# These statuses are about the question, not about the health of the server.
_ABOUT_THE_QUESTION = ("http_400", "http_413", "http_422")
_Finished = SimpleQueue[tuple[Request, Future[Reply]]]


class OpenAIJudge:
    """A vision-language model behind one or several OpenAI-compatible servers.

    The addresses are by default those of the benchmark. The API key is read from the environment
    and never written.

    Raises:
        AutoLoRAEvalError: if the key or a proxy of the environment cannot be used.
    """

    def __init__(
        self, spec: JudgeConfig, rubric: Rubric, base_urls: list[str] | None = None
    ) -> None:
        self.spec, self.rubric = spec, rubric
        self._key = _api_key(spec.api_key_env)
        urls, key = base_urls or spec.base_urls, self._key or "EMPTY"
        proxies = [proxy(url) for url in urls]
        self._stated_urls = base_urls or spec.stated_urls
        self._served: Json | None = None
        self._images_dropped: bool | None = None
        self._mode = protocol.StructuredOutput("plain")
        self._dialect = protocol.Dialect()
        self._identity: Json | None = None
        self._consecutive_failures = 0
        self._in_flight: set[Future[Reply]] = set()
        self._cancelled = Event()
        self._longest_pause = spec.timeout
        self._random = random.Random()  # not the global generator, which samplers seed and use
        # An event loop in a thread of its own also works inside another loop, as in Jupyter.
        stack = ExitStack()
        self._portal: BlockingPortal = stack.enter_context(start_blocking_portal())
        # A thread that is still running would block the exit of Python.
        self._stop_loop = weakref.finalize(self, stack.close)
        servers = [
            self._portal.call(open_server, url, key, through)
            for url, through in zip(urls, proxies, strict=True)
        ]
        self._pool = ServerPool(servers, self._probe, spec.give_up_after)

    def identity(self) -> Json:
        """Return the model as the server reports it, the constraint on replies, and the sampling.

        Raises:
            AutoLoRAEvalError: if no server answers, or none serves the model.
        """
        if self._identity is None:
            self.check()
            self._mode = self._portal.call(
                protocol.detect_structured_output, self.spec, self.rubric, self._call_with_retries
            )
            served = self._served or {}
            self._identity = {
                "backend": "openai",
                "model": self.spec.model,
                "revision": self.spec.revision,
                "root": served.get("root"),
                **({"weights": served["weights"]} if served.get("weights") else {}),
                "constraint": self._mode.name,
                "logprobs": "logprobs" in self._mode.arguments,
                "temperature": self.spec.temperature,
                "max_tokens": self.spec.max_tokens,
                "seed": self.spec.seed,
                "sampling_defaults": "neutral",
                **launched_identity(self.spec),
            }
        return self._identity

    def facts(self) -> Json:
        """Return addresses and versions of the servers, and the arguments that they reject."""
        refused = sorted(self._dialect.refused)
        return {
            **({"refused_arguments": refused} if refused else {}),
            **({"unlisted": True} if (self._served or {}).get("unlisted") else {}),
            **({"images_dropped": True} if self._images_dropped else {}),
            "base_urls": self._stated_urls,
            "served_by": (self._served or {}).get("owned_by"),
            "server_version": (self._served or {}).get("version"),
        }

    def check(self) -> None:
        """Check that a server serves the judge's model.

        Raises:
            AutoLoRAEvalError: if no server answers, none serves the model, or two servers serve
                different models under its name.
        """
        self._portal.call(self._pool.check)

    def try_question(self) -> None:
        """Ask about a grey image, unless `identity` has done so.

        Raises:
            AutoLoRAEvalError: if the server refuses the question, for example since the API key is
                wrong. Some servers list their models to everybody.
        """
        self.identity()
        if self.spec.constraint != "auto":
            trials = protocol.Trials(self.spec, self.rubric, self._call_with_retries)
            self._portal.call(trials.require_reply, self._mode)

    async def _probe(self, server: Server) -> None:
        """Check that a server serves the judge's model, and the same one as the other servers."""
        served = await served_model(server, self.spec)
        if redacted(str(served), self._key) != str(served):
            served = {}  # the manifest must not contain the key
        if self._served is None:
            self._served = served
        elif served.get("root") != self._served.get("root"):
            raise OtherModelError(
                f"the judge's server at {server.url} serves '{served.get('root')}' as "
                f"'{self.spec.model}', but another one serves '{self._served.get('root')}'. All "
                "servers in judge.base_url must serve one model."
            )

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield each request with its reply, in order of completion.

        At most `concurrency` calls run at once, while as many further images are read ahead.

        Raises:
            AutoLoRAEvalError: if no server answers, or one call after the other fails.
        """
        self.identity()
        self._slots = asyncio.Semaphore(self.spec.concurrency)
        self._loop = self._portal.call(asyncio.get_running_loop)
        finished: _Finished = SimpleQueue()
        try:
            for request in requests:
                self._begin(request, finished)
                if len(self._in_flight) >= 2 * self.spec.concurrency or not finished.empty():
                    yield from self._collect(finished)
            while self._in_flight:
                yield from self._collect(finished)
        finally:
            for future in self._in_flight:
                future.cancel()
            self._in_flight.clear()

    def _begin(self, request: Request, finished: _Finished) -> None:
        # The portal would wait until the loop has begun the task.
        future = asyncio.run_coroutine_threadsafe(self._reply(request), self._loop)
        self._in_flight.add(future)
        future.add_done_callback(lambda done: finished.put((request, done)))
        if self._cancelled.is_set():  # meanwhile: `cancel` may have missed this future
            future.cancel()

    def _collect(self, finished: _Finished) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield the replies that arrived since the last call, then raise the first error."""
        batch = [finished.get()]
        while not finished.empty():
            batch.append(finished.get())
        self._in_flight.difference_update(future for _, future in batch)
        errors = [error for _, future in batch if (error := future.exception())]
        if group := [(asked, done.result()) for asked, done in batch if not done.exception()]:
            yield group
        if errors:
            raise errors[0]

    def cancel(self) -> None:
        """Cancel the calls in flight from another thread, in which `replies` then raises."""
        self._cancelled.set()
        for future in tuple(self._in_flight):
            future.cancel()

    def close(self) -> None:
        """Close the connections and end the thread of the event loop."""
        if not self._stop_loop.alive:
            return
        try:
            for server in self._pool.servers:
                self._portal.call(server.session.close)
        finally:
            self._stop_loop()

    async def _reply(self, request: Request) -> Reply:
        """Return the reply to one request, after as many calls as it takes."""
        try:
            picture = (await asyncio.to_thread(read_picture, request.image, MAX_IMAGE_BYTES))[0]
        except ImageError as error:
            return Reply(None, str(error), False, self.spec.model, 0.0, attempts=0)
        body = protocol.chat(self.spec, request.question, picture, request.repeat, self._mode)
        async with self._slots:
            reply = await self._call_with_retries(body)
        self._stop_after_repeated_failures(reply)
        return replace(reply, sent=picture.facts())

    def _redacted(self, reply: Reply) -> Reply:
        text, detail = (said and redacted(said, self._key) for said in (reply.text, reply.detail))
        return replace(reply, text=text, model=redacted(reply.model, self._key), detail=detail)

    async def _call_with_retries(self, body: Json) -> Reply:
        """Call until there is a reply or the retries are used up."""
        calls = failures = 0
        while True:
            sent = self._dialect.adapted(body)
            reply = await self._one_call(sent)
            calls += reply.attempts
            self._dialect.learn(body, reply)
            if reply.text is None and self._dialect.adapted(body) != sent:
                continue
            if reply.text is not None:
                await self._look_for_dropped_images(sent, reply)
            if failures == self.spec.max_retries or not _should_retry(reply):
                return self._redacted(replace(reply, attempts=calls))
            await asyncio.sleep(self._pause(failures, reply.retry_after))
            failures += 1

    async def _look_for_dropped_images(self, body: Json, reply: Reply) -> None:
        """Ask the first question once more without its image, if the server counts tokens.

        Some servers and proxies drop the images for a model without vision, which then answers from
        the text alone. They count the same tokens in both questions. A count below the number of
        words is not one of tokens.
        """
        if self._images_dropped is None and (reply.prompt_tokens or 0) > protocol.n_words(body):
            self._images_dropped = False
            blind = await self._one_call(protocol.without_image(body))
            self._images_dropped = blind.prompt_tokens == reply.prompt_tokens

    def _pause(self, failures: int, asked: float | None) -> float:
        """Return the seconds before a retry: exponential back-off with full jitter.

        It is at least as long as the server asks for, but not longer than `_longest_pause`.
        """
        highest = BACKOFF_SECONDS * 2.0 ** min(failures, 10)
        backoff = self._random.uniform(0.0, min(highest, 30.0, self._longest_pause))
        return backoff if asked is None else min(asked, self._longest_pause) + min(backoff, 1.0)

    async def _one_call(self, body: Json) -> Reply:
        """Make one call; if its server goes down meanwhile, repeat it on another server."""
        calls = 0
        while True:
            calls += 1
            server = await self._pool.acquire()
            server.active_calls += 1
            server.total_calls += 1
            try:
                reply = await protocol.call(server.session, body, self.spec.timeout)
            finally:
                server.active_calls -= 1
            reply = replace(reply, attempts=calls)
            if not _is_failure(reply):
                server.failures = 0
                return reply
            unreachable = reply.reason == "connection"
            await self._pool.record_failure(server, unreachable=unreachable)
            if server.down_reason is None or calls == MAX_FAILOVERS:
                return reply

    def _stop_after_repeated_failures(self, reply: Reply) -> None:
        """Stop the run if its server is up but answers no question."""
        if not _is_failure(reply):
            self._consecutive_failures = 0
            return
        self._consecutive_failures += 1
        said = f" ({reply.detail})" if reply.detail else ""
        if self._consecutive_failures >= max(MAX_CONSECUTIVE_FAILURES, 2 * self.spec.concurrency):
            raise JudgeUnavailableError(
                f"the judge's server at {', '.join(self.facts()['base_urls'])} is up, but the last "
                f"{self._consecutive_failures} requests failed, the last one after "
                f"{reply.attempts} attempt(s): {reply.reason}{said}. Check the server's log. The "
                "judgements so far are kept: run the same command again to continue."
            )


def _api_key(variable: str) -> str:
    key = os.environ.get(variable) or ""
    if not (key.isascii() and key.isprintable()):
        raise AutoLoRAEvalError(
            f"{variable} contains a line break or a non-ASCII character. Set it again."
        )
    return key


def _is_failure(reply: Reply) -> bool:
    """Return True if a call failed for a reason other than its question."""
    return is_transient(reply.reason) and reply.reason not in _ABOUT_THE_QUESTION


def _should_retry(reply: Reply) -> bool:
    failed_over = reply.attempts == MAX_FAILOVERS
    return (
        is_transient(reply.reason) and reply.reason not in protocol.NOT_RETRIED and not failed_over
    )
