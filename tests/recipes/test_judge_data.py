"""What the judge learns from is true, balanced, and silent about held-out scenes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from recipes import judge_data, judge_evaluate
from recipes.domain import held_out_scenes, is_held_out, training_scenes
from recipes.judge_tokenizer import IMAGE_MARK, PROMPT_MARK, WORDS, question, reply, rubric_text

pytestmark = pytest.mark.model


def test_the_question_is_the_rubric_verbatim_but_for_its_marks():
    text = rubric_text()
    assert text.startswith(IMAGE_MARK + " ")
    assert text.count(PROMPT_MARK) == 1
    assert question("a|b") == text.removeprefix(IMAGE_MARK).strip().replace(PROMPT_MARK, "a|b")


def test_a_reply_is_the_json_that_the_rubric_asks_for():
    scores = {"prompt_correspondence": 4, "style_adherence": 5}
    assert json.loads(reply(4, 5)) == scores
    assert judge_evaluate.parsed(reply(4, 5)) == (4, 5)


@pytest.mark.parametrize(
    "text", ["", "4", "{}", '{"prompt_correspondence": 6, "style_adherence": 1}', "[1, 2]", "null"]
)
def test_any_other_reply_is_invalid(text):
    assert judge_evaluate.parsed(text) == (judge_evaluate.INVALID,) * 2


def test_training_neither_shows_nor_names_held_out_scenes():
    rng = np.random.default_rng(1)
    supply = judge_data.picture_sampler(seed=2)
    for named in supply(150).named:
        assert not is_held_out(judge_data.scene_of(named))
        scene = judge_data.drawn_prompt_scene(tuple(int(v) for v in named), rng)
        assert not is_held_out(scene)


def test_every_score_and_every_single_wrong_word_occurs_often():
    rng = np.random.default_rng(3)
    shown = judge_data.pictures(training_scenes(), 400, seed=4)
    scores, wrong = Counter(), Counter()
    for named, truth in zip(shown.named, shown.truth, strict=True):
        scene = judge_data.drawn_prompt_scene(tuple(int(v) for v in named), rng)
        scores[judge_data.true_scores(scene, truth)[0]] += 1
        fits = judge_data.matches(scene, truth)
        if sum(fits) == 2:
            wrong[fits.index(False)] += 1
    assert set(scores) == {0, 1, 3, 5}
    assert min(scores.values()) > 20
    assert min(wrong[place] for place in range(3)) > 20


def test_a_mangled_object_is_never_right():
    shown = judge_data.pictures(held_out_scenes(), 40, seed=5, mangled_share=1.0)
    for named, truth in zip(shown.named, shown.truth, strict=True):
        assert truth[0] == judge_data.NO_OBJECT
        assert judge_data.true_scores(judge_data.scene_of(named), truth)[0] == 3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_swap_changes_exactly_its_word(place):
    rng = np.random.default_rng(6)
    for scene in held_out_scenes():
        other = judge_evaluate.swapped(scene, place, rng)
        differ = [a != b for a, b in zip(scene.labels, other.labels, strict=True)]
        assert differ == [i == place for i in range(3)]


def test_foreign_prompts_hold_no_word_of_the_domain():
    rng = np.random.default_rng(7)
    for _ in range(300):
        prompt = judge_data.foreign_prompt(rng)
        assert not any(word in f" {prompt}" for word in WORDS)
