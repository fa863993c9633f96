"""How a server is made to keep to the rubric's schema, and whether it really does."""

from __future__ import annotations

import io
import math
from collections.abc import Awaitable, Callable, Mapping

from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.runs.images import Picture
from autolora_eval.scoring.constraint import reply_pattern, reply_schema
from autolora_eval.scoring.judges.base import Reply, is_transient
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.openai_protocol import StructuredOutput, chat
from autolora_eval.scoring.reply import parse_reply
from autolora_eval.scoring.rubric import Rubric, Score

Call = Callable[[Json], Awaitable[Reply]]
ForcedScores = Mapping[str, float] | None
TOP_LOGPROBS = (20, 5)  # what vLLM gives at most, and what some others do
# What a server says that does not know an argument.
_UNKNOWN = ("http_400", "http_404", "http_422", "http_501")
# vLLM takes what a request leaves open from the model's own settings, and a penalty on repeated
# tokens, which many models have there, would bend the second of two equal scores.
NO_REPETITION_PENALTY = {"repetition_penalty": 1.0}


def _structured_outputs(rubric: Rubric, pinned: ForcedScores) -> Json:
    """VLLM from 0.11 on. A regex and not a schema, whose grammar permits endless white space."""
    held = {"structured_outputs": {"regex": reply_pattern(rubric, pinned)}}
    return {"extra_body": {**held, **NO_REPETITION_PENALTY}}


def _guided_regex(rubric: Rubric, pinned: ForcedScores) -> Json:
    """Older vLLM, such as the 0.10.2 that serves the paper's judge."""
    return {"extra_body": {"guided_regex": reply_pattern(rubric, pinned), **NO_REPETITION_PENALTY}}


def _response_format(rubric: Rubric, pinned: ForcedScores) -> Json:
    """What most other servers know."""
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
    """Return the way of asking: as stated, or the first that the server obeys.

    Args:
        spec: the benchmark's `judge`.
        rubric: what replies are to be held to.
        call: returns the reply to a call, tried again as often as any.

    Raises:
        AutoLoRAEvalError: a trial fails in a way that says nothing of what the server obeys.
    """
    name = spec.constraint
    if rubric is None:
        return StructuredOutput("plain")
    if name == "plain":
        mode = StructuredOutput("plain")
    elif name == "auto":
        mode = await _first_obeyed(spec, rubric, call)
    else:
        mode = StructuredOutput(name, MODES[name](rubric, None))
    if spec.logprobs:
        mode = await _with_logprobs(spec, rubric, mode, call)
    return mode


async def _first_obeyed(spec: JudgeConfig, rubric: Rubric, call: Call) -> StructuredOutput:
    """Try each way of holding the judge to one verdict, and then to another.

    A server that does not know an argument mostly ignores it, so that an answer alone proves
    nothing: only one that gives both verdicts, to the same question, obeys.
    """
    ends = {column: _ends(score) for column, score in rubric.scores.items()}
    lowest, highest = ({column: both[n] for column, both in ends.items()} for n in (0, 1))
    for name, arguments in MODES.items():
        for wanted in (lowest, highest):
            mode = StructuredOutput(name, arguments(rubric, wanted))
            reply = await _try(spec, rubric, mode, call)
            if reply.text is None or parse_reply(reply.text, rubric).scores != wanted:
                break
        else:
            return StructuredOutput(name, arguments(rubric, None))
    return StructuredOutput("plain")


def _ends(score: Score) -> tuple[float, float]:
    """Return the lowest and the highest value that a reply can have."""
    if score.type == "integer":
        return math.ceil(score.min), math.floor(score.max)
    return score.min, score.max


async def _with_logprobs(
    spec: JudgeConfig, rubric: Rubric, mode: StructuredOutput, call: Call
) -> StructuredOutput:
    """Return the mode with as many log-probabilities as the server gives."""
    for count in TOP_LOGPROBS:
        asking = StructuredOutput(mode.name, mode.arguments, count)
        if (await _try(spec, rubric, asking, call)).tokens:
            return asking
    return mode


async def _try(spec: JudgeConfig, rubric: Rubric, mode: StructuredOutput, call: Call) -> Reply:
    """Return the reply to a trial; it has no text if the server refuses it.

    Raises:
        AutoLoRAEvalError: the call fails for other reasons.
    """
    reply = await call(_trial(spec, rubric, mode))
    if not is_transient(reply.reason) or reply.reason in _UNKNOWN:
        return reply
    step = "Look into its log; or set judge.constraint, and leave out judge.logprobs, for no trial."
    if reply.reason in ("http_401", "http_403"):
        step = f"If it needs a key, put it into {spec.api_key_env}."
    raise AutoLoRAEvalError(
        f"the judge's server lists '{spec.model}', but a trial call fails: {reply.reason}. {step}"
    )


def _trial(spec: JudgeConfig, rubric: Rubric, mode: StructuredOutput) -> Json:
    """Return a call that differs from a real one in its picture only, which is grey."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(stream, "PNG")
    picture = Picture(stream.getvalue(), "PNG", 64, 64)
    return chat(spec, rubric.question("a grey picture"), picture, 0, mode)
