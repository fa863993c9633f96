"""Errors in a rubric file are reported with their line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rubrics import GOOD

from autolora_eval._errors import UsageError
from autolora_eval.scoring.rubric import read_rubric

VALUES = '"<P>", values: {%s}}'
# What is replaced in a good rubric, by what, and the line, the key and a part of the message.
BROKEN = [
    ("name: mine", "nmae: mine", 1, "nmae", "Did you mean 'name'?"),
    ("max: 7", "mx: 7", 5, "scores.sa.mx", "Did you mean 'max'?"),
    ("{image:", "{imag:", 2, "placeholders.imag", "Did you mean"),
    ("min: 1, max: 7", "min: 7, max: 7", 5, "scores.sa", "min (7) must be"),
    ("min: 1, max: 7", "min: 8, max: 7", 5, "scores.sa", "min (8) must be"),
    ("min: 1", "min: .nan", 5, "scores.sa.min", "finite number (got nan)"),
    ("max: 7", "max: .inf", 5, "scores.sa.max", "finite number (got inf)"),
    ("min: 1", "min: one", 5, "scores.sa.min", "(got 'one')"),
    ("key: style", "key: correspondence", None, "", "'correspondence'"),
    ("  sa:", "  pc:", 5, "scores.pc", "this key is also on line 4"),
    ("max: 7", "max: 7, max: 8", 5, "scores.sa.max", "on line 5"),
    ("max: 7", "max: 7, type: int", 5, "scores.sa.type", "(got 'int')"),
    ("max: 7", "max: 1.9", 5, "scores.sa", "'type: number'"),
    ("max: 7", "max: 1.0000001, type: number", 5, "scores.sa", "at least 1e-06"),
    ("max: 7", "max: 1.0e+10", 5, "scores.sa.max", "(got 10000000000.0)"),
    ("key: style", "key: ''", 5, "scores.sa.key", "at least 1"),
    ("text: |", "remarks: {a: {kind: words}}\ntext: |", 6, "remarks.a.kind", "(got 'words')"),
    ("text: |", "remarks: {why: {}}\ntext: |", 6, "remarks.why.kind", "missing"),
    ("text: |", "remarks: {style: {kind: text}}\ntext: |", None, "", "'style'; rename one"),
    ("First", "<<<PRMOPT>>>", None, "", "contains '<<<PRMOPT>>>'"),
    ("First", "<STYLE>", None, "", "contains '<STYLE>'"),
    ("Style,", '"prompt correspondence ",', None, "", "'pc' and 'sa' have the same display name, "),
    ("Style,", '" ",', None, "", "'sa' has an empty display name"),
    ('"<P>"}', VALUES % 'style: "<S>"', None, "", "style placeholder '<S>'"),
    ('"<P>"}', VALUES % 'style: "<P>s"', 2, "placeholders", "'<P>' and '<P>s'"),
    ('"<P>"}', VALUES % 'a b: "<S>"', 2, "placeholders.values.a b", "(got 'a b')"),
    ('"<P>"}', '"<P>", delimiters: ["=="]}', None, "", "delimiter no. 1 '=='"),
    ("  sa:", "  Sa:", 5, "scores.Sa", "(got 'Sa')"),
    ("  sa:", "  div_pc:", 5, "scores.div_pc", "'div_pc'"),
    ("  sa:", "  diversity:", 5, "scores.diversity", "'diversity'"),
    ("  <I>\n", "\n", None, "", "'<I>' once, but contains it 0 times"),
    ("First", "<I>", None, "", "'<I>' once, but contains it 2 times"),
    ('prompt: "<P>"', 'prompt: "<Q>"', None, "", "placeholder '<Q>'"),
    ('prompt: "<P>"', 'prompt: "<I>!"', 2, "placeholders", "'<I>!'"),
    ("text: |", "texts: |", 6, "texts", "Did you mean 'text'?"),
    ("scores:\n", "scores: {}\nx:\n", 3, "scores", "at least 1"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "says"), BROKEN)
def test_invalid_rubric_is_reported_with_its_line(write, old, new, line, key, says) -> None:
    path = write(GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        read_rubric(path)
    place = f"{path}:{line}: {key}: " if line else f"{path}: "
    lines = str(caught.value).split("\n")
    assert any(found.startswith(place) and says in found for found in lines), lines


def test_misspelt_placeholder_gets_a_suggestion(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("<P>", "<<<PROMPT>>>").replace("First <<<PROMPT>>>", "First <<<PRMOPT>>>")
    with pytest.raises(
        UsageError, match=r"contains '<<<PRMOPT>>>', .* Did you mean '<<<PROMPT>>>'\?"
    ):
        read_rubric(write(text))


@pytest.mark.parametrize(
    ("image", "prompt", "unknown"),
    [
        ("{{image}}", "{{prompt}}", "{{style}}"),
        ("{image}", "{prompt}", "{a_style}"),
        ("[IMAGE]", "[PROMPT]", "[STYLE 2]"),
        ("$IMAGE$", "%prompt%", "%style%"),
    ],
)
def test_undeclared_placeholder_is_recognised_by_its_style(write, image, prompt, unknown) -> None:
    text = GOOD.replace("<I>", image).replace("<P>", prompt).replace("{not}", unknown)
    message = f"the text contains '{unknown}', which looks like"
    with pytest.raises(UsageError, match=re.escape(message)):
        read_rubric(write(text))
    declared = text.replace("}\nscores", f", delimiters: ['{unknown}']}}\nscores")
    assert read_rubric(write(declared)).name == "mine"


@pytest.mark.parametrize(
    ("mark", "other"),
    [
        ("<I>", "a <b> c </I> <I2/>, 1 < 2 > 0"),
        ("[IMAGE]", "[the score from 0 to 5] [1] [score]"),
        ("{image}", 'reply {"score": 3} or {score: [N]} or {1}'),
        ("§", "§§ 5 §x§"),
        ("the image", "the picture"),
    ],
)
def test_ordinary_text_is_not_a_placeholder(write, mark, other) -> None:
    text = GOOD.replace('"<I>"', f"'{mark}'").replace("  <I>", f"  {mark}")
    text = text.replace("{not}", "not") + f"  {other if '§' not in mark else 'x'}\n"
    assert other in read_rubric(write(text)).text or "§" in mark


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "name: [unclosed"])
def test_other_file_is_rejected_in_one_line(write: Callable[[str], Path], text: str) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        read_rubric(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
