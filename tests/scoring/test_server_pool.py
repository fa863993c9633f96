"""The servers of a judge: checks, load balancing, failures and recovery."""

from __future__ import annotations

import itertools
import re
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from asking import QUESTION, Make, ask, questions, until_it_stops
from judge_server import MODEL, VERDICT, Drop, Http, JudgeServer, judge_server

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judge import Request, is_transient
from autolora_eval.scoring.judges import server as judge_client
from autolora_eval.scoring.judges import server_pool
from autolora_eval.scoring.judges.openai_judge import MAX_CONSECUTIVE_FAILURES, MAX_FAILOVERS
from autolora_eval.scoring.judges.server import Server

pytestmark = pytest.mark.usefixtures("dead_proxy")


def test_unreachable_server_is_an_error(judge: Make) -> None:
    with judge_server(JudgeServer()) as gone:
        pass
    with pytest.raises(AutoLoRAEvalError) as caught:
        judge(base_url=gone.url).check()
    message = str(caught.value)
    assert message.startswith(f"the judge's server at {gone.url} does not answer")
    assert f"vllm serve {MODEL}" in message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, f"serves a, b, not '{MODEL}'. Set judge.model"),
        (
            {"data": [{"id": "Some-VLM"}, *({"id": f"m{n}"} for n in range(300))]},
            f"m6 and 293 more, not '{MODEL}'. Did you mean 'Some-VLM'. Set judge.model",
        ),
        ({"data": []}, f"serves nothing, not '{MODEL}'"),
        (Http(503, b"{}"), "answers 503 to a request for its models. It may still be starting"),
        (Http(401, b"{}"), "answers 401 .* AUTOLORA_EVAL_JUDGE_API_KEY"),
        (Http(400, b'{"error": "no version"}'), r"answers 400 .*\(no version\)\. .* ends in /v1"),
        (Http(200, b"<html>Log in</html>", "text/html"), "does not speak the OpenAI protocol"),
        (Http(200, b"[1]"), "does not speak the OpenAI protocol"),
        (Http(200, b"{torn"), "does not speak the OpenAI protocol"),
        (Drop(), "does not answer"),
    ],
)
def test_server_without_the_judges_model_is_asked_nothing(
    models, message, server, image, judge
) -> None:
    server.models = models
    with pytest.raises(AutoLoRAEvalError, match=message):
        ask(judge(), [Request(image, QUESTION)])
    assert server.calls == []


def test_https_address_of_an_http_server_is_explained(server, judge) -> None:
    secure = server.url.replace("http://", "https://")
    with pytest.raises(AutoLoRAEvalError, match=r"secure connection .* whether it is http:// or"):
        judge(base_url=secure).check()


@pytest.mark.parametrize("models", [[{"id": MODEL}], {"data": [{"id": f"models/{MODEL}"}]}])
def test_lists_of_together_and_gemini_are_read(models, server, image, judge) -> None:
    server.models = models
    (reply,) = ask(judge(), [Request(image, QUESTION)])
    assert reply.text == VERDICT


@pytest.mark.parametrize("status", [404, 405, 501])
def test_server_that_lists_no_models_is_used_if_it_answers(status, server, image, judge) -> None:
    server.models = Http(status)
    asked = judge()
    (reply,) = ask(asked, [Request(image, QUESTION)])
    assert (reply.text, asked.facts()["unlisted"]) == (VERDICT, True)
    brief, _ = server.calls
    assert (brief.body["model"], brief.parts) == (MODEL, "Hello")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (VERDICT, None),
        (Http(404), f"serves gpt-9, not '{MODEL}'. Set judge.model to a served model"),
        (Http(400), f"serves gpt-9, not '{MODEL}'. Set judge.model to a served model"),
        (Http(401), "answers 401 to a question. If it needs an API key"),
    ],
)
def test_hosted_model_with_another_name_than_the_listed_ones_is_used_if_it_answers(
    answer, message, server, image, judge, monkeypatch
) -> None:
    """As on Azure, where a model has the name of its deployment."""
    monkeypatch.setattr(judge_client, "_is_hosted", lambda url: True)
    server.models, server.answer = {"data": [{"id": "gpt-9"}]}, lambda call, n: answer
    asked = judge()
    if message is None:
        ask(asked, [Request(image, QUESTION)])
        assert asked.facts()["unlisted"]
    else:
        with pytest.raises(AutoLoRAEvalError, match=message):
            asked.check()
    assert server.calls[0].parts == "Hello"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Http(401), "answers 401 to a question. If it needs an API key, set AUTOLORA_EVAL_JUDGE"),
        (Http(403), "answers 403 to a question. If it needs an API key, set AUTOLORA_EVAL_JUDGE"),
        (Http(404, b'{"detail": "Not Found"}'), "answers 404 .*Not Found.* ends in /v1, and judge"),
        (Http(501), "answers 501 .* ends in /v1, and judge"),
        (Http(502, b"<html><h1>Bad\nGateway</h1>"), r"502 .* \(Bad Gateway\)\. .*be starting"),
        ({"error": {"message": "Unexpected endpoint"}}, r"\(Unexpected endpoint\)"),
        (Http(200, b"<html>"), "does not speak the OpenAI protocol"),
        (Drop(), "does not answer"),
    ],
)
def test_server_that_lists_no_models_and_does_not_answer_is_an_error(
    answer, message, server, image, judge
) -> None:
    server.models, server.answer = Http(404), lambda call, n: answer
    with pytest.raises(AutoLoRAEvalError, match=message):
        ask(judge(), [Request(image, QUESTION)])
    assert [call.parts for call in server.calls] == ["Hello"]


def test_key_that_the_server_repeats_is_not_shown(server, judge, monkeypatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", "sentinel-key")
    server.models = Http(401, b'{"error": {"message": "Incorrect API key: sentinel-key"}}')
    with pytest.raises(AutoLoRAEvalError, match=r"answers 401 .* \(Incorrect API key: \[key\]\)"):
        judge().check()


def test_calls_wait_for_a_server_that_comes_back(server, tmp_path, judge, monkeypatch) -> None:
    """Meanwhile no call is given up, and waiting does not count as an attempt."""
    monkeypatch.setattr(server_pool, "PROBE_INTERVAL_ALONE", 0.05)

    def answer(call: Any, n: int) -> object:
        if n == 3:
            server.models = Drop()
            threading.Timer(0.3, lambda: setattr(server, "models", JudgeServer().models)).start()
            return Drop()
        return VERDICT

    server.answer = answer
    replies = ask(judge(concurrency=1, give_up_after=30.0), questions(tmp_path, 9))
    assert [reply.text for reply in replies] == [VERDICT] * 9
    assert sum(reply.attempts for reply in replies) == len(server.calls) == 10


def test_run_stops_if_the_server_answers_no_call(server, tmp_path, judge) -> None:
    """It is there, and lists the model: the run would end with nothing but failures."""
    server.answer = lambda call, n: Http(500)
    requests = questions(tmp_path, MAX_CONSECUTIVE_FAILURES + 20)
    came, error = until_it_stops(judge(concurrency=2), requests)
    assert re.search(r"is up, but the last \d+ requests failed.*http_500", error)
    assert MAX_CONSECUTIVE_FAILURES - 4 <= len(came) < len(requests)


def test_rejected_questions_do_not_stop_the_run(server, tmp_path, judge) -> None:
    """A status 400 says that this prompt is too long, not that the server is gone."""
    server.answer = lambda call, n: Http(400)
    replies = ask(judge(), questions(tmp_path, MAX_CONSECUTIVE_FAILURES + 20))
    assert {reply.reason for reply in replies} == {"http_400"}


def test_load_is_distributed_evenly(tmp_path: Path, judge: Make) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(judge_server(JudgeServer())) for _ in range(3)]
        balanced = judge(base_url=[server.url for server in servers], concurrency=1)
        replies = ask(balanced, questions(tmp_path, 30))
    assert [reply.text for reply in replies] == [VERDICT] * 30
    assert [len(server.calls) for server in servers] == [10, 10, 10]


def test_server_that_goes_down_is_not_used(tmp_path: Path, judge: Make) -> None:
    with judge_server(JudgeServer()) as good, judge_server(JudgeServer()) as bad:

        def die(call: Any, n: int) -> object:
            if n < 5:
                return VERDICT
            bad.models = Drop()
            return Drop()

        bad.answer = die
        replies = ask(judge(base_url=[good.url, bad.url], concurrency=2), questions(tmp_path, 40))
    assert [reply.text for reply in replies] == [VERDICT] * 40
    assert len(good.calls) == 40 - 5
    assert 5 < len(bad.calls) <= 5 + 2


def test_server_that_is_down_at_the_start_is_not_used(server, tmp_path, judge) -> None:
    with judge_server(JudgeServer()) as gone:
        pass
    replies = ask(judge(base_url=[gone.url, server.url]), questions(tmp_path, 4))
    assert [reply.text for reply in replies] == [VERDICT] * 4


def test_servers_with_different_models_under_one_name_are_rejected(judge: Make) -> None:
    def serving(root: str) -> JudgeServer:
        return JudgeServer(models={"data": [{"id": MODEL, "root": root}]})

    with judge_server(serving("a/b")) as one, judge_server(serving("c/d")) as other:
        split = judge(base_url=[one.url, other.url])
        with pytest.raises(AutoLoRAEvalError, match="must serve one model"):
            split.identity()


def test_question_that_crashes_servers_is_left_for_a_later_run(
    server: JudgeServer, image: Path, judge: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is gone after each call, and comes back."""
    monkeypatch.setattr(server_pool, "PROBE_INTERVAL_ALONE", 0.0)
    server.answer = lambda call, n: Drop() if n < 40 else VERDICT
    alone = judge(max_retries=4, give_up_after=5.0)
    alone.identity()
    there = itertools.cycle([False, True])

    async def is_there(_: Server) -> None:
        if not next(there):
            raise AutoLoRAEvalError("gone")

    monkeypatch.setattr(alone._pool, "_probe", is_there)
    (reply,) = ask(alone, [Request(image, QUESTION)])
    assert reply.reason == "connection"
    assert is_transient(reply.reason)
    assert reply.attempts == server.total == MAX_FAILOVERS
