"""The part of a launched server's settings that determines its replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.vllm_command import launched_identity

UVX = ["uvx", "--python", "3.12", "vllm", "serve", "{model}", "--port", "{port}"]


def of(**given: Any) -> dict[str, Any]:
    settings = {"rubric": "r", "model": "org/vlm", "launch": True, "vllm_python": "python"}
    return launched_identity(JudgeConfig(**settings | given))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"launch": False, "launch_args": ["--dtype", "half"]}, {}),
        ({"launch_args": ["--max-model-len", "8192", "--gpu_memory_utilization=0.5"]}, {}),
        ({"launch_args": ["--quantization=fp8"]}, {"arguments": ["--quantization fp8"]}),
        (
            {"launch_args": ["--quantization", "fp8", "--dtype", "half", "--port", "1"]},
            {"arguments": ["--dtype half", "--quantization fp8"]},
        ),
        ({"launch_args": ["-q", "fp8", "--seed", "-1"]}, {"arguments": ["--seed -1", "-q fp8"]}),
        ({"launch_command": UVX}, {}),
        ({"launch_command": [*UVX, "--dtype", "half"]}, {"arguments": ["--dtype half"]}),
        (
            {"launch_command": UVX, "launch_args": ["--hf_overrides", "{}"]},
            {"arguments": ["--hf-overrides {}"]},
        ),
    ],
)
def test_relevant_arguments_of_a_launched_server(given: Any, found: Any) -> None:
    assert of(**given) == found


def test_weights_of_a_folder_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    seen = []
    for weights in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        seen.append(of(model=str(tmp_path))["weights"])
    assert seen[0] != seen[1]
