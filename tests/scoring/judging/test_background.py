"""Judging beside generation ends with it, whatever the server does."""

from __future__ import annotations

import threading
import time

import pytest
from judge_server import Answer, Call, Hang
from scored_run import write_manifest

from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.scoring import background


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
