"""Judging beside generation ends with it, whatever the server does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing

import pytest
from conftest import ROOT
from judge_server import Answer, Call, Hang
from scored_run import write_manifest

from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.pipeline import background
from autolora_eval.scoring.judges.config import Request
from autolora_eval.scoring.judges.openai_judge import OpenAIJudge


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
