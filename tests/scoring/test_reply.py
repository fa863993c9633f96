"""Replies that are parsed, the reasons of those that are not, and expected scores."""

from __future__ import annotations

import ast
import json
import math
import time

import pytest
from rubrics import rubric_of

from autolora_eval.scoring.judge import Token
from autolora_eval.scoring.reply import (
    MAX_CLOSINGS,
    MAX_OPENINGS,
    MAX_REPLY,
    ParsedReply,
    expected_scores,
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
    "the last of a repeated key": GOOD.replace("{", '{"style_adherence": 1, '),
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
    "twice in an object": f'{{"draft": {GOOD}, "final": {GOOD}}}',
    "underscores as in Markdown": GOOD.replace("_", r"\_").replace("}", r', "why": "a\\_b"}'),
    "before a turn that nobody asked for": f"</s>{GOOD}<|im_end|>\nuser\n{with_value('1')}",
    "after a thought in marks of its own": f"<unused94>thought\n{with_value('1')}<unused95>{GOOD}",
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
    "8/10, which is not 4/5": (with_value('"8/10"'), "not_a_number:pc"),
    "numbers of another alphabet": (with_value('"٤"'), "not_a_number:pc"),
    "quoted by a verdict that is cut off": (f'{{"why": "it says {QUOTED} so', "no_json"),
    "quoted in single quotes, cut off": (f"{{'why': 'it says {GOOD} so", "no_json"),
    "quoted without escapes": (with_value('1, "why": "the prompt says ' + GOOD + '"'), "no_json"),
    "in an object that is cut off": (f'{{"evaluation": {GOOD}, "why": "since', "no_json"),
    "in a thought of Gemma without end": (f"<|channel>thought\n{GOOD} but", "no_json"),
    "in an analysis of gpt-oss": (f"<|channel|>analysis<|message|>{GOOD}<|end|>", "no_json"),
    "below a draft": (f'{{"draft": {with_value("1")}, "final": {GOOD}}}', "ambiguous"),
    "above the highest scores": (f'{{"scores": {GOOD}, "max": {with_value("5")}}}', "ambiguous"),
    "number of full width": (with_value('"\uff14"'), "not_a_number:pc"),
    "decimal comma": (with_value('"3,5"'), "not_a_number:pc"),
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


# Expected scores.

PC, SA = "prompt_correspondence", "style_adherence"


def said(*parts: str | dict[str, float]) -> list[Token]:
    """Tokens: a text, or alternatives with their probabilities, the first of which was said."""
    tokens = []
    for part in parts:
        chances = {part: 1.0} if isinstance(part, str) else part
        logprobs = {text: math.log(p) if p else -math.inf for text, p in chances.items()}
        tokens.append(Token(next(iter(chances)), logprobs))
    return tokens


def expected(tokens: list[Token], rubric: Rubric) -> dict[str, float] | None:
    return expected_scores("".join(token.text for token in tokens), tokens, rubric)


@pytest.mark.parametrize(
    ("pc", "sa", "means"),
    [
        ({"4": 0.5, "5": 0.25, "2": 0.25}, {"3": 0.9, "0": 0.1}, (3.75, 2.7)),
        ("4", "0", (4.0, 0.0)),
        ({str(n): 1 / 6 for n in range(6)}, "1", (2.5, 1.0)),
        (
            {"4": 0.3, "2": 0.1, "9": 0.3, "-1": 0.05, '"': 0.1, "four": 0.1, "04": 0.03, "": 0.02},
            {"1": 0.5, "3": 0.0},
            (3.5, 1.0),
        ),
    ],
    ids=["uncertain", "certain", "even", "outside the range"],
)
def test_expected_score_is_the_mean_over_the_digits_of_the_range(pc, sa, means, rubric) -> None:
    tokens = said('{"', PC, '": ', pc, ', "', SA, '": ', sa, "}")
    found = dict(zip(("pc", "sa"), means, strict=True))
    assert expected(tokens, rubric) == pytest.approx(found, abs=1e-12)


def test_tiny_probabilities_keep_their_ratio(rubric: Rubric) -> None:
    pc = Token("4", {"4": -2000.0, "0": -2000.0 + math.log(3)})
    tokens = [*said(f'{{"{PC}": '), pc, *said(f', "{SA}": ', "1", "}")]
    assert expected(tokens, rubric) == pytest.approx({"pc": 1.0, "sa": 1.0}, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "around", "behind"),
    [
        (":", " {}", ", "),
        (": ", "{},", " "),
        (": ", '"{}', '", '),
        (": ", '"{}",', " "),
        (":", " [{}],\n", " "),
        (": ", "{}", ".0, "),
        (': "', "{}", '/5", '),
        (': "', "{}", ' out of 5", '),
    ],
)
def test_alternatives_need_the_same_surrounding_characters(before, around, behind, rubric) -> None:
    """Alternatives with other characters around it begin another reply, and do not count."""
    pc = {around.format(4): 0.5, around.format(1): 0.25, "0 ": 0.125, "x0": 0.125}
    tokens = said(f'{{"{PC}"{before}', pc, f'{behind}"{SA}": ', {"2": 0.5, "4": 0.5}, "}")
    assert expected(tokens, rubric) == pytest.approx({"pc": 3.0, "sa": 3.0}, abs=1e-12)


def test_only_numbers_of_the_last_object_count(rubric: Rubric) -> None:
    spread = {"4": 0.5, "0": 0.5}
    verdict = [f'{{"{PC}": ', spread, f', "{SA}": ', spread]
    tokens = said(
        *verdict, "} ", "4", " of ", "4", "! No: ",
        f'{{"{PC}": ', {"4": 0.75, "0": 0.25}, f', "{SA}": ', {"4": 0.25, "0": 0.75},
        ', "why": "', "4", " colours, ", f"'{SA}': ", "4", '"} for ', "4",
    )  # fmt: skip
    assert expected(tokens, rubric) == pytest.approx({"pc": 3.0, "sa": 1.0}, abs=1e-12)


@pytest.mark.parametrize(
    ("ahead", "end"), [((), ("<|eot_id|>",)), (("I think {", "4", "}\n"), ("\n", ""))]
)
def test_tokens_around_the_reply_are_ignored(ahead, end, rubric) -> None:
    tokens = said(f'{{"{PC}": ', {"4": 0.5, "2": 0.5}, f', "{SA}": ', "4", "}")
    text = "".join(token.text for token in tokens)
    found = expected_scores(text, [*said(*ahead), *tokens, *said(*end)], rubric)
    assert found == pytest.approx({"pc": 3.0, "sa": 4.0}, abs=1e-12)


def test_score_within_a_longer_token_has_no_expected_value(rubric: Rubric) -> None:
    half = said(f'{{"{PC}": ', "3", ".", "5", f', "{SA}": ', {"4": 0.5, "2": 0.5}, "}")
    assert expected(half, rubric) == pytest.approx({"sa": 3.0}, abs=1e-12)
    whole = said(f'{{"{PC}": 3, "{SA}": 4', "}")
    assert expected(whole, rubric) is None


def test_two_digit_and_negative_numbers() -> None:
    wide = rubric_of(("x", -10, 100, "integer"))
    for value, other in [("85", "15"), ("-10", "110"), ("-7", "107"), ("100", "101"), ("0", "99")]:
        tokens = said('{"x": ', {value: 0.5, other: 0.5}, "}")
        numbers = [int(n) for n in (value, other) if -10 <= int(n) <= 100]
        mean = sum(numbers) / len(numbers)
        assert expected(tokens, wide) == pytest.approx({"a": mean}, abs=1e-12)
    assert expected(said('{"x": ', "1", "5", "}"), wide) is None
    assert expected(said('{"x": ', "-", "7", "}"), wide) is None


def test_range_without_two_whole_numbers_has_no_expected_value() -> None:
    narrow = rubric_of(("x", 0.5, 1.5, "number"))
    assert expected(said('{"x": ', "1", "}"), narrow) is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("", said("")),
        (f'{{"{PC}": 4, "{SA}": 4}}', []),
        (f'{{"{PC}": 4, "{SA}": 4}}', said(f'{{"{PC}": ', "4", f', "{SA}":', "4", "}")),
        (f'{{"{PC}": 4', said(f'{{"{PC}": ', "4")),
        (f'{{"{PC}": 6, "{SA}": 4}}', said(f'{{"{PC}": ', "6", f', "{SA}": ', "4", "}")),
        ("no verdict: 4", said("no verdict: ", "4")),
    ],
)
def test_no_expected_scores_without_scores_or_matching_tokens(text, tokens, rubric) -> None:
    assert expected_scores(text, tokens, rubric) is None


def test_no_expected_scores_without_usable_alternatives(rubric: Rubric) -> None:
    for alternatives in ({}, {"4": -math.inf}, {"4": math.nan}, {"9": -0.1}):
        four = Token("4", alternatives)
        tokens = [*said(f'{{"{PC}": '), four, *said(f', "{SA}": '), four, *said("}")]
        assert expected(tokens, rubric) is None


def test_the_work_is_bounded(rubric: Rubric, monkeypatch: pytest.MonkeyPatch) -> None:
    from autolora_eval.scoring import reply as module

    calls = 0
    parse = module.parse_reply

    def counting(text: str, asked: Rubric) -> object:
        nonlocal calls
        calls += 1
        return parse(text, asked)

    monkeypatch.setattr(module, "parse_reply", counting)
    flood = [part for _ in range(4_000) for part in ("4", " ")]
    tokens = said(*flood, f'{{"{PC}": ', "4", f', "{SA}": ', "4", "}")
    assert expected(tokens, rubric) == {"pc": 4.0, "sa": 4.0}
    assert calls <= 1 + module.MAX_NUMBER_TOKENS * len(rubric.scores)
