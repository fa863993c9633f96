"""The shipped miniature judge sees how much of the character a picture shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import autolora_eval.sources.lookup as miniature
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import read_rubric
from autolora_eval.sources.lookup import shipped_root
from recipes import judge_data, judge_evaluate, presence_data
from recipes import presence_evaluate as evaluate
from recipes.character import TRAITS
from recipes.domain import held_out_scenes
from recipes.judge_tokenizer import presence_question

pytestmark = pytest.mark.model

WEIGHTS = Path(miniature.__file__).parent / "shipped" / "miniature"


@pytest.fixture(scope="module")
def judge():
    return judge_evaluate.ExportedJudge(WEIGHTS / "judge")


@pytest.fixture(scope="module")
def held_out():
    return presence_data.drawn_presence(120, np.random.default_rng(7_011), held_out=True)


@pytest.fixture(scope="module")
def texts(judge, held_out):
    return judge(list(held_out.images), [presence_question()] * len(held_out))


def test_the_question_is_the_shipped_rubrics():
    rubric = read_rubric(shipped_root() / "prompts/rubrics/character_miniature.yaml")
    assert rubric.question("anything").before == ""
    assert rubric.question("anything").after == presence_question()


def test_every_reply_is_one_that_the_rubric_allows(texts):
    rubric = read_rubric(shipped_root() / "prompts/rubrics/character_miniature.yaml")
    for text in texts:
        assert re.fullmatch(reply_pattern(rubric), text), text
        assert parse_reply(text, rubric).scores is not None


def test_presence_is_right_or_next_to_it(texts, held_out):
    """The card's share is 0.95 or more: of 120 pictures, 14 misses then have p < 0.003."""
    scores = np.array([evaluate.parsed(text).score for text in texts])
    assert (np.abs(scores - held_out.presence) <= 1).sum() >= 107
    assert np.corrcoef(scores, held_out.presence)[0, 1] > 0.8


def test_the_reasons_are_the_traits_that_are_there(texts, held_out):
    """Each trait is named or left out rightly, in four of five pictures; chance is one half."""
    said = np.array([[name in evaluate.parsed(text).reasons for name in TRAITS] for text in texts])
    assert ((said == held_out.traits).mean(0) > 0.8).all()


def test_a_creature_scores_lower_without_any_of_its_traits(judge):
    """Without knowledge, 32 of 40 such pairs fall with p < 2e-4, if ties never occurred."""
    found = evaluate.drops(judge, 40, seed=7_012)
    assert found["whole"] > 4.5
    for name, share in found["lower_without"].items():
        assert share >= 0.8, name


def test_the_domains_objects_are_no_creature(judge):
    shown = judge_data.pictures(held_out_scenes(), 60, seed=7_013)
    scores = [seen.score for seen in evaluate.replies(judge, shown.images)]
    assert scores.count(0) >= 55
