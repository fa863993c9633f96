"""A run folder on a server that speaks S3, which is killed in the middle and loses every file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import other_environment
import pytest
from command import run_command
from lost_node import contents
from small_benchmark import SEEDS, small_benchmark

from autolora_eval.runs import storage

pytestmark = pytest.mark.vllm

SAMPLER = """
import os
import time
from pathlib import Path

import numpy as np


def draw(prompt, seed, model, *, waits: bool = False):
    "May wait until the server was killed and is back."
    end = time.monotonic() + 60
    while waits and not Path(os.environ["AUTOLORA_EVAL_MARK"]).exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return np.random.default_rng([seed, waits]).integers(0, 256, (*model.size, 3), dtype=np.uint8)
"""
URL = "s3://bucket/runs/mine"


class Server:
    """moto's server, which keeps its files in memory."""

    def __init__(self, program: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [program, "-H", "127.0.0.1", "-p", str(self.port)]
        self.start()

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, **quiet)
        wait_until(lambda: self.answers("PUT", "bucket"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def answers(self, method: str, path: str) -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/{path}", method=method))
        except (OSError, urllib.error.HTTPError):
            return False
        return True

    def has_images(self) -> bool:
        listing = f"{self.url}/bucket?list-type=2&prefix=runs/mine/images/"
        with urllib.request.urlopen(listing) as answer:
            return answer.read().count(b".png</Key>") >= SEEDS


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    beside = other_environment.PYTHON.with_name("moto_server")
    program = str(beside) if beside.exists() else shutil.which("moto_server")
    if program is None:
        other_environment.leave_out(f"no S3 server at {beside}")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = Server(program)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.kill()


def test_a_server_that_is_killed_and_forgets_everything_changes_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("AUTOLORA_EVAL_MARK", str(mark))
    monkeypatch.setattr(storage, "SECONDS_BETWEEN", 0.1)
    draw = {"sampler": "drawing.draw"}
    methods = {"LoRA+CFG": draw, "Waits": draw | {"waits": True}}
    benchmark = small_benchmark(tmp_path, SAMPLER, methods)

    def kill_and_restart() -> None:
        wait_until(server.has_images)  # those of the first method
        server.kill()
        time.sleep(0.5)
        server.start()
        assert not server.has_images()
        mark.touch()

    outage = threading.Thread(target=kill_and_restart)
    outage.start()
    finished = run_command("score", benchmark, "--output", URL)
    assert finished.code == 2  # nothing to score yet, and nothing was sent
    finished = run_command("run", benchmark, "--output", URL)
    outage.join()
    assert (finished.code, finished.stderr) == (0, "")
    assert f"stored: {URL}" in finished.stdout

    assert run_command("run", benchmark, "--output", tmp_path / "local").code == 0
    # As on another machine, with a working copy of its own.
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path / "elsewhere"))
    assert run_command("verify", URL).code == 0
    (copy,) = (tmp_path / "elsewhere" / "runs").glob("*/mine")
    assert len(contents(copy)) == 2 * SEEDS + 2 + 3
    assert contents(copy) == contents(tmp_path / "local")
