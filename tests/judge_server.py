"""A server of the OpenAI protocol that fails on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

MODEL = "some-vlm"
VERDICT = '{"pc": 4}'


@dataclass(frozen=True)
class Http:
    """An answer as it goes over the line."""

    status: int = 200
    body: bytes = b"{}"
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    declared_length: int | None = None  # where it is not the body's


@dataclass(frozen=True)
class Hang:
    """No answer for so many seconds."""

    seconds: float


class Drop:
    """The connection is closed without an answer."""


@dataclass(frozen=True)
class Drip:
    """A body that comes byte by byte."""

    body: bytes
    seconds_a_byte: float


Answer = str | dict[str, Any] | Http | Hang | Drop | Drip


@dataclass
class Call:
    """What one chat request held."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def parts(self) -> list[dict[str, Any]]:
        return self.body["messages"][0]["content"]

    @property
    def image(self) -> bytes:
        (url,) = [p["image_url"]["url"] for p in self.parts if p["type"] == "image_url"]
        head, data = url.split(",", 1)
        assert head == "data:image/png;base64"
        return base64.b64decode(data, validate=True)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.image).hexdigest()


@dataclass
class JudgeServer:
    """Answers chat requests with `answer(call, number of the call)`, and keeps them."""

    answer: Callable[[Call, int], Answer] = lambda call, n: VERDICT
    models: Answer = field(default_factory=lambda: {"object": "list", "data": [{"id": MODEL}]})
    calls: list[Call] = field(default_factory=list)
    keep: bool = True  # whether to store calls
    total: int = 0
    model_calls: int = 0
    version: str | None = None
    key: str = ""  # without it, the models are not listed
    connections: set[object] = field(default_factory=set)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(text: object, finish_reason: str = "stop", **message: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return {"id": "1", "object": "chat.completion", "model": "served-as", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state, path = self.server.state, urlsplit(self.path).path  # whole URLs come to a proxy
        if path == "/version":
            self._send({"version": state.version} if state.version else Http(404))
            return
        assert path == "/v1/models"
        state.model_calls += 1
        may = not state.key or self.headers.get("Authorization") == f"Bearer {state.key}"
        self._send(state.models if may else Http(401))

    def do_POST(self) -> None:
        state: JudgeServer = self.server.state
        assert urlsplit(self.path).path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = Call({name.lower(): value for name, value in self.headers.items()}, body)
        with state.lock:
            state.connections.add(self.client_address)
            number, state.total = state.total, state.total + 1
            if state.keep:
                state.calls.append(call)
        answer = state.answer(call, number)
        self._send(completion(answer) if isinstance(answer, str) else answer)

    def _send(self, answer: Answer) -> None:
        if isinstance(answer, Hang):
            time.sleep(answer.seconds)
        if isinstance(answer, Hang | Drop):
            self.close_connection = True
            return
        if isinstance(answer, Drip):
            self._drip(answer)
            return
        http = answer if isinstance(answer, Http) else Http(body=json.dumps(answer).encode())
        length = len(http.body) if http.declared_length is None else http.declared_length
        self.send_response(http.status)
        for name, value in {
            "Content-Type": http.kind,
            "Content-Length": str(length),
            **http.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self._write(http.body)
        if length > len(http.body):
            self.close_connection = True

    def _drip(self, answer: Drip) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        for byte in answer.body:
            if not self._write(bytes([byte])):
                return
            time.sleep(answer.seconds_a_byte)

    def _write(self, data: bytes) -> bool:
        """Write, and return False if the client closed the connection."""
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True
            return False
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # many connections may be opened at once


@contextmanager
def judge_server(state: JudgeServer) -> Iterator[JudgeServer]:
    """Serve on a free port until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.state = state  # type: ignore[attr-defined]
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
