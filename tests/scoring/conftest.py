"""Fixtures: a judge's server that fails on demand, judges that use it, and rubric files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, JudgeServer, judge_server
from rubrics import shipped
from scored_run import picture

from autolora_eval.scoring.judges import openai_judge
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.openai_judge import OpenAIJudge
from autolora_eval.scoring.rubric import Rubric


@pytest.fixture(scope="session")
def rubric() -> Rubric:
    """The paper's: prompt_correspondence and style_adherence, each from 0 to 5."""
    return shipped("pixel_art")


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not exist. A server of this machine is reached without it."""
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
def judge(
    server: JudgeServer, rubric: Rubric, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., OpenAIJudge]]:
    """A function that returns a judge on the server, with other settings."""
    monkeypatch.setattr(openai_judge, "BACKOFF_SECONDS", 0.01)
    made = []

    def make(**changes: Any) -> OpenAIJudge:
        settings = {"timeout": 60.0, "max_retries": 0, "constraint": "plain", "give_up_after": 0.2}
        settings |= {"base_url": server.url} | changes
        asked = settings.pop("rubric", rubric)
        made.append(OpenAIJudge(JudgeConfig(rubric="r", model=MODEL, **settings), asked))
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
