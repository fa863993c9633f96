"""Find out which API for structured output a server really honours."""

from __future__ import annotations

import io
import math
from collections.abc import Awaitable, Callable, Mapping

from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.images import Picture
from autolora_eval.scoring.constraint import reply_pattern, reply_schema
from autolora_eval.scoring.judges.config import JudgeConfig, Reply, is_transient
from autolora_eval.scoring.judges.openai_protocol import StructuredOutput, chat
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import Rubric, Score

Call = Callable[[Json], Awaitable[Reply]]
ForcedScores = Mapping[str, float] | None
TOP_LOGPROBS = (20, 5)  # the maximum of vLLM, and that of some other servers
# Statuses of servers that do not know an argument.
_UNKNOWN_ARGUMENT = ("http_400", "http_404", "http_422", "http_501")


def _structured_outputs(rubric: Rubric, pinned: ForcedScores) -> Json:
    """VLLM from 0.11 on. A regex, since the grammar of a schema permits endless white space."""
    return {"structured_outputs": {"regex": reply_pattern(rubric, pinned)}}


def _guided_regex(rubric: Rubric, pinned: ForcedScores) -> Json:
    """Older vLLM, such as 0.10.2, the last version that serves the paper's judge."""
    return {"guided_regex": reply_pattern(rubric, pinned)}


def _response_format(rubric: Rubric, pinned: ForcedScores) -> Json:
    """Most other servers."""
    schema = {"name": "verdict", "strict": True, "schema": reply_schema(rubric, pinned)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


MODES: dict[str, Callable[[Rubric, ForcedScores], Json]] = {
    "structured_outputs": _structured_outputs,
    "guided_regex": _guided_regex,
    "response_format": _response_format,
}


async def detect_structured_output(
    spec: JudgeConfig, rubric: Rubric | None, call: Call
) -> StructuredOutput:
    """Return the constraint that `spec` names, or for `auto` the first that the server honours.

    Args:
        spec: the benchmark's `judge` section.
        rubric: the rubric whose schema replies must follow; None for no constraint.
        call: makes one call, with retries.

    Raises:
        AutoLoRAEvalError: if a trial call fails for a reason other than an unknown argument.
    """
    name = spec.constraint
    if rubric is None:
        return StructuredOutput("plain")
    if name == "plain":
        mode = StructuredOutput("plain")
    elif name == "auto":
        mode = await _first_honoured(spec, rubric, call)
    else:
        mode = StructuredOutput(name, MODES[name](rubric, None))
    if spec.logprobs:
        mode = await _with_logprobs(spec, rubric, mode, call)
    return mode


async def _first_honoured(spec: JudgeConfig, rubric: Rubric, call: Call) -> StructuredOutput:
    """Try to force the lowest, then the highest scores with each API.

    Most servers ignore an argument that they do not know, so a valid reply proves nothing. Only a
    server that gives both forced replies to the same question honours the constraint.
    """
    ends = {column: _ends(score) for column, score in rubric.scores.items()}
    lowest, highest = ({column: both[n] for column, both in ends.items()} for n in (0, 1))
    for name, arguments in MODES.items():
        for forced in (lowest, highest):
            mode = StructuredOutput(name, arguments(rubric, forced))
            reply = await _try(spec, rubric, mode, call)
            if reply.text is None or parse_reply(reply.text, rubric).scores != forced:
                break
        else:
            return StructuredOutput(name, arguments(rubric, None))
    plain = StructuredOutput("plain")
    if reply.text is None:  # it may refuse every question, not the constraint
        reply = await _try(spec, rubric, plain, call)
        if is_transient(reply.reason):
            raise _failed_trial(spec, reply, "")
    return plain


def _ends(score: Score) -> tuple[float, float]:
    """Return the lowest and highest allowed value."""
    if score.type == "integer":
        return math.ceil(score.min), math.floor(score.max)
    return score.min, score.max


async def _with_logprobs(
    spec: JudgeConfig, rubric: Rubric, mode: StructuredOutput, call: Call
) -> StructuredOutput:
    """Request as many log-probabilities as the server returns."""
    for count in TOP_LOGPROBS:
        asking = StructuredOutput(mode.name, mode.arguments, count)
        if (await _try(spec, rubric, asking, call)).tokens:
            return asking
    return mode


async def _try(spec: JudgeConfig, rubric: Rubric, mode: StructuredOutput, call: Call) -> Reply:
    """Return the reply to a trial call. It has no text if the server refuses the argument.

    Raises:
        AutoLoRAEvalError: if the call fails for another reason.
    """
    reply = await call(_trial(spec, rubric, mode))
    if not is_transient(reply.reason) or reply.reason in _UNKNOWN_ARGUMENT:
        return reply
    step = (
        " Check its log. Without trial calls: set judge.constraint to a value other than 'auto', "
        "and remove judge.logprobs."
    )
    if reply.reason in ("http_401", "http_403"):
        step = f" If it needs an API key, set {spec.api_key_env}."
    raise _failed_trial(spec, reply, step)


def _failed_trial(spec: JudgeConfig, reply: Reply, step: str) -> AutoLoRAEvalError:
    said = f" ({reply.detail})" if reply.detail else ""
    return AutoLoRAEvalError(
        f"the judge's server lists '{spec.model}', but a trial call fails: {reply.reason}{said}."
        f"{step}"
    )


def _trial(spec: JudgeConfig, rubric: Rubric, mode: StructuredOutput) -> Json:
    """Return the body of a normal call about a grey image."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(stream, "PNG")
    picture = Picture(stream.getvalue(), "PNG", 64, 64)
    return chat(spec, rubric.question("a grey picture"), picture, 0, mode)
