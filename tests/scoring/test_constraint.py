"""Constraints allow exactly the rubric's replies, in Python's `re` and in llguidance."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from rubrics import rubric_of, shipped

from autolora_eval.scoring.constraint import reply_pattern, reply_schema
from autolora_eval.scoring.reply import ParsedReply, parse_reply
from autolora_eval.scoring.rubric import Rubric

TEXT, WORDS = {"kind": "text"}, {"kind": "keywords"}
MADE_UP = {
    "hundred": rubric_of(("x", 1, 100, "integer")),
    "negative": rubric_of(("x", -12, 3, "integer"), ("y", -7, -5, "integer")),
    "inner whole numbers": rubric_of(("x", -1.5, 2.5, "integer")),
    "unit": rubric_of(("x", 0, 1, "number")),
    "five": rubric_of(("x", 0, 5, "number"), ("y", 0, 5, "integer")),
    "odd bounds": rubric_of(("x", -1.25, 10.75, "number")),
    "negative decimals": rubric_of(("x", -0.75, -0.3, "number")),
    "small": rubric_of(("x", 0.001, 0.002, "number")),
    "quotes": rubric_of(('it\'s "x"', 0, 5, "integer")),
    "backslashes": rubric_of((r"a\d\n", 0, 5, "integer"), ("\n\t\x01", 0, 5, "integer")),
    "signs": rubric_of((r"^(a|b)[c]{1,2}.*+?$-&~#/ ", 0, 5, "integer")),
    "other alphabets": rubric_of(("γ 猫 🐱", 0, 5, "integer")),
    "remarks": rubric_of(
        ("x", 0, 5, "integer"),
        **{"after": WORDS, "before": {**TEXT, "before_scores": True}, "last.": TEXT},
    ),
}
NAMES = ("pixel_art", "disney_princess", "style", "character_miniature")
SHIPPED = {name: shipped(name) for name in NAMES}
ALL = SHIPPED | MADE_UP
each = pytest.mark.parametrize("name", ALL)
BYTES = LLTokenizer("byte")


def decimals(low: float, high: float, kind: str) -> int:
    """At least a hundred steps, and no end left out."""
    if kind == "integer":
        return 0
    enough = (n for n in range(1, 10) if (high - low) * 10**n >= 100)
    return next(n for n in enough if round(low, n) == low and round(high, n) == high)


def numbers_around(low: float, high: float, most: int) -> Iterator[tuple[str, bool]]:
    """Every number with up to one decimal too many, beyond the range too: (text, allowed)."""
    for places in range(most + 2):
        step = Decimal(10) ** -places
        first, last = int(Decimal(str(low)) / step), int(Decimal(str(high)) / step)
        for n in range(first - 20, last + 21):
            value = n * step
            inside = Decimal(str(low)) <= value <= Decimal(str(high))
            yield f"{value:.{places}f}", inside and places <= most


def reply(asked: Rubric, values: dict[str, str], after: str = " ") -> str:
    """A reply in the rubric's order, with `after` behind each colon and comma."""
    members = {score.key: values[column] for column, score in asked.scores.items()}
    said = {key: '"a b"' if r.kind == "text" else '["a","b"]' for key, r in asked.remarks.items()}
    first = {key: text for key, text in said.items() if asked.remarks[key].before_scores}
    last = {key: text for key, text in said.items() if key not in first}
    parts = [
        f"{json.dumps(key, ensure_ascii=False)}:{after}{text}"
        for key, text in (first | members | last).items()
    ]
    return f"{{{f',{after}'.join(parts)}}}"


def lowest(asked: Rubric) -> dict[str, str]:
    """A right value for each column."""
    return {
        column: str(math.ceil(score.min)) if score.type == "integer" else f"{score.min:g}"
        for column, score in asked.scores.items()
    }


@each
def test_exactly_the_numbers_of_the_range_match_and_are_parsed(name: str) -> None:
    asked, right = ALL[name], lowest(ALL[name])
    pattern = re.compile(reply_pattern(asked))
    for column, score in asked.scores.items():
        allowed = 0
        for text, fits in numbers_around(
            score.min, score.max, decimals(score.min, score.max, score.type)
        ):
            said = reply(asked, right | {column: text})
            if fits and Decimal(text) == 0 and text.startswith("-"):
                continue  # '-0' is 0 written otherwise
            assert (pattern.fullmatch(said) is not None) == fits, said
            if fits:
                allowed += 1
                scores = {c: float(v) for c, v in (right | {column: text}).items()}
                assert parse_reply(said, asked) == ParsedReply(scores)
        assert allowed >= 2


@each
def test_other_spellings_of_numbers_do_not_match(name: str) -> None:
    asked = ALL[name]
    numbers = ("", "-", "04", "-0", "+4", "4.", ".4", "4e0", "٤", "nan", '"4"')
    for column, number in itertools.product(asked.scores, numbers):
        said = reply(asked, lowest(asked) | {column: number})
        assert re.fullmatch(reply_pattern(asked), said) is None, said


@each
def test_at_most_one_blank_is_allowed(name: str) -> None:
    asked = ALL[name]
    pattern, right = re.compile(reply_pattern(asked)), lowest(asked)
    good = reply(asked, right)
    assert pattern.fullmatch(reply(asked, right, ""))
    assert pattern.fullmatch(good)
    for blank in ("  ", "\n", "\t"):
        assert not pattern.fullmatch(reply(asked, right, blank))
        around = [
            f"{blank}{good}",
            f"{good}{blank}",
            f"{{{blank}{good[1:]}",
            f"{good[:-1]}{blank}}}",
        ]
        assert not any(map(pattern.fullmatch, around))  # fmt: skip


@each
def test_keys_must_be_complete_unique_and_in_order(name: str) -> None:
    asked = ALL[name]
    pattern, good = re.compile(reply_pattern(asked)), json.loads(reply(asked, lowest(asked)))
    members = [f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(good[key])}" for key in good]
    assert pattern.fullmatch(f"{{{', '.join(members)}}}")
    wrong = [[*members, members[0]], [*members, '"else": 1']]
    wrong += [members[:n] + members[n + 1 :] for n in range(len(members))]
    wrong += [list(p) for p in itertools.permutations(members) if list(p) != members]
    for some in wrong:
        assert not pattern.fullmatch(f"{{{', '.join(some)}}}")


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ('["dress", "hairstyle", "no Anna character"]', True),
        ("[]", True),
        ('["it\'s (nearly) her: 90%, long-haired!"]', False),  # 36 characters
        ('["it\'s her: 90%, long-haired!"]', True),
        (json.dumps(["a"] * 6), True),
        (json.dumps(["a"] * 7), False),
        (json.dumps(["a" * 30]), True),
        (json.dumps(["a" * 31]), False),
        ('[""]', False),
        ('["a",]', False),
        ('["a\\"b"]', False),
        ('["a{b}"]', False),
        ('["a\nb"]', False),
        ('["a\x7fb"]', False),
        ('["猫"]', False),
        ('"dress"', False),
    ],
)
def test_keywords_of_the_papers_rubric(said: str, fits: bool) -> None:
    princess = SHIPPED["disney_princess"]
    text = f'{{"score": 4, "reason": {said}}}'
    assert (re.fullmatch(reply_pattern(princess), text) is not None) == fits
    assert (accepted(LLMatcher.grammar_from_regex(reply_pattern(princess)), text)) == fits
    schema = LLMatcher.grammar_from_json_schema(json.dumps(reply_schema(princess)))
    assert accepted(schema, text) == fits
    if fits:
        assert parse_reply(text, princess) == ParsedReply({"cps": 4.0})


def test_text_remark_is_bounded_and_contains_no_object() -> None:
    asked = MADE_UP["remarks"]
    right = '{"before": "%s", "x": 3, "after": [], "last.": ""}'
    for said, fits in [("a" * 300, True), ("a" * 301, False), ("a {'x': 1}", False), ("", True)]:
        assert (re.fullmatch(reply_pattern(asked), right % said) is not None) == fits
        schema = LLMatcher.grammar_from_json_schema(json.dumps(reply_schema(asked)))
        assert accepted(schema, right % said) == fits


def test_schema_repetitions_stay_below_the_limit_of_xgrammar() -> None:
    """Version 0.2.8 fails on more than 128 in a schema; a regular expression may have 1,000."""
    schema = json.dumps(reply_schema(MADE_UP["remarks"]))
    counts = [int(count) for count in re.findall(r"\{[0-9]+,([0-9]+)\}", schema)]
    assert counts
    assert max(counts) <= 128


@each
def test_truncated_reply_has_no_scores(name: str) -> None:
    said = reply(ALL[name], lowest(ALL[name]))
    for end in range(len(said)):
        assert parse_reply(said[:end], ALL[name]).scores is None


def longest_reply(asked: Rubric) -> int:
    """The length of the longest match, as Python's own parser of patterns counts it."""
    parser = re._parser  # type: ignore[attr-defined]
    return int(parser.parse(reply_pattern(asked)).getwidth()[1])


@each
def test_every_repetition_is_bounded(name: str) -> None:
    assert longest_reply(ALL[name]) < 2_000


def test_replies_to_shipped_rubrics_fit_the_default_number_of_tokens() -> None:
    lengths = {name: longest_reply(asked) for name, asked in SHIPPED.items()}
    assert lengths["pixel_art"] == lengths["style"] == 50
    assert lengths["disney_princess"] == lengths["character_miniature"] == 228


@each
def test_pattern_uses_only_portable_syntax(name: str) -> None:
    """Taken for escapes, classes and counts that all read alike, what is left is literal."""
    pattern = reply_pattern(ALL[name])
    left = re.sub(r"\\[\\.+*?()|\[\]{}^$]", "", pattern)
    left = re.sub(r"\[(0-9|[0-9]-[0-9]| !#-Z_-z)\](\{[0-9]+,[0-9]+\})?", "", left)
    left = re.sub(r"\)\{[0-9]+,[0-9]+\}", ")", left)
    assert not re.search(r"[\\\[\]{}*+^$]|\(\?", left)


def accepted(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = BYTES.tokenize_bytes(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@each
def test_llguidance_accepts_the_same_replies(name: str) -> None:
    asked = ALL[name]
    grammar, right = LLMatcher.grammar_from_regex(reply_pattern(asked)), lowest(asked)
    assert accepted(grammar, reply(asked, right))
    assert accepted(grammar, reply(asked, right, ""))
    assert not accepted(grammar, reply(asked, right, "  "))
    assert not accepted(grammar, reply(asked, right) + " ")
    assert not accepted(grammar, reply(asked, right)[:-1])
    for column, score in asked.scores.items():
        around = numbers_around(score.min, score.max, decimals(score.min, score.max, score.type))
        for text, _ in itertools.islice(around, 0, None, 23):
            said = reply(asked, right | {column: text})
            fits = re.fullmatch(reply_pattern(asked), said) is not None
            assert accepted(grammar, said) == fits, said


@each
def test_schema_allows_the_same_values(name: str) -> None:
    asked = ALL[name]
    schema, right = reply_schema(asked), lowest(asked)
    keys = list(json.loads(reply(asked, right)))
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert list(schema["properties"]) == schema["required"] == keys
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert accepted(grammar, reply(asked, right))
    for column, score in asked.scores.items():
        for value in (score.min - 1, score.max + 1):
            assert not accepted(grammar, reply(asked, right | {column: f"{value:g}"}))
        if score.type == "integer":
            assert not accepted(grammar, reply(asked, right | {column: right[column] + ".5"}))


def test_values_in_the_schema() -> None:
    def of(low: float, high: float, kind: str) -> Any:
        return reply_schema(rubric_of(("x", low, high, kind)))["properties"]["x"]

    assert of(0, 5, "integer") == {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]}
    assert of(-1.5, 1.5, "integer") == {"type": "integer", "enum": [-1, 0, 1]}
    assert of(0, 1, "number") == {"type": "number", "minimum": 0.0, "maximum": 1.0}
    assert of(1, 100, "integer") == {"type": "integer", "enum": list(range(1, 101))}
    assert of(0, 100, "integer") == {"type": "integer", "minimum": 0, "maximum": 100}


def test_forced_scores_have_one_value_and_no_remarks() -> None:
    princess, art = SHIPPED["disney_princess"], SHIPPED["pixel_art"]
    assert reply_pattern(princess, {"cps": 3}) == r'\{"score": ?3\}'
    assert reply_schema(princess, {"cps": 3.0})["properties"] == {
        "score": {"type": "integer", "enum": [3]}
    }
    both = reply_pattern(art, {"sa": 0.0, "pc": 5.0})
    assert both == r'\{"prompt_correspondence": ?5, ?"style_adherence": ?0\}'
    assert reply_pattern(art, {"sa": 2}).endswith(r'"style_adherence": ?2\}')
    assert reply_pattern(art, {"sa": 2}).startswith(r'\{"prompt_correspondence": ?[0-5],')
    decimal = rubric_of(("x", -1, 1, "number"))
    assert reply_pattern(decimal, {"a": -0.25}) == r'\{"x": ?-0\.25\}'
    assert reply_schema(decimal, {"a": -0.25})["properties"]["x"]["enum"] == [-0.25]


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ({"cps": 3}, "'cps' is not one of the columns pc, sa"),
        ({"pc": 6}, "'pc' does not allow the integer 6"),
        ({"pc": -1}, "'pc' does not allow the integer -1"),
        ({"pc": 2.5}, "'pc' does not allow the integer 2.5"),
        ({"pc": float("nan")}, "does not allow the integer NaN"),
    ],
)
def test_invalid_forced_value_is_rejected(forced: dict[str, float], message: str) -> None:
    for function in (reply_pattern, reply_schema):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(SHIPPED["pixel_art"], forced)
