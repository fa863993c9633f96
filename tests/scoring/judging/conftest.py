"""Fixtures: a judge's server, the plan of a benchmark that uses it, and a run's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer
from judging import SECRET
from scored_run import write_images

from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import RunFolder


@pytest.fixture
def server(server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JudgeServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", SECRET)
    monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path / "cache"))
    return server


@pytest.fixture
def make(server, planned, benchmark_data) -> Callable[..., Plan]:
    """A function that returns the plan of the benchmark, with changes to its judge."""

    def plan(**judge: Any) -> Plan:
        settings = {"base_url": server.url, "max_retries": 0, "concurrency": 4, "timeout": 5.0}
        settings |= {"constraint": "plain", "give_up_after": 0.2, "cache": False}
        benchmark_data["judge"] = benchmark_data["judge"] | settings | judge
        return planned()

    return plan


@pytest.fixture
def folder(make: Callable[..., Plan], tmp_path: Path) -> RunFolder:
    write_images(make(), folder := RunFolder(tmp_path / "run"))
    return folder
