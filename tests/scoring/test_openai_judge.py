"""The judge on a server: its requests, and its handling of every kind of response."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest
from asking import QUESTION, Make, ask, questions
from judge_server import MODEL, VERDICT, Call, Drip, Drop, Hang, Http, JudgeServer, completion
from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.scoring.judge import Reply, Request, is_transient
from autolora_eval.scoring.judges.openai_protocol import _tokens
from autolora_eval.scoring.judges.server import MAX_ANSWER_BYTES
from autolora_eval.sources.lookup import shipped_root

pytestmark = pytest.mark.usefixtures("dead_proxy")


def test_request_has_the_question_and_the_bytes_of_the_file(server, image, judge) -> None:
    settings = {"temperature": 0.25, "max_tokens": 77, "seed": 5}
    (reply,) = ask(judge(**settings), [Request(image, QUESTION)])
    (call,) = server.calls
    assert call.sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
    before, picture_part, after = call.parts
    assert before == {"type": "text", "text": QUESTION.before}
    assert picture_part["type"] == "image_url"
    assert after == {"type": "text", "text": QUESTION.after}
    assert [message["role"] for message in call.body["messages"]] == ["user"]
    assert {name: call.body[name] for name in settings} == settings
    assert call.body["model"] == MODEL
    assert (reply.text, reply.reason, reply.truncated) == (VERDICT, None, False)
    assert reply.model == "served-as"


@pytest.mark.parametrize(
    ("counts", "dropped", "calls"),
    [
        *(((400, 400), True, 3), ((400, 120), False, 3)),
        # These servers do not count tokens.
        *(((None, None), False, 2), ((0, 0), False, 2), ((1, 1), False, 2)),
    ],
)
def test_image_that_costs_no_tokens_may_be_dropped(
    counts, dropped, calls, server, image, judge
) -> None:
    """The first question is asked again without its image, if tokens are counted."""

    def answer(call: Call, n: int) -> dict[str, Any]:
        kinds = [part["type"] for part in call.parts]
        count = counts[0] if "image_url" in kinds else counts[1]
        return completion(VERDICT) | {"usage": {"prompt_tokens": count}}

    server.answer = answer
    asked = judge(concurrency=1)
    assert all(
        reply.text == VERDICT for reply in ask(asked, [Request(image, QUESTION) for _ in range(2)])
    )
    assert asked.facts().get("images_dropped", False) is dropped
    assert server.total == calls


@pytest.mark.parametrize(("key", "sent"), [("secret-123", "secret-123"), (None, "EMPTY")])
def test_key_is_read_from_the_environment(key, sent, server, image, monkeypatch, judge) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-key-that-this-server-must-not-see")
    monkeypatch.delenv("MY_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MY_KEY", key)
    asked = judge(api_key_env="MY_KEY")
    ask(asked, [Request(image, QUESTION)])
    assert server.calls[0].headers["authorization"] == f"Bearer {sent}"
    assert "secret-123" not in str(asked.identity())


FAULTS: dict[str, tuple[Any, str]] = {
    "500": (Http(500, b'{"error": {"message": "boom"}}'), "http_500"),
    "429": (Http(429), "http_429"),
    "404": (Http(404), "http_404"),
    "503 in HTML": (Http(503, b"<html>", "text/html"), "http_503"),
    "no answer": (Hang(3.0), "timeout"),
    "connection closed": (Drop(), "connection"),
    "HTML": (Http(200, b"<html>Log in</html>", "text/html"), "bad_response"),
    "no JSON": (Http(200, b"{torn", "application/json"), "bad_response"),
    "nothing": (Http(200, b""), "bad_response"),
    "list": (Http(200, b"[]"), "bad_response"),
    "null": (Http(200, b"null"), "bad_response"),
    "no choices": ({"choices": []}, "bad_response"),
    "choices null": ({"choices": None}, "bad_response"),
    "empty object": ({}, "bad_response"),
    "no message": ({"choices": [{"finish_reason": "stop"}]}, "bad_response"),
    "content is an object": (completion({"text": VERDICT}), "bad_response"),
    "parts without text": (completion([{"type": "text"}]), "bad_response"),
    "parts that are not objects": (completion([VERDICT]), "bad_response"),
    "refusal": (completion(None, refusal="I cannot."), "refused"),
    "null content": (completion(None), "bad_response"),
    "filtered": (completion(None, "content_filter"), "refused"),
    "filtered, with empty text": (completion("", "content_filter"), "refused"),
    "thought up to the limit": (completion(None, "length"), "truncated"),
    "endless": (Http(body=b" " * (MAX_ANSWER_BYTES + 1)), "bad_response"),
    "redirect that makes a GET of it": (Http(301, headers={"Location": "/v1/models"}), "http_301"),
    "a minute of bytes, each in time": (Drip(b" " * 600, 0.1), "timeout"),
}


@pytest.mark.parametrize(("answer", "reason"), FAULTS.values(), ids=FAULTS)
def test_failed_call_gives_a_reply_with_a_reason(answer, reason, server, image, judge) -> None:
    server.answer = lambda call, n: answer
    # On a busy machine any call may take a second: only what times out gets a short timeout.
    asked = judge(timeout=0.4) if reason == "timeout" else judge()
    (reply,) = ask(asked, [Request(image, QUESTION)])
    assert (reply.text, reply.reason) == (None, reason)
    assert is_transient(reply.reason) == (reason not in ("refused", "truncated"))
    assert reply.model in (MODEL, "served-as")
    assert reply.latency < 30.0


@pytest.mark.parametrize(("text", "finish"), [("", "stop"), ('{"pc"', "length"), (VERDICT, "stop")])
def test_reply_text_is_returned_verbatim(text, finish, server, image, judge) -> None:
    server.answer = lambda call, n: completion(text, finish)
    (reply,) = ask(judge(), [Request(image, QUESTION)])
    assert (reply.text, reply.reason, reply.truncated) == (text, None, finish == "length")


RETRIED = {"500": Http(500), "429": Http(429), "drop": Drop()}
INVALID = ("soon", "-1", "nan", "inf", "Wed, 21 Oct 2015 07:28:00 GMT", "")
RETRIED |= {f"Retry-After: {n}": Http(429, headers={"Retry-After": n}) for n in (*INVALID, "86400")}


@pytest.mark.parametrize("fault", RETRIED.values(), ids=RETRIED)
def test_failed_call_is_retried(fault, server, image, judge) -> None:
    """After a short wait if the header says nothing, and at most after the timeout."""
    server.answer = lambda call, n: VERDICT if n == 1 else fault
    asked = judge(max_retries=1)
    asked._longest_pause = 0.2  # not the timeout, within which the server must answer
    (reply,) = ask(asked, [Request(image, QUESTION)])
    assert (reply.text, len(server.calls)) == (VERDICT, 2)


def test_replies_are_yielded_with_their_request_as_they_complete(server, tmp_path, judge) -> None:
    """The first is answered last, and the others do not wait for it."""
    requests = questions(tmp_path, 4)
    hashes = [hashlib.sha256(request.image.read_bytes()).hexdigest() for request in requests]
    others = threading.Event()

    def slow_for_the_first(call: Any, n: int) -> str:
        if call.sha256 == hashes[0]:
            assert others.wait(5.0)
        return str(call.sha256)

    server.answer = slow_for_the_first
    came: list[tuple[object, str | None]] = []
    for group in judge().replies(requests):
        came += [(request.tag, reply.text) for request, reply in group]
        if len(came) == 3:
            others.set()
    assert sorted(came, key=lambda pair: str(pair[0])) == list(enumerate(hashes))
    assert came[-1][0] == 0


@pytest.mark.parametrize(
    ("status", "calls"), [(400, 1), (401, 1), (404, 1), (413, 1), (422, 1), (408, 3), (500, 3)]
)
def test_retries_are_limited_and_permanent_failures_have_none(
    status, calls, server, image, judge
) -> None:
    server.answer = lambda call, n: Http(status)
    (reply,) = ask(judge(max_retries=2), [Request(image, QUESTION)])
    assert (reply.reason, reply.attempts, len(server.calls)) == (f"http_{status}", calls, calls)


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_header_is_respected(as_date, server, image, judge) -> None:
    at: list[float] = []

    def answer(call: Any, n: int) -> object:
        at.append(time.time())
        if n:
            return VERDICT
        date = formatdate(at[0] + 1.6, usegmt=True)  # whole seconds
        after = date if as_date else "0.5"
        return Http(429, headers={"Retry-After": after})

    server.answer = answer
    (reply,) = ask(judge(max_retries=1), [Request(image, QUESTION)])
    assert (reply.text, reply.attempts) == (VERDICT, 2)
    assert at[1] - at[0] >= 0.5


def test_concurrency_is_limited_and_connections_are_reused(server, tmp_path, judge) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def answer(call: Any, n: int) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return VERDICT

    server.answer = answer
    ask(judge(concurrency=5), questions(tmp_path, 40))
    assert (most, len(server.calls)) == (5, 40)
    assert len(server.connections) <= 5 + 1  # one asked for the models


def test_images_are_read_only_slightly_ahead(server, tmp_path, judge) -> None:
    """Requests are taken as they can be worked on, so that memory does not grow with them."""
    gate, taken = threading.Event(), []

    def answer(call: Any, n: int) -> str:
        assert gate.wait(10.0)
        return VERDICT

    def requests() -> Iterator[Request]:
        for request in questions(tmp_path, 60):
            taken.append(request)
            if len(taken) == 60:
                return
            yield request

    server.answer = answer
    threading.Timer(0.3, gate.set).start()
    came = judge(concurrency=4).replies(requests())
    next(came)
    assert len(taken) <= 2 * 4 + 1
    list(came)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_image_bytes_are_sent_unchanged_with_their_type(kind, server, tmp_path, judge) -> None:
    path = tmp_path / "image"
    Image.new("RGB", (24, 16), (9, 80, 200)).save(path, kind)
    (reply,) = ask(judge(), [Request(path, QUESTION)])
    (part,) = [p for p in server.calls[0].parts if p["type"] == "image_url"]
    head, data = part["image_url"]["url"].split(",", 1)
    assert head == f"data:image/{kind.lower()};base64"
    assert base64.b64decode(data, validate=True) == path.read_bytes()
    size = path.stat().st_size
    assert reply.sent == {"format": kind, "width": 24, "height": 16, "bytes": size}


def test_judge_works_within_a_running_event_loop(server, image, judge) -> None:
    """As in Jupyter."""

    async def cell() -> list[Reply]:
        return ask(judge(), [Request(image, QUESTION)])

    assert [reply.text for reply in asyncio.run(cell())] == [VERDICT]


def test_judge_that_is_not_closed_does_not_block_the_exit(server: JudgeServer) -> None:
    rubric = shipped_root() / "prompts" / "rubrics" / "pixel_art.yaml"
    code = (
        "from pathlib import Path\n"
        "from autolora_eval.scoring.judges.config import JudgeConfig\n"
        "from autolora_eval.scoring.judges.openai_judge import OpenAIJudge\n"
        "from autolora_eval.scoring.rubric import read_rubric\n"
        f"rubric = read_rubric(Path({str(rubric)!r}))\n"
        f"spec = JudgeConfig(rubric='r', model={MODEL!r}, base_url={server.url!r})\n"
        "judge = OpenAIJudge(spec, rubric)\n"
        "judge.check()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_identity_has_what_the_server_reports(server: JudgeServer, judge: Make) -> None:
    server.models = {"data": [{"id": MODEL, "root": "org/model", "owned_by": "vllm"}]}
    server.version = "0.32.0"
    asked = judge()
    assert asked.identity()["root"] == "org/model"
    assert asked.facts() == {
        "base_urls": [server.url],
        "served_by": "vllm",
        "server_version": "0.32.0",
    }


def test_placeholder_key_is_not_redacted(server, image, judge, monkeypatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", "c")
    (reply,) = ask(judge(), [Request(image, QUESTION)])
    assert reply.text == VERDICT


@pytest.mark.parametrize("key", ["schlüssel-sentinel", "sentinel-key\nof two lines"])
def test_invalid_key_is_reported_but_not_printed(key, judge, monkeypatch) -> None:
    monkeypatch.setenv("AUTOLORA_EVAL_JUDGE_API_KEY", key)
    with pytest.raises(AutoLoRAEvalError, match="AUTOLORA_EVAL_JUDGE_API_KEY") as caught:
        judge()
    assert "sentinel" not in str(caught.value)


def test_unusable_proxy_is_reported(judge: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "sox://me:sentinel@127.0.0.1:9")
    threads = threading.active_count()
    with pytest.raises(AutoLoRAEvalError, match="ALL_PROXY") as caught:
        judge(base_url="http://judge.example/v1")
    assert "sentinel" not in str(caught.value)
    assert threading.active_count() == threads


def test_server_is_reached_through_the_proxy_of_the_environment(
    server, image, judge, monkeypatch
) -> None:
    """The fake server takes the part of the proxy, for a name that leads nowhere."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, server.url.removesuffix("/v1"))
    (reply,) = ask(judge(base_url="http://judge.example/v1"), [Request(image, QUESTION)])
    assert reply.text == VERDICT


def test_tokens_of_a_reply_follow_those_of_its_thought(server, image, judge) -> None:
    """A server with a reasoning parser lists both; the expected score needs the reply's."""
    words = ["Hm, ", "5?", "</think>", '{"pc": ', "4", "}"]
    listed = [
        {"token": word, "logprob": -0.1, "top_logprobs": [{"token": word, "logprob": -0.1}]}
        for word in words
    ]
    said = completion(VERDICT, reasoning="Hm, 5?")
    said["choices"][0]["logprobs"] = {"content": listed}
    server.answer = lambda call, n: said
    (reply,) = ask(judge(), [Request(image, QUESTION)])
    assert (reply.text, [token.text for token in reply.tokens]) == (VERDICT, words)


def test_probabilities_of_equal_texts_are_summed() -> None:
    """A vocabulary may have a digit twice, and a server lists the token itself beside them."""
    likely = [("4", -1.0), ("4", -2.0), ("5", -1.5), ("6", -9999.0)]
    listed = [{"token": text, "logprob": value} for text, value in likely]
    for own in (likely[1], ("7", -8.0)):
        item = {"token": own[0], "logprob": own[1], "top_logprobs": listed}
        (token,) = _tokens({"content": [item]}, len(own[0]))
        both = {"4": math.log(math.exp(-1.0) + math.exp(-2.0)), "5": -1.5}
        assert dict(token.alternatives) == pytest.approx(
            {"7": -8.0} | both if own[0] == "7" else both
        )
