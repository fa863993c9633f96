"""Trial calls find out which constraint a server honours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from asking import Make
from judge_server import Call, Http, completion

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.constraint import reply_pattern, reply_schema
from autolora_eval.scoring.judge import Request
from autolora_eval.scoring.judges.openai_protocol import NEUTRAL
from autolora_eval.scoring.rubric import Rubric

FREE = 'The verdict: {"prompt_correspondence": 5, "style_adherence": 5}'


@pytest.fixture
def judge(judge: Make, rubric: Rubric) -> Make:
    settings = {"rubric": rubric, "constraint": "auto", "timeout": 5.0, "max_retries": 2}
    return lambda **changes: judge(**settings | changes)


def of_pattern(pattern: str) -> str:
    """The only reply of a pattern that pins every score: it without escapes and `?`."""
    assert re.fullmatch(r'\\\{"[a-z_]+": \?\[?[0-9]\]?, \?"[a-z_]+": \?\[?[0-9]\]?\\\}', pattern)
    return re.sub(r"[\\\[\]?]", "", pattern)


def of_schema(schema: dict[str, Any]) -> str:
    """The only reply of a schema that pins every score, spread over lines as servers do."""
    values = {name: part["enum"][0] for name, part in schema["properties"].items()}
    return json.dumps(values, indent=4)


def obeying(name: str) -> Callable[[Call, int], Any]:
    """A server that knows one argument, and ignores all that it does not know."""

    def answer(call: Call, n: int) -> Any:
        body = call.body
        if name == "structured_outputs" and name in body:
            return of_pattern(body[name]["regex"])
        if name == "guided_regex" and name in body:
            return of_pattern(body[name])
        if name == "response_format" and name in body:
            return of_schema(body[name]["json_schema"]["schema"])
        return FREE

    return answer


def rejecting(status: int) -> Callable[[Call, int], Any]:
    """A server that rejects arguments that it does not know."""

    def answer(call: Call, n: int) -> Any:
        unknown = {"structured_outputs", "guided_regex"} & call.body.keys()
        return Http(status) if unknown else obeying("response_format")(call, n)

    return answer


def blank(call: Call, n: int) -> Any:
    if "response_format" in call.body:
        return completion('{"prompt_correspondence": ' + " \n" * 60, "length")
    return FREE


def failing_twice(call: Call, n: int) -> Any:
    return Http(500) if n in (0, 2) else obeying("structured_outputs")(call, n)


# A plain server always gives the best score: one of its two trials is right by chance.
NAMES = ("structured_outputs", "guided_regex", "response_format", "plain")
ANSWERS = {name: (obeying(name), name) for name in NAMES}
ANSWERS |= {f"rejects by {n}": (rejecting(n), "response_format") for n in (400, 404, 422)}
ANSWERS |= {"white space": (blank, "plain"), "fails twice": (failing_twice, "structured_outputs")}


@pytest.mark.parametrize(("answer", "constraint"), ANSWERS.values(), ids=ANSWERS)
def test_first_constraint_that_the_server_honours_is_used(answer, constraint, server, judge):
    server.answer = answer
    assert judge().identity()["constraint"] == constraint


def test_permanent_failure_of_a_trial_is_an_error(server, judge) -> None:
    server.answer = lambda call, n: Http(500)
    with pytest.raises(AutoLoRAEvalError, match=r"a trial call fails: http_500"):
        judge(max_retries=1).identity()


def test_configured_constraint_is_sent_with_every_question_and_not_probed(
    server, judge, rubric, image
) -> None:
    expected = {
        "structured_outputs": {"structured_outputs": {"regex": reply_pattern(rubric)}},
        "guided_regex": {"guided_regex": reply_pattern(rubric)},
        "response_format": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": reply_schema(rubric)},
            }
        },
        "plain": {},
    }
    for name, arguments in expected.items():
        asked = judge(constraint=name)
        assert asked.identity()["constraint"] == name
        assert server.calls == []
        list(asked.replies([Request(image, rubric.question("a cat"))]))
        body = server.calls.pop().body
        found = {key: body[key] for key in body.keys() & set(expected)}
        assert found == arguments
        assert body.items() >= NEUTRAL.items()


def with_logprobs(call: Call, most: int) -> Any:
    if call.body.get("top_logprobs", 0) > most:
        return Http(400) if most > 1 else with_logprobs_of(call, 1)
    return with_logprobs_of(call, most)


def with_logprobs_of(call: Call, most: int) -> Any:
    answer = completion("4")
    if call.body.get("logprobs") and most:
        likely = [{"token": "4", "logprob": -0.1}]
        likely += [{"token": "5", "logprob": -2.4}] if most > 1 else []
        likely += [{"token": "x", "logprob": -9999.0}]
        entry = {"token": "4", "logprob": -0.1, "top_logprobs": likely}
        end = {"token": "</s>", "logprob": 0.0, "top_logprobs": []}
        answer["choices"][0]["logprobs"] = {"content": [entry, end]}
    return answer


@pytest.mark.parametrize(("most", "asked"), [(20, 20), (5, 5), (0, None), (1, None)])
def test_as_many_log_probabilities_as_the_server_returns(
    most: int, asked: int | None, server, judge, rubric, image
) -> None:
    server.answer = lambda call, n: with_logprobs(call, most)
    asking = judge(constraint="plain", logprobs=True)
    assert asking.identity()["logprobs"] == (asked is not None)
    (((_, reply),),) = list(asking.replies([Request(image, rubric.question("a cat"))]))
    assert server.calls[-1].body.get("top_logprobs") == asked
    # Tokens that a constraint forbids and the end token are left out.
    tokens = [(token.text, dict(token.alternatives)) for token in reply.tokens]
    assert tokens == ([("4", {"4": -0.1, "5": -2.4})] if asked else [])


def test_transient_failure_does_not_disable_log_probabilities(server, judge) -> None:
    server.answer = lambda call, n: Http(429) if n == 0 else with_logprobs(call, 20)
    assert judge(constraint="plain", logprobs=True).identity()["logprobs"] is True
    server.answer = lambda call, n: Http(401)
    with pytest.raises(AutoLoRAEvalError, match=r"a trial call fails: http_401\. .*_API_KEY"):
        judge(constraint="plain", logprobs=True).identity()


@pytest.mark.parametrize(
    ("low", "high", "kind", "pinned_to"),
    [(0.5, 4.5, "integer", [1, 4]), (-0.0, 5.0, "number", [0, 5]), (1.0, 3.0, "number", [1, 3])],
)
def test_trials_force_the_lowest_and_highest_allowed_values(
    low: float, high: float, kind: str, pinned_to: list[int], server, judge, rubric
) -> None:
    score = rubric.scores["pc"].model_copy(update={"min": low, "max": high, "type": kind})
    between = rubric.model_copy(update={"scores": rubric.scores | {"pc": score}})
    server.answer = obeying("structured_outputs")
    assert judge(rubric=between).identity()["constraint"] == "structured_outputs"
    pinned = [call.body["structured_outputs"]["regex"] for call in server.calls]
    assert [json.loads(of_pattern(one))["prompt_correspondence"] for one in pinned] == pinned_to
