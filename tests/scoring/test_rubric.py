"""Rubrics: the paper's words as they are, the prompt put in as it is, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from autolora_eval.errors import UsageError
from autolora_eval.resources import shipped_root
from autolora_eval.rubric import Question, Rubric, read_rubric

# SHA-256 of the paper's judge prompts A.1 (1270 bytes) and A.2 (2067 bytes) as typed from its
# appendix with straightened quotation marks, each ending in one line break.
PAPER = {
    "disney_princess": "8617f2bfa18544483a6bb95e766312c62421cea55b8ebed35b0adce52252c8b1",
    "pixel_art": "0ae62cb6d0a924ba24cc833c3074d5b56228da44bffc19c16b5a15507b222246",
}
GOOD = """\
name: mine
placeholders: {image: "<I>", prompt: "<P>"}
scores:
  pc: {key: correspondence, display_name: Prompt correspondence}
  sa: {key: style, display_name: Style, min: 1, max: 7}
text: |
  First <P>.
  <I>
  Does it show <P>, or {not}?
"""


def shipped(name: str) -> Rubric:
    return read_rubric(shipped_root() / "prompts" / "rubrics" / f"{name}.yaml")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_text(text: str) -> Path:
        path = tmp_path / "rubric.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.mark.parametrize("name", PAPER)
def test_the_shipped_texts_are_the_papers(name: str) -> None:
    assert hashlib.sha256(shipped(name).text.encode()).hexdigest() == PAPER[name]


def test_the_shipped_scores_are_the_papers() -> None:
    found = {
        column: (score.key, score.min, score.max, score.higher_is_better)
        for name in PAPER
        for column, score in shipped(name).scores.items()
    }
    assert found == {
        "cps": ("score", 0.0, 5.0, True),
        "pc": ("prompt_correspondence", 0.0, 5.0, True),
        "sa": ("style_adherence", 0.0, 5.0, True),
    }


@pytest.mark.parametrize("name", PAPER)
def test_the_shipped_questions_begin_with_the_image_and_ask_for_each_key(name: str) -> None:
    rubric = shipped(name)
    question = rubric.question("a cat")
    assert question.before == ""
    assert "<<<" not in question.after
    for score in rubric.scores.values():
        assert question.after.count(f'"{score.key}": [') == 1


def test_only_the_pixel_art_question_holds_the_prompt() -> None:
    assert (
        shipped("pixel_art")
        .question("a cat")
        .after.startswith("Evaluate the given image for the prompt a cat and the pixel art style\n")
    )
    princess = shipped("disney_princess")
    assert princess.question("a cat") == princess.question("a dog")


def test_the_question_is_split_at_the_image(write: Callable[[str], Path]) -> None:
    rubric = read_rubric(write(GOOD))
    assert rubric.question("a cat") == Question("First a cat.", "Does it show a cat, or {not}?")


@pytest.mark.parametrize(
    "prompt",
    [
        "<P>",
        "<I>",
        "<I><P> <I>",
        "{0} {} {prompt} %s $x ${HOME}",
        "\"quoted\" 'and' \\n \\1 \\g<0>",
        "γ 猫 🐱",
        "two\nlines",
        "{% raw %}{{ x }}",
    ],
)
def test_the_prompt_is_put_in_as_it_is(write: Callable[[str], Path], prompt: str) -> None:
    question = read_rubric(write(GOOD)).question(prompt)
    assert question.before == f"First {prompt}."
    assert question.after == f"Does it show {prompt}, or {{not}}?"


def test_a_prompt_at_the_edge_of_the_text_keeps_its_blanks(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("First <P>.", "<P>").replace("<P>, or {not}?", "<P>")
    question = read_rubric(write(text)).question("  a cat ")
    assert (question.before, question.after) == ("  a cat ", "Does it show   a cat ")


def test_every_place_of_the_prompt_gets_it(write: Callable[[str], Path]) -> None:
    question = read_rubric(write(GOOD.replace("or {not}", "<P> and <P>"))).question("<P>")
    assert question.after == "Does it show <P>, <P> and <P>?"
    question = read_rubric(write(GOOD.replace("or {not}", "<P> and <P>"))).question("a")
    assert question.after == "Does it show a, a and a?"


def test_the_text_is_not_searched_for_environment_variables(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rubric's text is an instrument: it must be the same on every machine."""
    monkeypatch.setenv("HOME", "/somewhere")
    rubric = read_rubric(write(GOOD.replace("{not}", "${HOME} ${UNSET_VARIABLE}")))
    assert "${HOME} ${UNSET_VARIABLE}" in rubric.text


def test_the_hash_sees_text_and_scores(write: Callable[[str], Path]) -> None:
    variants = [GOOD, GOOD.replace("show", "paint"), GOOD.replace("max: 7", "max: 8")]
    variants.append(GOOD.replace("key: style", "key: stile"))
    assert len({read_rubric(write(text)).sha256 for text in variants}) == 4
    assert read_rubric(write(GOOD + "# a comment\n")).sha256 == read_rubric(write(GOOD)).sha256


BROKEN = [
    pytest.param("name: mine", "nmae: mine", 1, "nmae", "Did you mean 'name'?", id="unknown"),
    pytest.param("max: 7", "mx: 7", 5, "scores.sa.mx", "Did you mean 'max'?", id="unknown-score"),
    pytest.param("{image:", "{imag:", 2, "placeholders.imag", "Did you mean", id="unknown-place"),
    pytest.param(
        "min: 1, max: 7", "min: 7, max: 7", 5, "scores.sa", "min (7) must be", id="min=max"
    ),
    pytest.param(
        "min: 1, max: 7", "min: 8, max: 7", 5, "scores.sa", "min (8) must be", id="min>max"
    ),
    pytest.param("min: 1", "min: .nan", 5, "scores.sa.min", "finite number (got nan)", id="nan"),
    pytest.param("max: 7", "max: .inf", 5, "scores.sa.max", "finite number (got inf)", id="inf"),
    pytest.param("min: 1", "min: one", 5, "scores.sa.min", "(got 'one')", id="no-number"),
    pytest.param("key: style", "key: correspondence", None, "", "'correspondence'", id="key-twice"),
    pytest.param("  sa:", "  Sa:", 5, "scores.Sa", "(got 'Sa')", id="column"),
    pytest.param("  sa:", "  div_pc:", 5, "scores.div_pc", "'div_pc'", id="product-column"),
    pytest.param("  sa:", "  diversity:", 5, "scores.diversity", "'diversity'", id="diversity"),
    pytest.param("  <I>\n", "\n", None, "", "'<I>' once, and has it 0 times", id="no-image"),
    pytest.param("First", "<I>", None, "", "'<I>' once, and has it 2 times", id="two-images"),
    pytest.param('prompt: "<P>"', 'prompt: "<Q>"', None, "", "placeholder '<Q>'", id="no-prompt"),
    pytest.param(
        'prompt: "<P>"', 'prompt: "<I>!"', 2, "placeholders", "'<I>!'", id="nested-placeholders"
    ),
    pytest.param("text: |", "texts: |", 6, "texts", "Did you mean 'text'?", id="text"),
    pytest.param("scores:\n", "scores: {}\nx:\n", 3, "scores", "at least 1", id="no-scores"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "says"), BROKEN)
def test_what_is_broken_is_named_with_its_place(
    write: Callable[[str], Path], old: str, new: str, line: int | None, key: str, says: str
) -> None:
    path = write(GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        read_rubric(path)
    place = f"{path}:{line}: {key}: " if line else f"{path}: "
    lines = str(caught.value).split("\n")
    assert any(found.startswith(place) and says in found for found in lines), lines


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "name: [unclosed"])
def test_what_is_no_rubric_at_all_is_refused_in_one_line(
    write: Callable[[str], Path], text: str
) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        read_rubric(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
