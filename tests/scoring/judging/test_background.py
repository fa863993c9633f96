"""A server judges during generation: results are those of the stages in turn, and both end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from json_lines import read_jsonl
from judge_server import MODEL, Answer, Call, Hang, Http, JudgeServer, judge_server
from judging import by_content
from scored_run import write_manifest

import autolora_eval
from autolora_eval.config.load import find_benchmark
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.pipeline import background
from autolora_eval.runs.folder import Run
from autolora_eval.scoring.judge import Request
from autolora_eval.scoring.judges.openai_judge import OpenAIJudge

N = 2 * 2 * 3  # methods × prompts × seeds
SAMPLER = "pictures_beside.draw"
CODE = """
import time
from pathlib import Path
import numpy as np

FOLDER = Path(__file__).parent

def draw(prompt, seed, model, *, brightness: int):
    "The first image says that it has begun, and the last one waits for the judge."
    (FOLDER / "begun").touch()
    if brightness == 200 and seed == 2 and prompt.startswith("a green"):
        deadline = time.monotonic() + 20
        while not (FOLDER / "asked").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        (FOLDER / "ended").touch()
    rng = np.random.default_rng([seed, brightness, len(prompt)])
    return rng.integers(0, brightness, (model.size[1], model.size[0], 3)).astype(np.uint8)
"""


@pytest.fixture
def place(workplace: Path, no_report: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a rubric and a sampler."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    (workplace / "pictures_beside.py").write_text(CODE)
    return workplace


def run(place: Path, server: JudgeServer, name: str, *, waits: bool = True) -> Run:
    for mark in ("begun", "asked", "ended"):
        (place / mark).unlink(missing_ok=True)
    if not waits:
        (place / "asked").touch()
    content: dict[str, Any] = yaml.safe_load(find_benchmark("quickstart").read_text()) | {
        "prompts": ["a red heart", "a green star"],
        "seeds": {"start": 0, "count": 3},
        "methods": {str(n): {"sampler": SAMPLER, "brightness": n} for n in (80, 200)},
        "baseline": "80",
        "features": {"extractor": "colours"},
        "judge": {"model": MODEL, "base_url": server.url, "rubric": "rubric.yaml"}
        | {"constraint": "plain", "cache": False, "max_retries": 0},
    }
    (place / "bench.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return autolora_eval.run(place / "bench.yaml", place / name)


def judgements(made: Run) -> dict[str, list[dict[str, Any]]]:
    folder = made.folder.path / "judgements"
    return {
        path.name: [row | {"latency_seconds": 0} for row in read_jsonl(path)]
        for path in folder.glob("*.jsonl")
    }


def assert_same(one: Run, other: Run) -> None:
    for name in ("table.csv", "diversity.csv", "comparisons.csv", "unscored.csv"):
        assert (one.folder.path / name).read_bytes() == (other.folder.path / name).read_bytes()
    for path in (one.folder.path / "features").iterdir():
        assert path.read_bytes() == (other.folder.path / "features" / path.name).read_bytes()


@pytest.mark.model
def test_results_are_those_of_the_stages_in_turn(place: Path, monkeypatch) -> None:
    """Each image is asked about once. What a failing server did not answer is asked again."""
    calls: dict[str, list[bool]] = {"beside": [], "failing": [], "in turn": []}
    runs: dict[str, Run] = {}
    name = "beside"

    def answer(call: Call, number: int) -> Answer:
        ended = (place / "ended").exists()
        if (place / "begun").exists():
            calls[name].append(ended)
            (place / "asked").touch()
            if name == "failing" and not ended:
                return Http(500)
        return by_content(call, number)

    with judge_server(JudgeServer(answer=answer)) as server:
        for name in calls:
            if name == "in turn":
                monkeypatch.setattr(background, "PAUSE_SECONDS", 600.0)
            runs[name] = run(place, server, name, waits=name != "in turn")
    assert len(calls["beside"]) == len(calls["in turn"]) == N
    assert not calls["beside"][0], "the first image was judged before the last was made"
    assert all(calls["in turn"])
    assert len(calls["failing"]) > N
    beside, in_turn = runs["beside"], runs["in turn"]
    assert_same(beside, in_turn)
    assert_same(runs["failing"], in_turn)
    assert judgements(beside) == judgements(in_turn)
    one, other = beside.manifest, in_turn.manifest
    assert one.judge == other.judge
    assert (one.stages["judge"].done, one.stages["judge"].reused) == (N, 0)


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(make, folder, server, monkeypatch) -> None:
    monkeypatch.setattr(background, "PAUSE_SECONDS", 0.01)
    plan, asked = make(timeout=60.0), threading.Event()
    write_manifest(plan, folder, None)

    def hang(call: Call, number: int) -> Answer:
        asked.set()
        return Hang(60.0)

    def interrupted() -> None:
        with background.BackgroundJudging(folder) as judging:
            judging.settings = judge_settings(plan)
            judging.start()
            assert asked.wait(20.0)
            raise KeyboardInterrupt

    server.answer, started = hang, time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 20.0


def test_a_call_that_begins_while_all_are_cancelled_is_cancelled_too(make, server, folder) -> None:
    settings = judge_settings(make(timeout=60.0))
    server.answer = lambda call, number: Hang(60.0)
    with closing(OpenAIJudge(settings.config, settings.rubric)) as judge:
        judge.cancel()
        request = Request(ROOT / "reports/sample/cost.png", settings.rubric.question("a cat"))
        with pytest.raises(CancelledError):
            list(judge.replies([request]))
