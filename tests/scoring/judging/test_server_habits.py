"""Servers with a habit: models that think, parameters that they do not take, and their words."""

from __future__ import annotations

import json
from contextlib import closing
from io import StringIO
from typing import Any

import pytest
from judge_server import VERDICT, Call, Http, completion
from judging import SECRET, N, judge, rows
from rich.console import Console
from scored_run import judge_plan

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.config.stage_inputs import judge_settings
from autolora_eval.scoring.judging import open_judge

DRAFT = 'So a draft {"pc": 1} '
SCORED, CUT = ({"pc": 4.0}, None), (None, "truncated")
REPLIES: dict[str, tuple[Any, tuple[object, object]]] = {
    "cut while it thinks": (completion(f"<think>\n{DRAFT}but wait", "length"), CUT),
    "cut, and the template began the thought": (completion(f"{DRAFT}but wait", "length"), CUT),
    "cut after the thought": (completion(f"<think>{DRAFT}</think>\nIt", "length"), CUT),
    "cut, the thought quotes the mark": (completion(f'<think>"</think>" {DRAFT}', "length"), CUT),
    "cut, the thought apart": (completion(None, "length", reasoning_content=DRAFT), CUT),
    "cut after the verdict": (completion(VERDICT + " \n" * 50 + "The", "length"), SCORED),
    "thought, then verdict": (completion(f"<think>{DRAFT}</think>\n{VERDICT}"), SCORED),
    "thought, then no verdict": (completion(f"[THINK]{DRAFT}[/THINK] Well."), (None, "no_json")),
    "verdict in the thought's place": (completion(None, reasoning_content=VERDICT), SCORED),
    "only a thought": (completion(None, reasoning_content=DRAFT), (None, "no_json")),
    "only a thought, of a newer vLLM": (completion("", reasoning=DRAFT), (None, "no_json")),
    "verdict in the thought's place, of a newer vLLM": (completion("", reasoning=VERDICT), SCORED),
    "thought apart": (completion(VERDICT, reasoning=DRAFT), SCORED),
    "thought in a part": (
        completion([{"type": "thinking", "thinking": DRAFT}, {"type": "text", "text": VERDICT}]),
        SCORED,
    ),
    "another mark, then no verdict": (
        completion(f"<reasoning>{DRAFT}</reasoning> Well."),
        (None, "no_json"),
    ),
    "words, then an endless thought": (completion(f"Well. <think>{DRAFT}"), (None, "no_json")),
    "a second thought": (
        completion(f"<think>a</think> Well. {VERDICT} <think>{DRAFT}</think>"),
        SCORED,
    ),
    "a thought that begins with an object": (
        completion(None, reasoning='{"pc": 1} would be too harsh.'),
        (None, "no_json"),
    ),
    "filtered after the verdict": (completion(VERDICT, "content_filter"), SCORED),
    "filtered within words": (completion(f"So {DRAFT}", "SAFETY"), (None, "refused")),
    "refused by Z.ai": (completion("", "sensitive"), (None, "refused")),
    "cut, by Mistral's name": (completion(f"So {DRAFT}", "model_length"), CUT),
    "failed in the middle": (completion(VERDICT, "error"), (None, "bad_response")),
    "aborted": (completion(DRAFT, "abort"), (None, "bad_response")),
    "tool calls": (completion(None, "tool_calls", tool_calls=[{}]), (None, "bad_response")),
    "mark quoted by the verdict": (completion('{"pc": 4, "why": "</think>"}'), SCORED),
}


def test_only_a_whole_verdict_is_scored(make, folder, server) -> None:
    replies = list(REPLIES.values())
    server.answer = lambda call, n: replies[n % len(replies)][0]
    plan = make(concurrency=1, repeats=3)
    judge(plan, folder)
    found = [(row["scores"], row["reason"]) for row in rows(plan, folder)]
    assert dict(zip(REPLIES, found, strict=False)) == {
        name: expected for name, (_, expected) in REPLIES.items()
    }


ADVICE = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead."
)


def refusal(words: str, status: int = 400) -> Http:
    return Http(status, json.dumps({"error": {"message": words}}).encode())


def test_max_completion_tokens_is_used_where_a_server_wants_it(make, folder, server) -> None:
    server.answer = lambda call, n: refusal(ADVICE) if "max_tokens" in call.body else VERDICT
    plan = make(concurrency=1, max_tokens=77)
    assert judge(plan, folder).unscored == 0
    assert len(server.calls) == N + 1
    assert {call.body.get("max_completion_tokens") for call in server.calls[1:]} == {77}


@pytest.mark.parametrize("names_all", [True, False])
def test_neutral_values_and_the_seed_are_left_out_where_an_api_refuses_them(
    names_all: bool, make, folder, server
) -> None:
    extra = ["min_p", "repetition_penalty", "seed", "top_k"]

    def answer(call: Call, n: int) -> object:
        unknown = [name for name in extra if name in call.body]
        found = ", ".join(unknown if names_all else unknown[:1])
        return (
            refusal(f"Unrecognized request argument supplied: {found}", 422) if found else VERDICT
        )

    server.answer = answer
    done = judge(make(concurrency=1), folder)
    assert done.unscored == 0
    assert len(server.calls) == N + (1 if names_all else len(extra))
    assert server.calls[-1].body["top_p"] == 1.0
    assert done.settings["refused_arguments"] == extra
    assert done.settings["sampling_defaults"] == "neutral"


def test_temperature_is_left_out_only_if_it_is_1(make, folder, server) -> None:
    """Without it, a server takes 1. For another temperature, the user must decide."""
    words = "'temperature' is not supported with this model."
    server.answer = lambda call, n: refusal(words) if "temperature" in call.body else VERDICT
    with pytest.raises(AutoLoRAEvalError, match=r"model\.\)\. Set judge\.temperature to 1\.$"):
        judge(make(constraint="auto"), folder)
    done = judge(make(temperature=1.0), folder)
    assert (done.unscored, done.settings["refused_arguments"]) == (0, ["temperature"])


def test_servers_words_are_shown_once_and_kept(make, folder, server) -> None:
    """And the next run asks again."""
    words = f"This model's maximum context length is 2048 tokens.\n\x1b[31m Key: {SECRET}"
    kept = "This model's maximum context length is 2048 tokens. [31m Key: [key]"
    server.answer = lambda call, n: refusal(words)
    plan, screen = make(), StringIO()
    with closing(open_judge(judge_settings(plan))) as asked:
        judge_plan(plan, folder, asked, Progress(Console(file=screen, width=500)))
    found = f"the judge's server refuses a call (http_400): {kept}"
    assert screen.getvalue().splitlines().count(found) == 1
    assert {(row["reason"], row["detail"]) for row in rows(plan, folder)} == {("http_400", kept)}
    server.answer = lambda call, n: VERDICT
    mended = judge(plan, folder)
    assert (mended.done, mended.unscored) == (N, 0)


def test_server_that_refuses_every_trial_stops_the_run_with_its_words(make, folder, server) -> None:
    server.answer = lambda call, n: refusal("some-vlm is not a multimodal model")
    found = r"a trial call fails: http_400 \(some-vlm is not a multimodal model\)\.$"
    with pytest.raises(AutoLoRAEvalError, match=found):
        judge(make(constraint="auto"), folder)
