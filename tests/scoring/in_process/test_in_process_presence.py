"""The judge in this process answers the character rubric, with reasons."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from creatures import creatures
from in_process import ask, judge, said
from rubrics import shipped

from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judges.config import Request
from autolora_eval.scoring.reply import expected_scores, parse_reply
from autolora_eval.scoring.rubric import Rubric
from recipes.character import TRAITS

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return shipped("character_miniature")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    return creatures(tmp_path_factory.mktemp("creatures"), each=5, seed=4_101)


@pytest.fixture(scope="module")
def requests(pictures: list[tuple[Path, int]], rubric: Rubric) -> list[Request]:
    return [Request(path, rubric.question("Zib")) for path, _ in pictures]


def test_replies_follow_the_rubric_with_and_without_constraint(model, rubric, requests) -> None:
    free = said(judge(model, rubric, constraint="plain", max_tokens=32), requests)
    held = said(judge(model, rubric, constraint="regex", max_tokens=32), requests)
    assert held == free
    for text in free:
        assert re.fullmatch(reply_pattern(rubric), str(text)), text


def test_scores_are_within_one_of_the_truth_and_match_the_reasons(
    model, rubric, requests, pictures
) -> None:
    """On 30 images. At the model card's rate of 0.95, five misses have p < 0.02."""
    texts = said(judge(model, rubric, max_tokens=32), requests)
    truth = np.array([presence for _, presence in pictures])
    scores = np.array([(parse_reply(str(t), rubric).scores or {})["cps"] for t in texts])
    assert (np.abs(scores - truth) <= 1).sum() >= 26
    counted = [sum(r in TRAITS for r in json.loads(str(t))["reason"]) for t in texts]
    assert (scores == counted).sum() >= 26


def test_expected_score_is_close_to_the_score(model, rubric, requests) -> None:
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
    # The most likely digit is at most half the range away from the mean.
    assert max(distances) <= 2.5
    assert np.mean(distances) < 0.5
