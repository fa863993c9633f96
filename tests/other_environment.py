"""The environment that `make vllm` makes: vLLM and timm, which the product's own does not have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(os.environ.get("AUTOLORA_EVAL_VLLM_PYTHON", ROOT / "build/vllm/bin/python"))


def require() -> None:
    """Leave a test out where that environment is not, but never in CI."""
    if not PYTHON.exists():
        reason = f"no vLLM at {PYTHON}: make it with 'make vllm'"
        if os.environ.get("AUTOLORA_EVAL_REQUIRE_VLLM"):
            pytest.fail(reason)
        pytest.skip(reason)
