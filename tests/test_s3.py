"""A run folder on a server that speaks S3, which is killed in the middle and loses every file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import other_environment
import pytest

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import write_text
from autolora_eval.runs import storage

pytestmark = pytest.mark.vllm
URL = "s3://bucket/runs/mine"


def program() -> str | None:
    """Return moto's server: that of `make vllm`, or the one on PATH."""
    beside = other_environment.PYTHON.with_name("moto_server")
    return str(beside) if beside.exists() else shutil.which("moto_server")


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


class Server:
    """moto's server with one bucket. It keeps its files in memory: killing it loses them.

    Attributes:
        variables: what says to a client where it is, and who asks.
    """

    def __init__(self, program: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.command = [program, "-H", "127.0.0.1", "-p", port]
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.start()

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, stdout=quiet, stderr=quiet)
        wait_until(lambda: self.answer("PUT", "bucket") is not None)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def answer(self, method: str, path: str) -> bytes | None:
        url = f"{self.variables['AWS_ENDPOINT_URL']}/{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
                return answer.read()
        except OSError:
            return None

    def images(self) -> int:
        """Return how many images are there."""
        return (self.answer("GET", "bucket?list-type=2") or b"").count(b".png</Key>")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = program()
    if found is None:
        other_environment.leave_out("no moto_server")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = Server(found)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.kill()


def test_a_server_that_is_killed_and_forgets_everything_gets_everything(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SECONDS_BETWEEN", 0.1)
    files = {f"images/LoRA+CFG/a-castle/{seed}.png": f"pixels {seed}" for seed in range(4)}
    files |= {"images/LoRA+CFG/metadata.jsonl": "", "manifest.json": "{}"}
    with storage.working_copy(URL) as copy:
        for n, (name, text) in enumerate(files.items()):
            if n == 2:
                wait_until(lambda: server.images() == 2)
                server.kill()
                write_text(copy / name, text)
                server.start()
                assert server.images() == 0
            write_text(copy / name, text)
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path))
    with storage.working_copy(URL, finished=True) as fresh:
        assert fresh != copy
        assert {name: (fresh / name).read_text() for name in files} == files
    server.kill()
    monkeypatch.setattr(storage, "TRIES_AT_START", 1)
    with pytest.raises(AutoLoRAEvalError, match=f"'{URL}' does not answer as it should"):
        storage.Storage(URL).fetch()
