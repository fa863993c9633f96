"""The judge behind a server: what it is sent, and what becomes of every answer it can give."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import MODEL, VERDICT, Drop, Hang, Http, JudgeServer, completion, judge_server
from PIL import Image
from scored_run import picture

from autolora_eval.benchmark.schema import Judge as JudgeSpec
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.resources import shipped_root
from autolora_eval.rubric import Question, read_rubric
from autolora_eval.scoring.judges.base import Request, is_transient
from autolora_eval.scoring.judges.openai_server import OpenAIJudge

QUESTION = Question("Before the image.", "After it, and <b>ünïcode</b> {braces}.")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(JudgeServer()) as state:
        yield state


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    picture(("cell", 0, 0)).save(path)
    return path


def judge(server: JudgeServer, **changes: Any) -> OpenAIJudge:
    settings = {"timeout": 5.0, "max_retries": 0} | changes
    return OpenAIJudge(JudgeSpec(rubric="r", model=MODEL, base_url=server.url, **settings))


def test_the_request_is_the_question_and_the_files_bytes(server: JudgeServer, image: Path) -> None:
    settings = {"temperature": 0.25, "max_tokens": 77, "seed": 5}
    (reply,) = judge(server, **settings).ask([Request(image, QUESTION)])
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


@pytest.mark.parametrize("name", ["pixel_art", "disney_princess"])
def test_the_papers_rubrics_are_sent_as_they_are(
    name: str, server: JudgeServer, image: Path
) -> None:
    """The texts around the image, with the prompt in place, are all of the rubric's text."""
    rubric = read_rubric(shipped_root() / "prompts" / "rubrics" / f"{name}.yaml")
    prompt = "a {cat}, <<<IMAGE DATA>>>"
    judge(server).ask([Request(image, rubric.question(prompt))])
    sent = [part.get("text", rubric.placeholders.image) for part in server.calls[0].parts]
    stated = rubric.text
    if rubric.placeholders.prompt is not None:
        stated = stated.replace(rubric.placeholders.prompt, prompt)
    assert "".join("".join(sent).split()) == "".join(stated.split())
    question = rubric.question(prompt)
    assert [text for text in (question.before, question.after) if text] == [
        part["text"] for part in server.calls[0].parts if part["type"] == "text"
    ]


@pytest.mark.parametrize(("key", "sent"), [("secret-123", "secret-123"), (None, "EMPTY")])
def test_the_key_comes_from_the_environment(
    key: str | None,
    sent: str,
    server: JudgeServer,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-key-that-this-server-must-not-see")
    monkeypatch.delenv("MY_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("MY_KEY", key)
    asked = judge(server, api_key_env="MY_KEY")
    asked.ask([Request(image, QUESTION)])
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
    "content in parts": (completion([{"type": "text", "text": VERDICT}]), "bad_response"),
    "refusal": (completion(None), "refused"),
    "filtered": (completion(None, "content_filter"), "refused"),
    "thought up to the limit": (completion(None, "length"), "truncated"),
}


@pytest.mark.parametrize(("answer", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_failed_call_is_a_reply_with_a_reason(
    answer: Any, reason: str, server: JudgeServer, image: Path
) -> None:
    server.answer = lambda call, n: answer
    (reply,) = judge(server, timeout=0.4).ask([Request(image, QUESTION)])
    assert (reply.text, reply.reason) == (None, reason)
    assert is_transient(reply.reason) == (reason not in ("refused", "truncated"))
    assert reply.model in (MODEL, "served-as")


@pytest.mark.parametrize(("text", "finish"), [("", "stop"), ('{"pc"', "length"), (VERDICT, "stop")])
def test_what_was_said_comes_back_as_it_is(
    text: str, finish: str, server: JudgeServer, image: Path
) -> None:
    server.answer = lambda call, n: completion(text, finish)
    (reply,) = judge(server).ask([Request(image, QUESTION)])
    assert (reply.text, reply.reason, reply.truncated) == (text, None, finish == "length")


@pytest.mark.parametrize("fault", [Http(500), Http(429), Drop()], ids=["500", "429", "drop"])
def test_a_failed_call_is_tried_again(fault: Any, server: JudgeServer, image: Path) -> None:
    server.answer = lambda call, n: VERDICT if n == 1 else fault
    (reply,) = judge(server, max_retries=1).ask([Request(image, QUESTION)])
    assert (reply.text, len(server.calls)) == (VERDICT, 2)


def test_no_call_is_tried_more_often_than_asked_for(server: JudgeServer, image: Path) -> None:
    server.answer = lambda call, n: Http(500)
    (reply,) = judge(server, max_retries=1).ask([Request(image, QUESTION)])
    assert (reply.reason, len(server.calls)) == ("http_500", 2)


def test_images_that_cannot_be_sent_cost_no_call(server: JudgeServer, tmp_path: Path) -> None:
    corrupt, absent = tmp_path / "corrupt.png", tmp_path / "absent.png"
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    requests = [Request(path, QUESTION) for path in (corrupt, absent)]
    replies = judge(server).ask(requests)
    assert [reply.reason for reply in replies] == ["corrupt_image", "missing_image"]
    assert server.calls == []


def test_replies_come_in_the_order_of_the_requests(server: JudgeServer, tmp_path: Path) -> None:
    """The first is answered last."""
    requests, expected = [], []
    for n in range(4):
        path = tmp_path / f"{n}.png"
        Image.new("RGB", (8, 8), (n, n, n)).save(path)
        requests.append(Request(path, QUESTION))
        expected.append(hashlib.sha256(path.read_bytes()).hexdigest())

    def slow_for_the_first(call: Any, n: int) -> str:
        if call.sha256 == expected[0]:
            time.sleep(0.3)
        return str(call.sha256)

    server.answer = slow_for_the_first
    assert [reply.text for reply in judge(server).ask(requests)] == expected


def test_a_server_that_is_not_there() -> None:
    with judge_server(JudgeServer()) as gone:
        pass
    with pytest.raises(AutoLoRAEvalError) as caught:
        judge(gone).check()
    message = str(caught.value)
    assert message.startswith(f"the judge's server at {gone.url} does not answer")
    assert f"vllm serve {MODEL}" in message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, f"serves a, b, not '{MODEL}'"),
        ({"data": []}, f"serves nothing, not '{MODEL}'"),
        (Http(401, b"{}"), "answers 401 .* AUTOLORA_EVAL_JUDGE_API_KEY"),
        (Http(404, b"<html>", "text/html"), "answers 404 .* ends in /v1"),
        (Http(200, b"<html>Log in</html>", "text/html"), "does not speak the OpenAI protocol"),
        (Http(200, b"[1]"), "does not speak the OpenAI protocol"),
        (Http(200, b"{torn"), "does not speak the OpenAI protocol"),
        (Drop(), "does not answer"),
    ],
)
def test_a_server_that_is_not_the_judges(models: Any, message: str, server: JudgeServer) -> None:
    server.models = models
    with pytest.raises(AutoLoRAEvalError, match=message):
        judge(server).check()


def test_a_server_that_has_gone_is_told(server: JudgeServer, image: Path) -> None:
    server.answer = lambda call, n: Drop()
    asked = judge(server)
    asked.check()
    server.models = Drop()
    with pytest.raises(AutoLoRAEvalError, match="cannot be reached any more"):
        asked.ask([Request(image, QUESTION)] * 2)


def test_one_answer_of_the_batch_shows_that_the_server_is_there(
    server: JudgeServer, image: Path
) -> None:
    server.answer = lambda call, n: VERDICT if n == 0 else Drop()
    replies = judge(server).ask([Request(image, QUESTION)] * 3)
    assert sorted(str(reply.reason) for reply in replies) == ["None", "connection", "connection"]


def test_a_judge_is_not_asked_before_its_server_is(server: JudgeServer, image: Path) -> None:
    server.models = {"data": [{"id": "another"}]}
    with pytest.raises(AutoLoRAEvalError, match="serves another"):
        judge(server).ask([Request(image, QUESTION)])
    assert server.calls == []
