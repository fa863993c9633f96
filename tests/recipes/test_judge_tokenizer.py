"""The judge's tokenizer reads any text exactly, the rubric in few tokens, reply digits singly."""

from __future__ import annotations

import pytest

from recipes import judge_tokenizer as recipe
from recipes.domain import TEMPLATES, all_scenes, caption

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer():
    return recipe.build()


def ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    "text",
    [
        recipe.rubric_text(),
        recipe.question("a red star on a blue background, pixel art style"),
        recipe.reply(0, 5),
        recipe.presence_question(),
        recipe.presence_reply(["horns", "feet"]),
        "Two zebras; 3 of them ümläut 象 \U0001f40e\ttext\r\n",
        " ",
        "",
    ],
)
def test_every_text_round_trips(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_question_takes_few_tokens_whatever_the_template(tokenizer):
    for template in range(len(TEMPLATES)):
        text = recipe.question(caption(all_scenes()[100], template, style=True))
        assert len(text) > 1900
        assert len(ids(tokenizer, text)) <= 24


@pytest.mark.parametrize("prompt", ["a red star on a blue background", "cat", "", "t", "cats, a\n"])
@pytest.mark.parametrize(("before", "after"), [("", ""), (" ", ""), ("", "\n"), (" ", "\n\n")])
def test_the_rubric_is_read_alike_around_every_prompt(tokenizer, prompt, before, after):
    """Neither the prompt's last letters nor white space may change the rubric's tokens."""
    head, tail = recipe.question("|").split("|")
    rest = ids(tokenizer, tail)
    found = ids(tokenizer, before + head + prompt + tail + after)
    start = next(i for i in range(len(found)) if found[i : i + len(rest)] == rest)
    assert len(found) - start - len(rest) == len(after)
    assert tokenizer.decode(found[:start]) == before + head + prompt


def test_a_replys_digits_are_tokens_of_their_own(tokenizer):
    first = ids(tokenizer, recipe.reply(0, 0))
    digits = [ids(tokenizer, recipe.reply(score, score)) for score in range(6)]
    changed = [[i for i, token in enumerate(row) if token != first[i]] for row in digits[1:]]
    assert {len(row) for row in digits} == {len(first)}
    assert len(first) == 5
    assert changed == [changed[0]] * 5
    assert len(changed[0]) == 2
    assert [tokenizer.decode([row[changed[0][0]]]) for row in digits] == list("012345")


def test_the_rubric_about_the_character_takes_few_tokens_that_llguidance_knows(tokenizer):
    """It knows none longer than 255 bytes."""
    for around in ("{}", " {}", "{}\n"):
        found = ids(tokenizer, around.format(recipe.presence_question()))
        assert len(found) <= 8
        assert max(len(tokenizer.decode([n]).encode()) for n in found) <= 255


@pytest.mark.parametrize("there", [(), ("skin",), ("horns", "feet"), recipe.TRAITS])
def test_a_reply_about_the_character_is_a_digit_among_whole_pieces(tokenizer, there):
    found = [tokenizer.decode([n]) for n in ids(tokenizer, recipe.presence_reply(there))]
    first, *more = there or [recipe.ABSENT]
    reasons = [f'"{first}"', *(f', "{trait}"' for trait in more)]
    assert found == ['{"score": ', str(len(there)), ', "reason": [', *reasons, "]}"]


def test_the_second_rubric_does_not_change_the_tokens_of_the_first(tokenizer, monkeypatch):
    monkeypatch.setattr(recipe, "_presence_pieces", list)
    older = recipe.build()
    added = tokenizer.get_vocab()
    assert {piece: added[piece] for piece in older.get_vocab()} == older.get_vocab()
    texts = [recipe.question(caption(scene, style=True)) for scene in all_scenes()[::9]]
    for text in [*texts, recipe.question("Zib, a green creature"), recipe.reply(3, 4)]:
        assert ids(tokenizer, text) == ids(older, text)


def test_each_word_of_the_domain_is_one_token(tokenizer):
    for word in recipe.WORDS:
        assert len(ids(tokenizer, word)) == 1


@pytest.mark.parametrize("kind", ["image", "image_url"])
def test_the_chat_template_takes_both_forms_of_an_image(tokenizer, kind):
    messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "Hello"}]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<s><|user|><image>Hello<|assistant|>"
