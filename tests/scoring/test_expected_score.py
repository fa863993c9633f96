"""The expected score: known values, and cases without one."""

from __future__ import annotations

import math

import pytest
from rubrics import rubric_of

from autolora_eval.scoring.judges.config import Token
from autolora_eval.scoring.reply import expected_scores
from autolora_eval.scoring.rubric import Rubric

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
