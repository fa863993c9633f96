"""The launched server: start, error messages, and a stop with all its workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judges import supervisor as guard
from autolora_eval.scoring.judges import vllm_server
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.vllm_server import launched_server, startup_error

FAKE = Path(__file__).with_name("fake_server.py")
SENTINEL = "key-that-nobody-may-read"
SOON = 10.0
GRACE = 0.3


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., JudgeConfig]:
    """A function that returns a judge whose server shows the behaviour it is given."""

    def make(*behaviour: str, timeout: float = 30.0) -> JudgeConfig:
        command = [sys.executable, str(FAKE), "{port}", "{name}", str(tmp_path), *behaviour]
        return JudgeConfig(
            rubric="r.yaml",
            model="miniature:judge",
            launch=True,
            launch_command=command,
            launch_timeout=timeout,
        )

    return make


@pytest.fixture(autouse=True)
def _short_grace_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE_SECONDS", GRACE)
    monkeypatch.setattr(vllm_server, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", SENTINEL)


def runs(folder: Path, name: str) -> bool:
    """Return whether the process that wrote its id runs and is not a zombie."""
    try:
        return psutil.Process(int((folder / name).read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(folder: Path, *names: str) -> None:
    end = time.monotonic() + SOON
    while left := [name for name in names if runs(folder, name)]:
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.05)


def failure(judge: JudgeConfig, folder: Path) -> str:
    """Return why a server could not be used."""
    log = folder / "server.log"
    with pytest.raises(AutoLoRAEvalError) as caught, launched_server(judge, log):
        pytest.fail("there is no server")
    assert SENTINEL not in str(caught.value) + log.read_text()
    return str(caught.value)


def test_server_runs_only_inside_the_block(spec, tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "new" / "server.log"
    with launched_server(spec(), log, said.append) as url:
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/v1", url)[1])  # type: ignore[index]
        with urllib.request.urlopen(f"{url}/models") as answer:
            assert b"miniature:judge" in answer.read()
        assert runs(tmp_path, "server")
    assert not runs(tmp_path, "server")
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    assert "miniature:judge" in said[0]
    assert str(log) in said[0]
    assert said[1].startswith("the judge's server answers after ")


def test_log_has_the_servers_output_but_no_key(spec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "the-hub-needs-it")
    monkeypatch.setenv("PYTHONPATH", "leads-to-our-packages")
    log = tmp_path / "server.log"
    log.write_text("of an earlier launch\n" * 99)
    with launched_server(spec(), log):
        pass
    text = log.read_text()
    assert text.startswith("variables:")
    assert "the-hub-needs-it" in text
    assert "leads-to-our-packages" not in text
    assert SENTINEL not in text


def test_error_quotes_the_log_of_a_failed_server(spec, tmp_path: Path) -> None:
    lines = failure(spec("dies", "the last words"), tmp_path).splitlines()
    assert lines[0] == "the judge's server ended with exit code 3 before it answered."
    assert lines[1:3] == ["The first error in its log:", "    RuntimeError: the root cause"]
    assert lines[3] == f"The end of its log, {tmp_path / 'server.log'}:"
    assert lines[4:] == [f"    line {n}" for n in range(21, 40)] + ["    the last words"]


@pytest.mark.parametrize(
    ("last_words", "advice"),
    [
        ("/x/python: No module named vllm", "python -m pip install vllm"),
        (
            "ValueError: Model architecture MllamaForConditionalGeneration was supported in vLLM "
            "until v0.10.2, and is not supported anymore.",
            "pip install 'vllm==0.10.2' 'transformers<5'",
        ),
        (
            "AttributeError: PreTrainedTokenizerFast has no attribute all_special_tokens_extended",
            "pip install 'transformers<5'",
        ),
        ("OSError: You are trying to access a gated repo.", "run 'hf auth login' or set HF_TOKEN"),
        ("401 Client Error: Unauthorized for url", "does not give 'miniature:judge' to this user"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "--gpu-memory-utilization"),
        ("ValueError: Free memory on device (3/80 GiB) on startup is less", "see nvidia-smi"),
        ("RuntimeError: Failed to infer device type", "vLLM sees no GPU"),
        ("api_server.py: error: unrecognized arguments: --maxlen", "judge.launch_args"),
        ("OSError: [Errno 98] Address already in use", "Run the same command again"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: x", "hf download miniature:judge"),
    ],
)
def test_known_causes_get_advice(last_words: str, advice: str, spec, tmp_path: Path) -> None:
    (log := tmp_path / "server.log").write_text(f"starting\n{last_words}\n")
    assert advice in str(startup_error("the judge's server ended", 3, log, spec())).splitlines()[0]


def test_program_that_cannot_start_is_reported(spec, tmp_path: Path) -> None:
    judge = spec().model_copy(update={"launch_command": ["no-such-program", "{port}"]})
    message = "'no-such-program' cannot be started: No such file or directory"
    assert message in failure(judge, tmp_path)


def test_server_that_never_answers_times_out(spec, tmp_path: Path) -> None:
    found = failure(spec("hangs", "worker", timeout=2.0), tmp_path)
    assert "did not answer within 2 s and was stopped" in found
    assert_gone(tmp_path, "server", "worker")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("renamed", "serves another, not 'miniature:judge'"),
        ("locked", "requires an API key (status 401)"),
    ],
)
def test_unusable_server_is_stopped(behaviour: str, message: str, spec, tmp_path) -> None:
    assert message in failure(spec(behaviour), tmp_path)
    assert_gone(tmp_path, "server")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_server_is_stopped_after_any_exception(error: BaseException, spec, tmp_path: Path) -> None:
    with pytest.raises(type(error)), launched_server(spec(), tmp_path / "server.log"):
        raise error
    assert_gone(tmp_path, "server")


def test_failure_caused_by_the_server_quotes_its_log(spec, tmp_path: Path) -> None:
    log = tmp_path / "server.log"

    def judge_while_the_server_is_killed() -> None:
        with launched_server(spec(), log):
            server = psutil.Process(int((tmp_path / "server").read_text()))
            supervisor = server.parent()
            server.kill()
            while supervisor.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
            raise AutoLoRAEvalError("the judge does not answer.")

    with pytest.raises(AutoLoRAEvalError) as caught:
        judge_while_the_server_is_killed()
    first, second, *_ = str(caught.value).splitlines()
    assert first == "the judge does not answer."
    assert second.startswith("The judge's server ended with exit code 137 during the judging: ")
    assert "out of memory" in second


def test_worker_that_ignores_sigterm_is_killed(spec, tmp_path: Path) -> None:
    started = time.monotonic()
    with launched_server(spec("worker"), tmp_path / "server.log"):
        assert runs(tmp_path, "worker")
        started = time.monotonic()
    assert not runs(tmp_path, "server")
    assert not runs(tmp_path, "worker")
    assert GRACE <= time.monotonic() - started < GRACE + guard.KILL_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to the guard")
def test_worker_in_another_session_is_killed(spec, tmp_path: Path) -> None:
    with launched_server(spec("apart"), tmp_path / "server.log"):
        assert runs(tmp_path, "worker")
    assert not runs(tmp_path, "server")
    assert_gone(tmp_path, "worker")


PARENT = """
import signal, sys, time
from pathlib import Path
from autolora_eval.scoring.judges import supervisor as guard
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.vllm_server import launched_server

guard.GRACE_SECONDS = 0.3
# A suite that runs in the background of a shell hands down that Ctrl-C is to be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
spec = JudgeConfig.model_validate_json(sys.argv[1])
folder = Path(sys.argv[2])
with launched_server(spec, folder / "server.log"):
    (folder / "ready").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "behaviour", "file"),
    [
        (signal.SIGKILL, "hangs", "server"),  # while the server starts
        (signal.SIGINT, "serves", "ready"),
        (signal.SIGTERM, "serves", "ready"),
    ],
)
def test_server_is_stopped_if_its_parent_is_killed(number, behaviour, file, spec, tmp_path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, spec("worker", behaviour).model_dump_json(), tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 240
    while not (tmp_path / file).exists():
        assert parent.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    assert runs(tmp_path, "server")
    assert runs(tmp_path, "worker")
    parent.send_signal(number)
    parent.wait(60)
    assert_gone(tmp_path, "server", "worker")
