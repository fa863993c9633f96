"""The shipped miniature DINOv2 and judge load by the Auto classes and know their world."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rubrics import shipped
from transformers import AutoModelForImageTextToText, AutoProcessor

from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import Question
from autolora_eval.sources.lookup import miniature_folder
from recipes import judge_data, judge_evaluate, judge_tokenizer, presence_data
from recipes import presence_evaluate as evaluate
from recipes.character import TRAITS
from recipes.dinov2_evaluate import Extractor, diversities
from recipes.domain import held_out_scenes
from recipes.judge_tokenizer import presence_question
from recipes.presence_cards import judge_card
from recipes.vision_cards import dinov2_card

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def extract():
    return Extractor(miniature_folder("dinov2"))


@pytest.fixture(scope="module")
def judge():
    return judge_evaluate.ExportedJudge(miniature_folder("judge"))


@pytest.fixture(scope="module")
def held_out():
    return judge_data.pictures(held_out_scenes(), 120, seed=7_001, mangled_share=0.0)


@pytest.mark.parametrize(("name", "card"), [("dinov2", dinov2_card), ("judge", judge_card)])
def test_the_card_says_what_was_measured(name, card):
    folder = miniature_folder(name)
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == card(figures)


def test_diversity_rises_from_one_drawing_to_different_scenes(extract):
    found = diversities(extract, seed=7_002, sets=6)
    assert found["one_scene_canonical_pixel_art"] < found["one_scene_pixel_art"]
    assert found["one_scene_canonical_pixel_art"] < found["one_scene_free"]
    assert found["one_scene_free"] < found["different_scenes_free"]
    assert found["one_scene_pixel_art"] < found["different_scenes_pixel_art"]


def test_features_share_no_large_common_part(extract, held_out):
    features = extract(list(held_out.images)).double()
    assert features.shape == (120, 128)
    unit = torch.nn.functional.normalize(features, dim=-1)
    mean_cosine = ((unit @ unit.T).sum() - 120) / (120 * 119)
    assert mean_cosine < 0.5


def test_features_of_one_picture_do_not_depend_on_its_neighbours(extract, held_out):
    images = list(held_out.images[:6])
    torch.testing.assert_close(extract(images)[:2], extract(images[:2]), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def questions(held_out):
    rngs = map(np.random.default_rng, range(len(held_out.named)))
    return [
        judge_tokenizer.question(judge_data.worded(judge_data.scene_of(named), rng))
        for named, rng in zip(held_out.named, rngs, strict=True)
    ]


@pytest.fixture(scope="module")
def verdicts(judge, held_out, questions):
    return [judge_evaluate.parsed(text) for text in judge(list(held_out.images), questions)]


def test_the_judge_beats_shuffled_prompts_by_far(judge, held_out, questions, verdicts):
    """Right prompts against the same prompts dealt to other pictures: a paired sign test."""
    dealt = [questions[i] for i in np.roll(np.arange(120), 17)]
    own = [verdict.prompt for verdict in verdicts]
    other = [judge_evaluate.parsed(t).prompt for t in judge(list(held_out.images), dealt)]
    assert min(own + other) >= 0
    assert np.mean(own) - np.mean(other) > 2
    # Without any knowledge, more than 85 wins in 120 have a probability below 1e-5.
    assert sum(a > b for a, b in zip(own, other, strict=True)) > 85


def test_the_judge_tells_crisp_pixel_art_from_free_renders(held_out, verdicts):
    style, grade = np.array([verdict.style for verdict in verdicts]), held_out.truth[:, 3]
    assert style[grade == 5].mean() - style[grade == 1].mean() > 2.5
    assert (np.abs(style - grade) <= 1).mean() > 0.8


def test_the_processor_puts_one_request_together_by_itself(judge, held_out):
    processor = AutoProcessor.from_pretrained(miniature_folder("judge"))
    model = AutoModelForImageTextToText.from_pretrained(
        miniature_folder("judge"), dtype=torch.float32
    )
    image = Image.fromarray(held_out.images[0]).resize((256, 256), Image.Resampling.NEAREST)
    text = judge_tokenizer.question("two zebras at a lake")
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    reply = judge_evaluate.parsed(processor.decode(output, skip_special_tokens=True))
    assert reply.prompt != judge_evaluate.INVALID


# The character.


@pytest.fixture(scope="module")
def creatures():
    return presence_data.drawn_presence(120, np.random.default_rng(7_011), held_out=True)


@pytest.fixture(scope="module")
def texts(judge, creatures):
    return judge(list(creatures.images), [presence_question()] * len(creatures))


def test_every_reply_is_one_that_the_shipped_rubric_asks_for(texts):
    rubric = shipped("character_miniature")
    assert rubric.question("anything") == Question("", presence_question())
    for text in texts:
        assert re.fullmatch(reply_pattern(rubric), text), text
        assert parse_reply(text, rubric).scores is not None


def test_presence_is_right_or_next_to_it(texts, creatures):
    """The card's share is 0.95 or more: of 120 pictures, 14 misses then have p < 0.003."""
    scores = np.array([evaluate.parsed(text).score for text in texts])
    assert (np.abs(scores - creatures.presence) <= 1).sum() >= 107
    assert np.corrcoef(scores, creatures.presence)[0, 1] > 0.8


def test_the_reasons_are_the_traits_that_are_there(texts, creatures):
    """Each trait is named or left out rightly, in four of five pictures; chance is one half."""
    said = np.array([[name in evaluate.parsed(text).reasons for name in TRAITS] for text in texts])
    assert ((said == creatures.traits).mean(0) > 0.8).all()


def test_a_creature_scores_lower_without_any_of_its_traits(judge):
    """Without knowledge, 32 of 40 such pairs fall with p < 2e-4, if ties never occurred."""
    found = evaluate.drops(judge, 40, seed=7_012)
    assert found["whole"] > 4.5
    for name, share in found["lower_without"].items():
        assert share >= 0.8, name


def test_the_objects_of_the_domain_are_not_scored_as_creatures(judge):
    shown = judge_data.pictures(held_out_scenes(), 60, seed=7_013)
    scores = [seen.score for seen in evaluate.replies(judge, shown.images)]
    assert scores.count(0) >= 55
