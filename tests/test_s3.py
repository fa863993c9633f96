"""A run folder on a server that speaks S3, which is killed in the middle and loses every file.

`tests/lost_server.py` does this to a whole run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import other_environment
import pytest
from lost_server import URL, Server, program, wait_until

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import write_text
from autolora_eval.runs import storage

pytestmark = pytest.mark.vllm


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
