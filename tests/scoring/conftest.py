"""Fixtures: a judge's server that fails on demand, judges that use it, and rubric files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, JudgeServer, judge_server
from scored_run import picture

from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.openai_judge import OpenAIJudge


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leads nowhere: a server of this machine is spoken to directly."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(JudgeServer()) as state:
        yield state


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    picture(("cell", 0, 0)).save(path)
    return path


@pytest.fixture
def judge(server: JudgeServer) -> Iterator[Callable[..., OpenAIJudge]]:
    """A function that returns a judge at the server, with changes to how it asks."""
    made = []

    def make(**changes: Any) -> OpenAIJudge:
        settings = {"timeout": 60.0, "max_retries": 0, "base_url": server.url} | changes
        settings = {"constraint": "plain", "give_up_after": 0.2} | settings
        rubric = settings.pop("rubric", None)
        spec = JudgeConfig(rubric="r", model=MODEL, **settings)
        made.append(OpenAIJudge(spec, rubric))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a rubric's text to a file."""

    def write_text(text: str) -> Path:
        path = tmp_path / "rubric.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text
