"""One call of the OpenAI protocol: request body, structured output, and what a response means."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.images import Picture
from autolora_eval.scoring.constraint import reply_pattern, reply_schema
from autolora_eval.scoring.judge import Reply, Token, is_transient
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.server import (
    BadAnswerError,
    StatusError,
    decoded,
    error_message,
)
from autolora_eval.scoring.reply import begins_with_scores, is_only_scores, parse_reply
from autolora_eval.scoring.rubric import Question, Rubric

FORBIDDEN_LOGPROB = -9000.0  # vLLM reports -9999 for tokens that the grammar forbids
# vLLM takes unset sampling parameters from the model's generation_config.json. Many models set a
# repetition penalty there, which biases the second of two equal scores. The second line is for vLLM
# and SGLang; most other servers ignore it.
NEUTRAL = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_REFUSED_ARGUMENT = ("http_400", "http_422")
# Retries do not help with these statuses; a later run asks again.
NOT_RETRIED = tuple(f"http_{code}" for code in range(300, 500) if code not in (408, 425, 429))
_TOO_LONG = re.compile("context length|max(imum)?[ _]model[ _]len|max_(completion_)?tokens")
# Statuses of servers that do not know an argument.
_UNKNOWN_ARGUMENT = (*_REFUSED_ARGUMENT, "http_404", "http_501")
_MODES = ("structured_outputs", "guided_regex", "response_format")
# What servers give as finish_reason: OpenAI, Mistral, Z.ai, DeepSeek, OpenRouter, SGLang, Gemini.
_TRUNCATED = ("length", "max_tokens", "model_length", "model_context_window_exceeded")
_FAILED = ("error", "network_error", "abort", "insufficient_system_resource")
_FILTERED = re.compile(
    "content_filter|sensitive|refusal|(image_)?(safety|recitation|prohibited_content)|blocklist|spii"
)
TOP_LOGPROBS = (20, 5)  # the maximum of vLLM, and that of some other servers


@dataclass(frozen=True)
class StructuredOutput:
    """How a server is asked to constrain its replies.

    Attributes:
        name: the value of `judge.constraint`.
        arguments: extra arguments of the chat completion.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Dialect:
    """The arguments that a server rejects, and its name of the limit of a reply."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.limit = "max_tokens"

    def adapted(self, body: Json) -> Json:
        """Return a request body without the arguments that the server rejects."""
        accepted = {key: value for key, value in body.items() if key not in self.refused}
        accepted[self.limit] = accepted.pop("max_tokens")
        return accepted

    def learn(self, body: Json, reply: Reply) -> None:
        """Note the arguments of a failed call that its error message names."""
        if reply.reason not in _REFUSED_ARGUMENT or reply.detail is None:
            return
        if "max_completion_tokens" in reply.detail:
            self.limit = "max_completion_tokens"
        # A server without these arguments does the same, except for other temperatures.
        optional = [*NEUTRAL, "seed", *(["temperature"] if body["temperature"] == 1 else [])]
        self.refused |= {key for key in optional if re.search(rf"\b{key}\b", reply.detail)}


def chat(
    spec: JudgeConfig, question: Question, picture: Picture, repeat: int, mode: StructuredOutput
) -> dict[str, Any]:
    """Return the arguments of one chat completion."""
    kind = picture.format.lower()
    url = f"data:image/{kind};base64,{base64.b64encode(picture.data).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    return {
        "model": spec.model,
        "messages": [{"role": "user", "content": question.parts(image)}],
        "stream": False,  # some servers stream by default
        "temperature": spec.temperature,
        "max_tokens": spec.max_tokens,
        "seed": spec.seed + repeat,
        **NEUTRAL,
        **mode.arguments,
    }


def without_image(body: Json) -> Json:
    """Return a request body without its image."""
    (message,) = body["messages"]
    texts = [part for part in message["content"] if part["type"] == "text"]
    return {**body, "messages": [{**message, "content": texts}]}


def n_words(body: Json) -> int:
    """Return the number of words in a request body."""
    (message,) = body["messages"]
    return sum(len(part.get("text", "").split()) for part in message["content"])


async def call(session: aiohttp.ClientSession, body: Json, timeout: float) -> Reply:
    """Make one call, in `timeout` seconds to its last byte. A failed call has a reason."""
    start, model = time.monotonic(), str(body["model"])
    retry_after = detail = None
    try:
        async with asyncio.timeout(timeout):
            # As a stream: aiohttp warns of large bytes.
            data = io.BytesIO(json.dumps(body).encode())
            answer = await decoded(session.post("chat/completions", data=data))
        return _read(answer, model, time.monotonic() - start)
    except TimeoutError:
        reason = "timeout"
    except StatusError as error:
        reason, retry_after = f"http_{error.status}", error.retry_after
        detail = error.detail
    except (aiohttp.ClientError, OSError):
        reason = "connection"
    except BadAnswerError as error:
        reason, detail = "bad_response", str(error)
    seconds = time.monotonic() - start
    return Reply(None, reason, False, model, seconds, detail=detail, retry_after=retry_after)


def _read(answer: object, model: str, latency: float) -> Reply:
    """Return the reply in a response.

    A server that separates a model's thoughts puts the whole reply there if the model did not
    think, as with structured output. Such a reply is only its scores; others are thoughts.

    Raises:
        BadAnswerError: if the response does not follow the protocol, or generation failed.
    """
    try:
        choice: Any = answer["choices"][0]  # type: ignore[index]
        message, finish = choice["message"], str(choice.get("finish_reason") or "").lower()
        text, thought = message.get("content"), message.get("reasoning_content")
        if isinstance(text, list):  # some parts may be thoughts
            text = "".join(part["text"] for part in text if part["type"] == "text")
        thought = message.get("reasoning") if thought is None else thought  # vLLM from 0.12 on
        model = str(answer.get("model") or model)  # type: ignore[attr-defined]
    except (LookupError, TypeError, AttributeError) as error:
        said = (answer.get("error") or answer) if isinstance(answer, dict) else None
        raise BadAnswerError(error_message(said) or "no choice") from error
    if finish in _FAILED:  # such a text has an arbitrary end
        raise BadAnswerError(error_message(choice.get("error")) or f"finish_reason: {finish}")
    if not (text is None or isinstance(text, str)):
        raise BadAnswerError("content is not text")
    is_filtered = re.match(_FILTERED, finish) is not None
    truncated, reason = finish in _TRUNCATED or is_filtered, None
    if (not text and message.get("refusal")) or (
        is_filtered and not begins_with_scores(text or "")
    ):
        text, reason = None, "refused"
    elif not text and isinstance(thought, str) and not truncated:
        text = thought if is_only_scores(thought) else f"<think>{thought}"
    elif text is None and truncated:
        reason = "truncated"
    elif text is None:
        calls = " (tool_calls in its place)" if message.get("tool_calls") else ""
        raise BadAnswerError(f"content is null, without a refusal{calls}")
    # If there is a thought, its tokens are listed too.
    tokens = _tokens(choice.get("logprobs"), math.inf if thought else len(text or ""))
    usage = answer.get("usage")  # type: ignore[attr-defined]
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Reply(text, reason, truncated, model, latency, tokens=tokens, prompt_tokens=count)


def _tokens(logprobs: object, longest: float) -> tuple[Token, ...]:
    """Return the tokens of a reply with their alternatives; empty if the response has none.

    The end token, which some servers list, is omitted, and so are alternatives that a constraint
    forbids.

    Args:
        logprobs: the `logprobs` of the response.
        longest: the number of characters after which further tokens are omitted.
    """
    tokens: list[Token] = []
    length = 0
    try:
        for item in logprobs["content"]:  # type: ignore[index]
            if length >= longest:
                break
            tokens.append(Token.of(str(item["token"]), _alternatives(item)))
            length += len(tokens[-1].text)
    except (LookupError, TypeError, ValueError):
        return ()
    return tuple(tokens)


def _alternatives(item: Any) -> Iterator[tuple[str, float]]:  # noqa: ANN401
    """Yield the allowed alternatives of a token with their log-probabilities."""
    listed = item["top_logprobs"]
    # A chosen token that is less likely than the top alternatives is not listed among them.
    is_listed = any(other["token"] == item["token"] for other in listed)
    for other in listed if is_listed else [*listed, item]:
        text, value = str(other["token"]), float(other["logprob"])
        if value > FORBIDDEN_LOGPROB:
            yield text, value


def _constraint(name: str, rubric: Rubric, forced: Mapping[str, float] | None = None) -> Json:
    """Return the arguments that constrain replies in one of the `_MODES`; none for `plain`."""
    if name == "response_format":  # most servers but vLLM
        schema = {"name": "verdict", "strict": True, "schema": reply_schema(rubric, forced)}
        return {name: {"type": "json_schema", "json_schema": schema}}
    # A regex, since the grammar of a schema permits endless white space.
    if name == "structured_outputs":  # vLLM from 0.11 on
        return {name: {"regex": reply_pattern(rubric, forced)}}
    if name == "guided_regex":  # vLLM 0.10.2, the last version that serves the paper's judge
        return {name: reply_pattern(rubric, forced)}
    return {}


async def detect_structured_output(
    spec: JudgeConfig, rubric: Rubric, call: Callable[[Json], Awaitable[Reply]]
) -> StructuredOutput:
    """Return the constraint that `spec` names, or for `auto` the first that the server honours.

    `call` makes one call, with retries.

    Raises:
        AutoLoRAEvalError: if a trial call fails for a reason other than an unknown argument.
    """
    trials = Trials(spec, rubric, call)
    name = await trials.first_honoured() if spec.constraint == "auto" else spec.constraint
    mode = StructuredOutput(name, _constraint(name, rubric))
    return await trials.with_logprobs(mode) if spec.logprobs else mode


@dataclass(frozen=True)
class Trials:
    """Trial calls about a grey image."""

    spec: JudgeConfig
    rubric: Rubric
    call: Callable[[Json], Awaitable[Reply]]

    async def first_honoured(self) -> str:
        """Try to force the lowest, then the highest scores in each mode.

        Most servers ignore an argument that they do not know, so a valid reply proves nothing. Only
        a server that gives both forced replies to the same question honours the constraint.
        """
        scores = self.rubric.scores.items()
        lowest = {c: math.ceil(s.min) if s.type == "integer" else s.min for c, s in scores}
        highest = {c: math.floor(s.max) if s.type == "integer" else s.max for c, s in scores}
        for name in _MODES:
            for forced in (lowest, highest):
                mode = StructuredOutput(name, _constraint(name, self.rubric, forced))
                reply = await self._reply(mode)
                if reply.text is None or parse_reply(reply.text, self.rubric).scores != forced:
                    break
            else:
                return name
        if reply.text is None:  # it may refuse every question, not the constraint
            reply = await self._reply(StructuredOutput("plain"))
            if is_transient(reply.reason):
                raise self._failed(reply)
        return "plain"

    async def with_logprobs(self, mode: StructuredOutput) -> StructuredOutput:
        """Request as many log-probabilities as the server returns."""
        for count in TOP_LOGPROBS:
            listed = {"logprobs": True, "top_logprobs": count}
            asking = StructuredOutput(mode.name, mode.arguments | listed)
            tokens = (await self._reply(asking)).tokens
            if any(len(token.alternatives) > 1 for token in tokens):
                return asking
        return mode

    async def _reply(self, mode: StructuredOutput) -> Reply:
        """Return the reply to a trial call. It has no text if the server rejects the argument."""
        reply = await self.ask(mode)
        if not is_transient(reply.reason) or reply.reason in _UNKNOWN_ARGUMENT:
            return reply
        raise self._failed(
            reply,
            " Check its log. Without trial calls: set judge.constraint to a value other than "
            "'auto', and remove judge.logprobs.",
        )

    async def ask(self, mode: StructuredOutput) -> Reply:
        """Return the reply to a question about a grey image."""
        stream = io.BytesIO()
        Image.new("RGB", (64, 64), (128, 128, 128)).save(stream, "PNG")
        picture = Picture(stream.getvalue(), "PNG", 64, 64)
        question = self.rubric.question("a grey picture")
        return await self.call(chat(self.spec, question, picture, 0, mode))

    async def require_reply(self, mode: StructuredOutput) -> None:
        """Check that the server does not refuse the question. Other failures may pass."""
        reply = await self.ask(mode)
        if reply.reason in NOT_RETRIED:
            raise self._failed(reply)

    def _failed(self, reply: Reply, otherwise: str = "") -> AutoLoRAEvalError:
        """Return the error of a trial call, with the next step, or `otherwise` if unknown."""
        said, step = reply.detail or "", otherwise
        if reply.reason in ("http_401", "http_403"):
            step = f" If it needs an API key, set {self.spec.api_key_env}."
        elif reply.reason in _REFUSED_ARGUMENT and "temperature" in said:
            step = " Set judge.temperature to 1."
        elif reply.reason in _REFUSED_ARGUMENT and _TOO_LONG.search(said):
            step = (
                f" Lower judge.max_tokens ({self.spec.max_tokens}), or serve the model with a "
                "longer context."
            )
        return AutoLoRAEvalError(
            f"the judge's server has '{self.spec.model}', but a trial call fails: "
            f"{reply.reason}{f' ({said})' if said else ''}.{step}"
        )
