"""The prompt-only rubric: its text, its replies, and its use in a benchmark."""

from __future__ import annotations

import re

import pytest
from rubrics import shipped

from autolora_eval.analysis.sentences import metrics_of
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.reply import parse_reply

RUBRIC, STYLE = shipped("prompt_only"), shipped("style")
# Scores by another text are other scores: who changes the text changes this, and knows it.
SHA256 = "d516e8fa96c2cfc6dee7f868cfa7625d4bf91f0bc54cae17722a3028c330888f"


def test_text_is_the_one_of_the_published_scores() -> None:
    assert RUBRIC.sha256 == SHA256


def test_prompt_correspondence_is_defined_as_in_the_style_rubric() -> None:
    assert RUBRIC.scores == {"pc": STYLE.scores["pc"]}
    levels = [re.findall(r"^\d: .*", text, re.MULTILINE) for text in (RUBRIC.text, STYLE.text)]
    assert levels[0] == levels[1][:6]


@pytest.mark.parametrize("verdict", range(6))
def test_requested_reply_is_parsed(verdict: int) -> None:
    form = RUBRIC.text.rstrip().splitlines()[-1]
    reply = form.replace("N", str(verdict))
    assert parse_reply(reply, RUBRIC).scores == {"pc": float(verdict)}
    assert re.fullmatch(reply_pattern(RUBRIC), reply)


def test_benchmark_uses_it_by_name(planned) -> None:
    judge = {"rubric": "prompts/rubrics/prompt_only.yaml", "model": "some-vlm"}
    rubric = planned(judge=judge).benchmark.rubric
    found = [metric.column for metric in metrics_of(rubric.scores)]
    assert found == ["diversity", "pc", "div_pc"]
