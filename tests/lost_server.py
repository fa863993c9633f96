"""A run whose folder is on a server that speaks S3, which is killed and loses every file.

`python tests/lost_server.py` prints whether the run ends with the results of a local one; options
such as `--engine ray` go to the command. It takes minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import other_environment
from lost_node import contents

from autolora_eval._files import CACHE_VARIABLE

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


def main() -> int:
    """Run, and compare."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray has it: other sums differ in their last bits
    found = program()
    if found is None:
        print("no moto_server: make it with 'make vllm'")
        return 1
    server = Server(found)
    limits = ["--limit-prompts", "1", "--limit-seeds", "2"]
    base = [sys.executable, "-m", "autolora_eval"]
    with tempfile.TemporaryDirectory(prefix="autolora-eval-") as scratch:

        def on(machine: str) -> dict[str, str]:
            return {**os.environ, **server.variables, CACHE_VARIABLE: f"{scratch}/{machine}"}

        run = [*base, "run", "quickstart", *limits, "--output"]
        process = subprocess.Popen([*run, URL, *sys.argv[1:]], env=on("first"))
        wait_until(lambda: server.images() > 1 or process.poll() is not None, 600)
        print(f"the server is killed with {server.images()} images")
        server.kill()
        time.sleep(2)
        server.start()
        code = process.wait()
        verified = subprocess.run([*base, "verify", URL], env=on("second")).returncode
        server.kill()
        subprocess.run([*run, f"{scratch}/here"], check=True, env=on("third"))
        (copy,) = Path(scratch, "second", "runs").glob("*/mine")
        equal = contents(copy) == contents(Path(scratch, "here"))
    print(f"exit codes {code} and {verified}, equal: {equal}")
    return int(bool(code) or bool(verified) or not equal)


if __name__ == "__main__":
    sys.exit(main())
