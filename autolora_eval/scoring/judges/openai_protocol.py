"""One call of the OpenAI protocol: the request body, and the meaning of each response."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math
import time
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.images import Picture
from autolora_eval.scoring.judges.config import JudgeConfig, Reply, Token, is_loopback
from autolora_eval.scoring.judges.server_pool import Server
from autolora_eval.scoring.judges.vllm_command import LIMITS
from autolora_eval.scoring.rubric import Question

MAX_ANSWER_BYTES = 4_000_000
FORBIDDEN_LOGPROB = -9000.0  # vLLM reports -9999 for tokens that the grammar forbids
# Less than the 5 seconds after which vLLM closes an idle connection.
KEEP_ALIVE_SECONDS = 4.0
MAX_DETAIL = 500  # characters kept of a server's own words
# vLLM takes unset sampling parameters from the model's generation_config.json. Many models set a
# repetition penalty there, which biases the second of two equal scores. The second half are vLLM's
# and SGLang's own; most other servers ignore them.
NEUTRAL = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_REFUSED_ARGUMENT = ("http_400", "http_422")


@dataclass(frozen=True)
class StructuredOutput:
    """How a server is asked to constrain its replies.

    Attributes:
        name: the value of `judge.constraint`.
        arguments: extra arguments of the chat completion.
        top_logprobs: alternatives requested for each token; 0 requests no log-probabilities.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    top_logprobs: int = 0


@dataclass(frozen=True)
class Answer:
    """The result of one call.

    Attributes:
        reply: the reply, or the reason why the call failed.
        retry_after: the server's Retry-After header in seconds; None if absent.
    """

    reply: Reply
    retry_after: float | None = None


class Dialect:
    """What a server's API does not take, learnt from the words with which it refuses a call.

    Attributes:
        refused: sampling parameters that are left out.
        limit: the name of the parameter that limits a reply's length.
    """

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.limit = "max_tokens"

    def spoken(self, body: Json) -> Json:
        """Return a request body as this server takes it."""
        said = {key: value for key, value in body.items() if key not in self.refused}
        said[self.limit] = said.pop("max_tokens")
        return said

    def learn(self, reply: Reply) -> None:
        """Note the arguments that a server refuses by name."""
        if reply.reason not in _REFUSED_ARGUMENT or reply.detail is None:
            return
        if "max_completion_tokens" in reply.detail:
            self.limit = "max_completion_tokens"
        self.refused |= {key for key in NEUTRAL if key in reply.detail}


class _BadAnswerError(Exception):
    """The response does not follow the protocol."""


class _StatusError(Exception):
    """The server refuses the call.

    Attributes:
        status: the HTTP status.
        retry_after: the Retry-After header in seconds; None if absent.
        words: what the server says about it; None if nothing.
    """

    def __init__(self, status: int, retry_after: float | None, words: str | None) -> None:
        super().__init__(status)
        self.status, self.retry_after, self.words = status, retry_after, words


def proxy(url: str) -> str | None:
    """Return the proxy of the environment for a server; None if it is reached directly.

    Raises:
        AutoLoRAEvalError: if the environment names a proxy that cannot be used.
    """
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or is_loopback(url) or urllib.request.proxy_bypass(parts.netloc):
        return None
    if urlsplit(found).scheme not in ("http", "https"):
        raise AutoLoRAEvalError(
            f"cannot connect to the judge's server at {url}: its proxy is not an http:// or "
            "https:// address. Check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or list the server in "
            "NO_PROXY."
        )
    return found


async def open_session(url: str, key: str, proxy: str | None) -> aiohttp.ClientSession:
    """Return the connections to a server.

    Args:
        url: the server's address, ending in `/v1`.
        key: the API key.
        proxy: from `proxy`.
    """
    return aiohttp.ClientSession(
        url.rstrip("/") + "/",
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),  # the callers limit whole calls
        proxy=proxy,
    )


def chat(
    spec: JudgeConfig, question: Question, picture: Picture, repeat: int, mode: StructuredOutput
) -> dict[str, Any]:
    """Return the arguments of one chat completion."""
    kind = picture.format.lower()
    url = f"data:image/{kind};base64,{base64.b64encode(picture.data).decode()}"
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": [{"role": "user", "content": content(question, url)}],
        "temperature": spec.temperature,
        "max_tokens": spec.max_tokens,
        "seed": spec.seed + repeat,
        **NEUTRAL,
        **mode.arguments,
    }
    if mode.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": mode.top_logprobs}
    return body


def content(question: Question, image_url: str) -> list[Json]:
    """Return a question as content parts of the protocol: text, image, text."""
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": image_url}}]
    if question.before:
        parts.insert(0, {"type": "text", "text": question.before})
    if question.after:
        parts.append({"type": "text", "text": question.after})
    return parts


async def call(session: aiohttp.ClientSession, body: Json, timeout: float) -> Answer:
    """Make one call. A failed call is an answer with a reason.

    Args:
        session: the server's connections.
        body: the request body, from `chat`.
        timeout: seconds from the first byte sent to the last byte received.
    """
    start, model = time.monotonic(), str(body["model"])
    retry_after = detail = None
    try:
        async with asyncio.timeout(timeout):
            # As a stream: aiohttp warns of large bytes.
            data = io.BytesIO(json.dumps(body).encode())
            answer = await _decoded(session.post("chat/completions", data=data))
        reply = _read(answer, model, time.monotonic() - start)
        return Answer(reply)
    except TimeoutError:
        reason = "timeout"
    except _StatusError as error:
        reason, retry_after = f"http_{error.status}", error.retry_after
        detail = error.words
    except (aiohttp.ClientError, OSError):
        reason = "connection"
    except _BadAnswerError as error:
        reason, detail = "bad_response", str(error)
    seconds = time.monotonic() - start
    return Answer(Reply(None, reason, False, model, seconds, detail=detail), retry_after)


async def _decoded(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Any:  # noqa: ANN401
    """Return the decoded JSON of a response.

    Raises:
        aiohttp.ClientError: if the response does not arrive whole.
        _StatusError: if the server refuses the call.
        _BadAnswerError: if the response is not JSON or too long.
    """
    data = bytearray()
    async with request as response:
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                break
    try:
        answer = None if len(data) > MAX_ANSWER_BYTES else json.loads(data)
    except (ValueError, RecursionError) as error:
        if response.ok:
            raise _BadAnswerError("not JSON") from error
        answer = data.decode(errors="replace")
    if not response.ok:
        said = answer.get("error", answer) if isinstance(answer, dict) else answer
        raise _StatusError(response.status, _retry_after(response.headers), _words(said))
    if len(data) > MAX_ANSWER_BYTES:
        raise _BadAnswerError("too long")
    return answer


def _words(error: object) -> str | None:
    """Return what a server says about a refused call, in one line; None if it says nothing."""
    said = error.get("message") if isinstance(error, dict) else error
    text = said if isinstance(said, str) else json.dumps(error)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return None if text in ("", "{}", "null") else text[:MAX_DETAIL]


def _read(answer: object, model: str, latency: float) -> Reply:
    """Return the reply in a response.

    A server that separates a model's thoughts puts the whole reply there if the model did not
    think, as with structured output. A truncated one is all thoughts.

    Raises:
        _BadAnswerError: if the response does not follow the protocol.
    """
    try:
        choice: Any = answer["choices"][0]  # type: ignore[index]
        message, finish = choice["message"], choice.get("finish_reason")
        text, thought = message.get("content"), message.get("reasoning_content")
        thought = message.get("reasoning") if thought is None else thought  # vLLM from 0.12 on
        model = str(answer.get("model") or model)  # type: ignore[attr-defined]
    except (LookupError, TypeError, AttributeError) as error:
        said = answer.get("error") if isinstance(answer, dict) else None
        raise _BadAnswerError(_words(said) or "no choice") from error
    if not (text is None or isinstance(text, str)):
        raise _BadAnswerError("content is not text")
    truncated, reason = finish == "length", None
    if not text and isinstance(thought, str) and not truncated:
        text = thought
    if text is None and truncated:
        reason = "truncated"
    elif text is None:
        if not (message.get("refusal") or finish == "content_filter"):
            raise _BadAnswerError("content is null, without a refusal")
        reason = "refused"
    # Beside a thought, the tokens are those of both.
    tokens = _tokens(choice.get("logprobs"), math.inf if thought else len(text or ""))
    return Reply(text, reason, truncated, model, latency, tokens=tokens)


def _tokens(logprobs: object, longest: float) -> tuple[Token, ...]:
    """Return the tokens of a reply with their alternatives; empty if the response has none.

    The end token, which some servers list, is omitted, and so are alternatives that a constraint
    forbids.

    Args:
        logprobs: the `logprobs` of the response.
        longest: the number of characters after which further tokens are omitted.
    """
    tokens: list[Token] = []
    length = 0
    try:
        for item in logprobs["content"]:  # type: ignore[index]
            if length >= longest:
                break
            tokens.append(Token(str(item["token"]), _alternatives(item)))
            length += len(tokens[-1].text)
    except (LookupError, TypeError, ValueError):
        return ()
    return tuple(tokens)


def _alternatives(item: Any) -> dict[str, float]:  # noqa: ANN401
    """Return log-probability by text, summing the probabilities of tokens with equal text."""
    listed, found = item["top_logprobs"], dict[str, float]()
    # A chosen token that is less likely than the top alternatives is not listed among them.
    is_listed = any(other["token"] == item["token"] for other in listed)
    for other in listed if is_listed else [*listed, item]:
        text, value = str(other["token"]), float(other["logprob"])
        if value > FORBIDDEN_LOGPROB:
            found[text] = float(np.logaddexp(found.get(text, -math.inf), value))
    return found


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; dates are ignored."""
    with contextlib.suppress(ValueError):
        seconds = float(headers.get("retry-after", ""))
        if 0.0 <= seconds < math.inf:
            return seconds
    return None


async def served_model(server: Server, spec: JudgeConfig, timeout: float) -> Json:
    """Return what a server reports about the model that it serves under the judge's name.

    Returns:
        `root` (the path or hub id it was loaded from), `owned_by` and `version`; each may be None.

    Raises:
        AutoLoRAEvalError: if the server does not answer or does not serve the model.
    """
    session, url = server.session, server.url
    try:
        async with asyncio.timeout(timeout):
            listed = await _decoded(session.get("models"))
        served = {str(model["id"]): model for model in listed["data"]}
    except _StatusError as error:
        raise AutoLoRAEvalError(
            f"the judge's server at {url} answers {error.status} to a request for its models. If "
            f"it needs an API key, set {spec.api_key_env}; check that judge.base_url ends in /v1."
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise AutoLoRAEvalError(
            f"the judge's server at {url} does not answer ({type(error).__name__}). Start one, "
            f"for example: vllm serve {spec.model} {LIMITS}; or set judge.base_url or judge.launch."
        ) from error
    except (_BadAnswerError, TypeError, LookupError, AttributeError) as error:
        raise AutoLoRAEvalError(
            f"the server at {url} does not speak the OpenAI protocol. Check judge.base_url."
        ) from error
    if spec.model not in served:
        raise AutoLoRAEvalError(
            f"the judge's server at {url} serves {', '.join(served) or 'nothing'}, not "
            f"'{spec.model}'. Set judge.model to a served model, or start a server for this one."
        )
    model = served[spec.model]
    version = await _version(session, url, timeout)
    return {"root": model.get("root"), "owned_by": model.get("owned_by"), "version": version}


async def _version(session: aiohttp.ClientSession, url: str, timeout: float) -> str | None:
    """Return the server's version if it reports one, as vLLM does at /version."""
    address = url.rstrip("/").removesuffix("/v1") + "/version"
    try:
        async with asyncio.timeout(timeout):
            answer = await _decoded(session.get(address))
        version = answer.get("version")
        return str(version)[:80] if version else None
    except Exception:  # optional information: any failure is fine
        return None
