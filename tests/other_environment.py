"""The environment that `make vllm` makes: vLLM, timm and an S3 server, which are not in
the product's own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(os.environ.get("AUTOLORA_EVAL_VLLM_PYTHON", ROOT / "build/vllm/bin/python"))


def require() -> None:
    """Leave a test out where that environment is not, but never in CI."""
    if not PYTHON.exists():
        leave_out(f"no vLLM at {PYTHON}")


def printed_by(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of this folder there, and return the JSON of the last line that it prints."""
    require()
    env = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / script, *map(str, arguments)],
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def leave_out(what: str) -> NoReturn:
    """Leave a test out, and say what is not there; in CI, fail."""
    reason = f"{what}: make it with 'make vllm'"
    if os.environ.get("AUTOLORA_EVAL_REQUIRE_VLLM"):
        pytest.fail(reason)
    pytest.skip(reason)
