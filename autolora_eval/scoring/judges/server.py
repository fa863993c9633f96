"""A client of one server of the OpenAI protocol: its connections, errors and models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from anyio.from_thread import start_blocking_portal

from autolora_eval._errors import AutoLoRAEvalError, did_you_mean
from autolora_eval._files import Json
from autolora_eval.scoring.judges.config import WITHOUT_A_LIST, JudgeConfig, is_loopback, listing
from autolora_eval.scoring.judges.vllm_command import LIMITS

MAX_ANSWER_BYTES = 4_000_000
MAX_DETAIL = 500  # characters kept of a server's error message
REDACTED = "[key]"
# A shorter key is not a secret but a placeholder, such as the 'x' that a local server accepts.
MIN_SECRET_LENGTH = 8
_TAG = re.compile("<[^>]*>")
MAX_BEGINNING = 80  # bytes kept of a response that is not JSON
# Less than the 5 seconds after which vLLM closes an idle connection.
KEEP_ALIVE_SECONDS = 4.0
PROBE_SECONDS = 5.0  # timeout of a probe


class BadAnswerError(Exception):
    """The response does not follow the protocol."""


class StatusError(Exception):
    """A server answered with an error, perhaps with a message and a Retry-After header."""

    def __init__(self, status: int, retry_after: float | None, detail: str | None) -> None:
        super().__init__(status)
        self.status, self.retry_after, self.detail = status, retry_after, detail


@dataclass
class Server:
    """One address at which the judge is served. Its `failures` are consecutive."""

    url: str
    session: aiohttp.ClientSession
    active_calls: int = 0
    total_calls: int = 0
    failures: int = 0
    down_reason: str | None = None
    last_probe: float = 0.0


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


async def open_server(url: str, key: str, proxy: str | None) -> Server:
    """Return a server at an address that ends in `/v1`, with open connections."""
    session = aiohttp.ClientSession(
        url.rstrip("/") + "/",
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),  # the callers limit whole calls
        proxy=proxy,
    )
    return Server(url, session)


async def decoded(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Any:  # noqa: ANN401
    """Return the decoded JSON of a response.

    Raises:
        aiohttp.ClientError: if the response does not arrive whole.
        StatusError: if the server answers with an error.
        BadAnswerError: if the response is not JSON or too long.
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
        if response.ok and not response.history:
            beginning = error_message(data[:MAX_BEGINNING].decode(errors="replace"))
            raise BadAnswerError(f"not JSON: {beginning}" if beginning else "not JSON") from error
        answer = data.decode(errors="replace")
    if response.history and (not response.ok or response.method != response.history[0].method):
        # Behind 301 and 302 a question has become a GET, and on another host it has lost its key.
        where = f"it redirects to {response.url.origin()}{response.url.path}"
        raise StatusError(response.history[0].status, None, where)
    if not response.ok:
        said = answer.get("error", answer) if isinstance(answer, dict) else answer
        raise StatusError(response.status, _retry_after(response.headers), error_message(said))
    if len(data) > MAX_ANSWER_BYTES:
        raise BadAnswerError("too long")
    return answer


def error_message(error: object) -> str | None:
    """Return a server's error message on one line, without HTML; None if it is empty."""
    said = error.get("message") if isinstance(error, dict) else error
    text = said if isinstance(said, str) else json.dumps(error)
    text = _TAG.sub(" ", text) if text.startswith("<") else text  # a gateway's page
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return None if text in ("", "{}", "null") else text[:MAX_DETAIL]


def redacted(text: str, key: str) -> str:
    """Return what a server says without the API key, since it is written to disk."""
    return text.replace(key, REDACTED) if len(key) >= MIN_SECRET_LENGTH else text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, which may be a date; None without a valid one."""
    said = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        seconds = float(said)
        return seconds if 0.0 <= seconds < math.inf else None
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None


async def served_model(server: Server, spec: JudgeConfig) -> Json:
    """Return what a server reports about the model that it serves under the judge's name.

    Returns:
        `root` (the path or hub id it was loaded from), `owned_by` and `version`; each may be None.
        `weights`: their number and bytes, by which llama.cpp tells models of one name apart.
        `unlisted`: True if the server does not list the model. It has then answered a question.

    Raises:
        AutoLoRAEvalError: if the server does not answer or does not serve the model.
    """
    served = await _listed_models(server, spec)
    if served is None:
        return {"unlisted": True, "version": await _version(server)}
    model = _entry(served, spec)
    if model is None:
        raise AutoLoRAEvalError(
            f"the judge's server at {server.url} serves {listing(served)}, not '{spec.model}'."
            f"{did_you_mean(spec.model, served, or_list=False)} Set judge.model to a served model, "
            "or start a server for this one."
        )
    meta = model.get("meta")
    sizes = meta if isinstance(meta, dict) else {}
    return {
        "root": model.get("root"),
        "weights": {name: sizes[name] for name in ("n_params", "size") if name in sizes},
        "owned_by": model.get("owned_by"),
        "version": await _version(server),
    }


def listed_now(url: str, spec: JudgeConfig) -> dict[str, Json] | None:
    """Return the models that a server lists by name, from outside an event loop.

    Returns:
        None if it does not list the judge's model. It has then answered a question.

    Raises:
        AutoLoRAEvalError: if the server does not answer; its cause is a StatusError if it answers
            with an error.
    """

    async def ask() -> dict[str, Json] | None:
        server = await open_server(url, os.environ.get(spec.api_key_env) or "EMPTY", proxy(url))
        async with server.session:
            return await _listed_models(server, spec)

    with start_blocking_portal() as portal:  # also works inside another loop, as in Jupyter
        return portal.call(ask)


async def _listed_models(server: Server, spec: JudgeConfig) -> dict[str, Json] | None:
    """Return the models that a server lists by name.

    A server without a list is asked a question as the judge's model. So is a hosted one that does
    not list it: on Azure, a model has the name of its deployment, which is not listed. A local
    server may answer under any name.

    Returns:
        None if it answers.
    """
    served = await _served_models(server, spec)
    if served is not None and (_entry(served, spec) or not _is_hosted(server.url)):
        return served
    try:
        await ask_briefly(server, spec)
    except AutoLoRAEvalError as error:
        status = getattr(error.__cause__, "status", None)
        if served is not None and status in (400, 404):
            return served
        if status != 400:  # the question may be the cause: perhaps the server wants an image
            raise
    return None


def _entry(served: Mapping[str, Json], spec: JudgeConfig) -> Json | None:
    # Gemini lists 'models/NAME', and takes both names.
    return served.get(spec.model) or served.get(f"models/{spec.model}")


def _is_hosted(url: str) -> bool:
    return urlsplit(url).scheme == "https"


async def _served_models(server: Server, spec: JudgeConfig) -> dict[str, Json] | None:
    """Return the models that a server lists by name; None if it lists none."""
    try:
        with _explained(server, spec, "a request for its models"):
            async with asyncio.timeout(PROBE_SECONDS):
                listed = await decoded(server.session.get("models"))
            models = listed if isinstance(listed, list) else listed["data"]  # Together's is a list
            return {str(model["id"]): model for model in models}
    except AutoLoRAEvalError as error:
        cause = error.__cause__
        if isinstance(cause, StatusError) and cause.status in WITHOUT_A_LIST:
            return None
        raise


async def ask_briefly(server: Server, spec: JudgeConfig) -> None:
    """Ask without an image, which shows whether address, key and name are right.

    Raises:
        AutoLoRAEvalError: if they are not, or the server does not answer. Its cause is a
            StatusError if it answers with an error.
    """
    messages = [{"role": "user", "content": "Hello"}]
    # Some hosted models refuse `max_tokens`.
    body = json.dumps({"model": spec.model, "messages": messages, "stream": False})
    with _explained(server, spec, "a question"):
        try:
            async with asyncio.timeout(spec.timeout):
                answer = await decoded(server.session.post("chat/completions", data=body))
        except StatusError as error:
            if error.status in (413, 422, 429):
                return
            raise
        if said := error_message(answer.get("error") or ""):
            raise StatusError(200, None, said)
        answer["choices"][0]


@contextlib.contextmanager
def _explained(server: Server, spec: JudgeConfig, asked: str) -> Iterator[None]:
    """Turn a failed call, in which a server was `asked` something, into an AutoLoRAEvalError."""
    url = server.url
    try:
        yield
    except StatusError as error:
        key = server.session.headers["Authorization"].removeprefix("Bearer ")
        said = f" ({redacted(error.detail, key)})" if error.detail else ""
        step = "Check that judge.base_url ends in /v1, and judge.model."
        if error.status in (401, 403):
            step = f"If it needs an API key, set {spec.api_key_env}."
        elif error.status == 429 or (error.status >= 500 and error.status not in WITHOUT_A_LIST):
            step = "It may still be starting: check its log."
        raise AutoLoRAEvalError(
            f"the judge's server at {url} answers {error.status} to {asked}{said}. {step}"
        ) from error
    except aiohttp.ClientSSLError as error:
        raise AutoLoRAEvalError(
            f"cannot make a secure connection to the judge's server at {url} ({error.strerror}). "
            "Check whether it is http:// or https://. If its certificate is signed by an authority "
            "of your own, set SSL_CERT_FILE."
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise AutoLoRAEvalError(
            f"the judge's server at {url} does not answer ({type(error).__name__}). Start one, "
            f"for example: vllm serve {spec.model} {LIMITS}; or set judge.base_url or judge.launch."
        ) from error
    except (BadAnswerError, TypeError, LookupError, AttributeError) as error:
        raise AutoLoRAEvalError(
            f"the server at {url} does not speak the OpenAI protocol. Check judge.base_url."
        ) from error


async def _version(server: Server) -> str | None:
    """Return the server's version if it reports one, as vLLM does at /version."""
    address = server.url.rstrip("/").removesuffix("/v1") + "/version"
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            answer = await decoded(server.session.get(address))
        version = answer.get("version")
        return str(version)[:80] if version else None
    except Exception:  # optional information: any failure is fine
        return None
