"""The environment that `make vllm` makes: vLLM, timm and an S3 server, which are not in
the product's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(os.environ.get("AUTOLORA_EVAL_VLLM_PYTHON", ROOT / "build/vllm/bin/python"))


def require() -> None:
    """Leave a test out where that environment is not, but never in CI."""
    if not PYTHON.exists():
        leave_out(f"no vLLM at {PYTHON}")


def leave_out(what: str) -> NoReturn:
    """Leave a test out, and say what is not there; in CI, fail."""
    reason = f"{what}: make it with 'make vllm'"
    if os.environ.get("AUTOLORA_EVAL_REQUIRE_VLLM"):
        pytest.fail(reason)
    pytest.skip(reason)
