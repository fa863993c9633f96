"""The judge in this process answers the rubric about the character, with its reasons."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from creatures import creatures
from in_process import ask, judge, said

from autolora_eval._resources import shipped_root
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judges.base import Request
from autolora_eval.scoring.reply import expected_scores, parse_reply
from autolora_eval.scoring.rubric import Rubric, read_rubric
from recipes.character import TRAITS


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return read_rubric(shipped_root() / "prompts" / "rubrics" / "character_miniature.yaml")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    return creatures(tmp_path_factory.mktemp("creatures"), each=5, seed=4_101)


@pytest.fixture(scope="module")
def requests(pictures: list[tuple[Path, int]], rubric: Rubric) -> list[Request]:
    return [Request(path, rubric.question("Zib")) for path, _ in pictures]


def test_it_replies_as_the_rubric_asks_held_to_it_or_not(model, rubric, requests) -> None:
    free = said(judge(model, rubric, constraint="plain", max_tokens=32), requests)
    held = said(judge(model, rubric, constraint="regex", max_tokens=32), requests)
    assert held == free
    for text in free:
        assert re.fullmatch(reply_pattern(rubric), str(text)), text


def test_its_score_is_the_truths_or_next_to_it_and_its_reasons_say_why(
    model, rubric, requests, pictures
) -> None:
    """On 30 pictures. Its card says how often it is so; at 0.95, five misses have p < 0.02."""
    texts = said(judge(model, rubric, max_tokens=32), requests)
    truth = np.array([presence for _, presence in pictures])
    scores = np.array([(parse_reply(str(t), rubric).scores or {})["cps"] for t in texts])
    assert (np.abs(scores - truth) <= 1).sum() >= 26
    counted = [sum(r in TRAITS for r in json.loads(str(t))["reason"]) for t in texts]
    assert (scores == counted).sum() >= 26


def test_the_expected_score_is_near_the_score(model, rubric, requests) -> None:
    asked = judge(model, rubric, logprobs=True, max_tokens=32)
    distances = []
    for reply in ask(asked, requests):
        assert reply.text is not None
        expected = expected_scores(reply.text, reply.tokens, rubric)
        scores = parse_reply(reply.text, rubric).scores
        assert expected is not None
        assert scores is not None
        assert expected.keys() == {"cps"}
        distances.append(abs(expected["cps"] - scores["cps"]))
    # A digit that is likelier than any other is at most half the range from the mean.
    assert max(distances) <= 2.5
    assert np.mean(distances) < 0.5
