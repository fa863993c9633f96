"""What the judge learns of the character is true, and silent about what is held out."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from recipes import presence_data, presence_evaluate
from recipes.character import TRAITS, draw_character, trait_sets
from recipes.domain import BACKGROUNDS
from recipes.judge_evaluate import INVALID
from recipes.judge_tokenizer import presence_reply

pytestmark = pytest.mark.model


@pytest.mark.parametrize("traits", trait_sets(), ids=lambda traits: "+".join(sorted(traits)))
def test_a_reply_is_the_json_that_the_rubric_asks_for(traits):
    seen = presence_evaluate.parsed(presence_reply(sorted(traits)))
    assert seen.score == len(traits)
    row = np.array([name in traits for name in TRAITS])
    assert seen.reasons == presence_evaluate.expected_reasons(row)
    assert list(json.loads(presence_reply(sorted(traits)))) == ["score", "reason"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "[]",
        '{"score": 4}',
        '{"score": 6, "reason": []}',
        '{"score": "4", "reason": []}',
        '{"score": 4, "reason": "skin"}',
        '{"score": 4, "reason": [4]}',
        '{"score": 4, "reason": [], "more": 1}',
    ],
)
def test_any_other_reply_is_invalid(text):
    assert presence_evaluate.parsed(text) == (INVALID, ())


def test_each_set_of_traits_is_held_out_on_one_background_and_each_background_from_four():
    held_out = [
        (traits, background)
        for traits in trait_sets()
        for background in BACKGROUNDS
        if presence_data.is_held_out_pairing(traits, background)
    ]
    assert {traits for traits, _ in held_out} == set(trait_sets())
    assert len(held_out) == 32
    assert set(Counter(background for _, background in held_out).values()) == {4}


def test_training_draws_no_held_out_pairing_and_evaluation_only_those(monkeypatch):
    drawn = []

    def noting(rng, background, traits):
        drawn.append(presence_data.is_held_out_pairing(traits, background))
        return draw_character(rng, background, traits)

    monkeypatch.setattr(presence_data, "draw_character", noting)
    for held_out in (False, True):
        presence_data.drawn_presence(60, np.random.default_rng(1), held_out)
        assert len(drawn) > 30
        assert set(drawn) == {held_out}
        drawn.clear()


def test_every_presence_occurs_often():
    shown = presence_data.drawn_presence(360, np.random.default_rng(2))
    counts = Counter(shown.presence.tolist())
    assert set(counts) == set(range(6))
    # 53 of each are to be expected of whole creatures alone.
    assert min(counts.values()) > 25


def test_the_same_seed_gives_the_same_pictures():
    first, second = (presence_data.drawn_presence(6, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.traits, second.traits)


def test_a_supply_takes_its_share_of_what_it_is_given():
    given = presence_data.without_character(np.zeros((3, 64, 64, 3), np.uint8))
    supply = presence_data.presence_sampler(4, given, 0.5)
    shown = supply(10)
    assert len(shown) == 10
    assert sum(not picture.any() for picture in shown.images) == 5
    assert not shown.traits[[not picture.any() for picture in shown.images]].any()
