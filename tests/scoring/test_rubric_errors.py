"""Errors in a rubric file are reported with their line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rubrics import GOOD

from autolora_eval._errors import UsageError
from autolora_eval.scoring.rubric import read_rubric

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
    pytest.param("  sa:", "  pc:", 5, "scores.pc", "stands here and on line 4", id="name-twice"),
    pytest.param("max: 7", "max: 7, max: 8", 5, "scores.sa.max", "on line 5", id="max-twice"),
    pytest.param("max: 7", "max: 7, type: int", 5, "scores.sa.type", "(got 'int')", id="type"),
    pytest.param("max: 7", "max: 1.9", 5, "scores.sa", "'type: number'", id="one-whole-number"),
    pytest.param(
        "max: 7", "max: 1.0000001, type: number", 5, "scores.sa", "at least 1e-06", id="narrow"
    ),
    pytest.param("max: 7", "max: 1.0e+10", 5, "scores.sa.max", "(got 10000000000.0)", id="wide"),
    pytest.param("key: style", "key: ''", 5, "scores.sa.key", "at least 1", id="no-key"),
    pytest.param(
        "text: |",
        "remarks: {why: {kind: words}}\ntext: |",
        6,
        "remarks.why.kind",
        "(got 'words')",
        id="remark-kind",
    ),
    pytest.param(
        "text: |", "remarks: {why: {}}\ntext: |", 6, "remarks.why.kind", "missing", id="no-kind"
    ),
    pytest.param(
        "text: |",
        "remarks: {style: {kind: text}}\ntext: |",
        None,
        "",
        "'style'; rename one",
        id="remark-is-score",
    ),
    pytest.param("First", "<<<PRMOPT>>>", None, "", "contains '<<<PRMOPT>>>'", id="undeclared"),
    pytest.param("First", "<STYLE>", None, "", "contains '<STYLE>'", id="undeclared-own-style"),
    pytest.param(
        "Style,",
        '"prompt correspondence ",',
        None,
        "",
        "'pc' and 'sa' have the same display name, 'prompt correspondence '",
        id="same-name",
    ),
    pytest.param("Style,", '" ",', None, "", "'sa' has an empty display name", id="no-name"),
    pytest.param(
        '"<P>"}',
        '"<P>", values: {style: "<S>"}}',
        None,
        "",
        "style placeholder '<S>'",
        id="value-not-in-text",
    ),
    pytest.param(
        '"<P>"}',
        '"<P>", values: {style: "<P>s"}}',
        2,
        "placeholders",
        "'<P>' and '<P>s'",
        id="value-like-prompt",
    ),
    pytest.param(
        '"<P>"}',
        '"<P>", values: {a b: "<S>"}}',
        2,
        "placeholders.values.a b",
        "(got 'a b')",
        id="value-name",
    ),
    pytest.param(
        '"<P>"}',
        '"<P>", delimiters: ["=="]}',
        None,
        "",
        "delimiter no. 1 '=='",
        id="delimiter-not-in-text",
    ),
    pytest.param("  sa:", "  Sa:", 5, "scores.Sa", "(got 'Sa')", id="column"),
    pytest.param("  sa:", "  div_pc:", 5, "scores.div_pc", "'div_pc'", id="product-column"),
    pytest.param("  sa:", "  diversity:", 5, "scores.diversity", "'diversity'", id="diversity"),
    pytest.param("  <I>\n", "\n", None, "", "'<I>' once, but contains it 0 times", id="no-image"),
    pytest.param("First", "<I>", None, "", "'<I>' once, but contains it 2 times", id="two-images"),
    pytest.param('prompt: "<P>"', 'prompt: "<Q>"', None, "", "placeholder '<Q>'", id="no-prompt"),
    pytest.param(
        'prompt: "<P>"', 'prompt: "<I>!"', 2, "placeholders", "'<I>!'", id="nested-placeholders"
    ),
    pytest.param("text: |", "texts: |", 6, "texts", "Did you mean 'text'?", id="text"),
    pytest.param("scores:\n", "scores: {}\nx:\n", 3, "scores", "at least 1", id="no-scores"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "says"), BROKEN)
def test_invalid_rubric_is_reported_with_its_line(
    write: Callable[[str], Path], old: str, new: str, line: int | None, key: str, says: str
) -> None:
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
def test_undeclared_placeholder_is_recognised_by_its_style(
    write: Callable[[str], Path], image: str, prompt: str, unknown: str
) -> None:
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
def test_ordinary_text_is_not_a_placeholder(
    write: Callable[[str], Path], mark: str, other: str
) -> None:
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
