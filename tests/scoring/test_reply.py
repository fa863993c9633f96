"""Replies that are parsed, and the reasons of those that are not."""

from __future__ import annotations

import ast
import json
import time

import pytest
from rubrics import rubric_of

from autolora_eval.scoring.reply import (
    MAX_CLOSINGS,
    MAX_OPENINGS,
    MAX_REPLY,
    ParsedReply,
    parse_reply,
)
from autolora_eval.scoring.rubric import Rubric

GOOD = '{"prompt_correspondence": 4, "style_adherence": 3.5}'
SCORES = {"pc": 4.0, "sa": 3.5}


QUOTED = "{'prompt_correspondence': 1, 'style_adherence': 1}"


def with_value(value: str) -> str:
    return f'{{"prompt_correspondence": {value}, "style_adherence": 3.5}}'


def single(text: str) -> str:
    """The text in single quotes, as Python writes it."""
    return text.replace('"', "'")


ACCEPTED = {
    "plain": GOOD,
    "white space around": f" \n\t{GOOD}\r\n",
    "code fence": f"```json\n{GOOD}\n```",
    "text around": f"Here is my verdict: {GOOD} I hope this helps!",
    "several lines": GOOD.replace(", ", ",\n  "),
    "trailing comma, as in the paper's example": GOOD.replace("}", ",\n}"),
    "single quotes": single(GOOD),
    "single quotes and a trailing comma": single(GOOD).replace("}", ", }"),
    "number as text": with_value('"4"'),
    "number as text with white space": with_value('" 4.0 "'),
    "fraction of the range": with_value('"4/5"'),
    "fraction with blanks": with_value('"4 / 5"'),
    "fraction in words": with_value('"4 out of 5"'),
    "decimals in a fraction": with_value('"4.0/5.0"'),
    "fraction without quotation marks": with_value("4/5"),
    "two of them, with blanks": GOOD.replace("4,", "4 / 5,").replace("3.5", "3.5/5"),
    "one of them, and single quotes": single(with_value("4/5")),
    "one of them beside a text that holds one": with_value("4/5").replace("}", ', "why": "a 4/5"}'),
    "line break within a text": GOOD.replace("}", ', "why": "one\ntwo\tthree"}'),
    "braces within a text in single quotes": single(GOOD.replace("}", ', "why": "{this} }"}')),
    "a remark before the scores": GOOD.replace("{", '{"reason": ["a", "b"], '),
    "the last of a key that stands twice": GOOD.replace("{", '{"style_adherence": 1, '),
    "the last of two, in single quotes": single(GOOD.replace("{", '{"style_adherence": 1, ')),
    "after a quoted prompt that is a verdict": f"For '{with_value('5')}' I say {GOOD}",
    "beside a quoted verdict within a text": GOOD.replace("}", f', "why": {json.dumps(GOOD)}}}'),
    "beside a verdict quoted in single quotes within it": GOOD.replace(
        "}", f', "why": "it says {QUOTED}"}}'
    ),
    "single quotes beside a verdict quoted in double quotes": single(GOOD).replace(
        "{", f"{{'why': 'it says {with_value('1')}', "
    ),
    "after many braces": "{x}" * 5_000 + GOOD,
    "before some braces": GOOD + "{x}" * (MAX_OPENINGS - 1),
    "between HTML and YAML": f"<p onclick='x()'>---\npc: 5\n{GOOD}</p>",
    "among control characters": f"\x00\x1b[31m{GOOD}\x7f",
    "alone in a list": with_value("[4]"),
    "as text alone in a list": with_value('["4/5"]'),
    "in a list with a trailing comma": with_value("[4,]"),
    "exponent": with_value("0.4e1"),
    "further keys": GOOD.replace("}", ', "why": "because of {this}"}'),
    "in a list": f"[{GOOD}]",
    "in an object": f'{{"evaluation": {GOOD}}}',
    "deep in objects and lists": f'{{"a": [1, {{"b": {GOOD}}}]}}',
    "in double braces": f"{{{GOOD}}}",
    "object about it within": GOOD.replace("}", ', "why": {"style_adherence": "fine"}}'),
    "after a verdict that was taken back": f"{with_value('1')} No, I meant: {GOOD}",
    "after a reasoning object": f'{{"thought": "pixels"}} {GOOD}',
    "before a closing object": f'{GOOD} {{"done": true}}',
    "before an echo of the format": f"{GOOD} {with_value('[the score from 0 to 5]')}",
    "before one that is cut off": f"{GOOD} {with_value('1')[:-1]}",
    "after an echoed prompt with braces": f"For 'a {{cat}}': {GOOD}",
    "after an echoed prompt with an opening brace": f"For 'a {{ cat': {GOOD}",
    "after an echoed prompt with a closing brace": f"For 'a }} cat': {GOOD}",
    "after a set and a list in braces": f"{{1, 2}} {{[4]}} {{[]: 1}} {GOOD}",
    "white space flood behind it": GOOD + "\n" * MAX_REPLY,
    "white space flood before it": " " * MAX_REPLY + GOOD,
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(text: str, rubric: Rubric) -> None:
    assert parse_reply(text, rubric) == ParsedReply(SCORES)


REFUSED = {
    "nothing": ("", "no_json"),
    "white space": (" \n" * 400, "no_json"),
    "words": ("I cannot rate this image.", "no_json"),
    "numbers without keys": ("4 and 3.5", "no_json"),
    "empty object": ("{}", "missing_score"),
    "other keys": ('{"score": 4}', "missing_score"),
    "keys in another case": (GOOD.replace("p", "P", 1), "missing_score:pc"),
    "first missing": ('{"style_adherence": 3}', "missing_score:pc"),
    "second missing": ('{"prompt_correspondence": 3}', "missing_score:sa"),
    "cut off": (GOOD[:-1], "no_json"),
    "last verdict incomplete": (f'{GOOD} {{"style_adherence": 1}}', "missing_score:pc"),
    "the format itself": (with_value("[the score from 0 to 5]"), "no_json"),
    "above the range": (with_value("6"), "out_of_range:pc"),
    "a fraction of another range": (with_value("4/10"), "not_a_number:pc"),
    "a fraction above the range": (with_value("6/5"), "out_of_range:pc"),
    "just above the range": (with_value("5.0001"), "out_of_range:pc"),
    "below the range": (with_value("-1"), "out_of_range:pc"),
    "just below the range": (with_value("-0.0001"), "out_of_range:pc"),
    "text above the range": (with_value('"6"'), "out_of_range:pc"),
    "fraction below the range": (with_value('"-1/5"'), "out_of_range:pc"),
    "fraction of another range": (with_value('"4/10"'), "not_a_number:pc"),
    "fraction of zero": (with_value('"4/0"'), "not_a_number:pc"),
    "NaN": (with_value("NaN"), "not_a_number:pc"),
    "Infinity": (with_value("Infinity"), "not_a_number:pc"),
    "minus Infinity": (with_value("-Infinity"), "not_a_number:pc"),
    "nan as text": (with_value('"nan"'), "not_a_number:pc"),
    "true": (with_value("true"), "not_a_number:pc"),
    "null": (with_value("null"), "not_a_number:pc"),
    "word": (with_value('"four"'), "not_a_number:pc"),
    "two numbers": (with_value("[4, 5]"), "not_a_number:pc"),
    "no number": (with_value("[]"), "not_a_number:pc"),
    "object": (with_value('{"value": 4}'), "not_a_number:pc"),
    "complex number": (single(with_value("1+2j")), "not_a_number:pc"),
    "second not a number": (GOOD.replace("3.5", "true"), "not_a_number:sa"),
    "second out of range": (GOOD.replace("3.5", "35"), "out_of_range:sa"),
    "400 digits": (with_value("9" * 400), "not_a_number:pc"),
    "400 digits in single quotes": (single(with_value("9" * 400)), "not_a_number:pc"),
    "5000 digits": (with_value("9" * 5000), "not_a_number:pc"),
    "10 ** 400": (with_value("1e400"), "not_a_number:pc"),
    "fraction of another range in words": (with_value('"4 out of 10"'), "not_a_number:pc"),
    "8/10, which is no 4/5": (with_value('"8/10"'), "not_a_number:pc"),
    "numbers of another alphabet": (with_value('"٤"'), "not_a_number:pc"),
    "quoted by a verdict that is cut off": (f'{{"why": "it says {QUOTED} so', "no_json"),
    "quoted in single quotes, cut off": (f"{{'why': 'it says {GOOD} so", "no_json"),
    "quoted without escapes": (with_value('1, "why": "the prompt says ' + GOOD + '"'), "no_json"),
    "in an object that is cut off": (f'{{"evaluation": {GOOD}, "why": "since', "no_json"),
    "unquoted keys": (GOOD.replace('"', ""), "no_json"),
    "before too many braces": (GOOD + "{x}" * MAX_OPENINGS, "no_json"),
    "white space flood within": (GOOD.replace(",", "," + " " * MAX_REPLY), "too_long"),
    "a megabyte": ("x" * 2**20 + GOOD, "too_long"),
    "set": ("{1, 2}", "no_json"),
    "set of a list": ("{[4]}", "no_json"),
    "too long": ("x" * (MAX_REPLY + 1), "too_long"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_unscored_with_its_reason(text: str, reason: str, rubric: Rubric) -> None:
    assert parse_reply(text, rubric) == ParsedReply(None, reason)


@pytest.mark.parametrize("value", ["0", "5", "0.0", "5.0", '"0"', '"5/5"'])
def test_bounds_of_the_range_are_allowed(value: str, rubric: Rubric) -> None:
    scores = parse_reply(with_value(value), rubric).scores
    assert scores == {"pc": float(value.strip('"').split("/")[0]), "sa": 3.5}


def test_range_is_that_of_the_rubric() -> None:
    one = rubric_of(("x", -1, 10, "integer"))
    assert parse_reply('{"x": "9/10"}', one) == ParsedReply({"a": 9.0})
    assert parse_reply('{"x": -1}', one) == ParsedReply({"a": -1.0})
    assert parse_reply('{"x": "4/5"}', one) == ParsedReply(None, "not_a_number:a")
    assert parse_reply('{"x": 10.5}', one) == ParsedReply(None, "out_of_range:a")


HOSTILE = {
    "braces": "{" * MAX_REPLY,
    "braces with an end": "{" * (MAX_REPLY - 1) + "}",
    "nested objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "nested objects without end": '{"a":' * 4000,
    "nested lists": '{"a":' + "[" * 19_000,
    "quotes": "{'" * 9_990 + "}",
    "lines": "{\n" * 9_990 + "}",
    "comments": "{#" * 9_990 + "\n a b }",
    "signs": "{-" * 9_990 + "1}",
    "commas": "{," * 9_990 + "}",
    "small objects": "{1}" * 6_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_work_for_a_hostile_reply_is_bounded(text, rubric, monkeypatch) -> None:
    """A limited number of braces is tried, and a limited text is read each time."""
    read: list[int] = []
    literal_eval = ast.literal_eval

    def counting(piece: str) -> object:
        read.append(len(piece))
        return literal_eval(piece)

    monkeypatch.setattr(ast, "literal_eval", counting)
    start = time.process_time()
    verdict = parse_reply(text, rubric)
    assert time.process_time() - start < 5.0
    assert verdict.scores is None
    assert verdict.reason in ("no_json", "missing_score")
    assert len(read) <= MAX_OPENINGS * MAX_CLOSINGS
    assert all(length <= 1_000 for length in read)


def test_number_in_a_string_is_parsed_in_linear_time(rubric: Rubric) -> None:
    """Blanks between a number and other text were once tried in pairs: 10⁸ of them."""
    start = time.process_time()
    for text in ("4" + " " * 19_000 + "x", "4" * 19_000 + "x", "4/" + " " * 19_000 + "x"):
        assert parse_reply(with_value(f'"{text}"'), rubric) == ParsedReply(None, "not_a_number:pc")
    assert time.process_time() - start < 1.0


def test_markdown_escapes_do_not_warn(rubric: Rubric, recwarn: pytest.WarningsRecorder) -> None:
    assert parse_reply(r"{\_a: '\_'} {'\_': 1}", rubric).scores is None
    assert not list(recwarn)
