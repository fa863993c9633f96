"""What a judge is to the rest of the product: questions about images in, replies out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autolora_eval._files import Json
from autolora_eval.scoring.rubric import Question

# Failures of the way to the judge, not of its reply: a later run asks again.
TRANSIENT_REASONS = ("http_", "timeout", "connection", "bad_response")


@dataclass(frozen=True)
class Request:
    """One image and what is asked about it.

    Attributes:
        image: the file.
        question: the rubric's text with the prompt filled in.
        repeat: which asking of the same question this is, from 0; it is added to the seed.
        tag: whatever the asker wants back with the reply.
    """

    image: Path
    question: Question
    repeat: int = 0
    tag: object = None


@dataclass(frozen=True)
class Token:
    """One token of a reply, with the likeliest tokens at its place.

    Attributes:
        text: of the token.
        alternatives: natural log-probability by text of each, the token itself among them.
    """

    text: str
    alternatives: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: the judge's words; None if the call failed.
        reason: why the call failed: `timeout`, `connection`, `http_500`, `bad_response`,
            `refused`, `corrupt_image` …; None if it did not.
        truncated: the reply ran into the token limit.
        model: the model as the judge names it.
        latency: seconds from question to reply.
        attempts: calls that were made for it.
        sent: format, width, height and bytes of the image as the judge was given it; None if it
            was not.
        tokens: the reply's tokens with their alternatives, if log-probabilities were asked for
            and given.
    """

    text: str | None
    reason: str | None
    truncated: bool
    model: str
    latency: float
    attempts: int = 1
    sent: Json | None = None
    tokens: tuple[Token, ...] = ()


class Judge(Protocol):
    """A vision-language model that answers questions about images."""

    def identity(self) -> Json:
        """Return what decides its replies: model, revision or hash, constraint, sampling.

        Raises:
            AutoLoRAEvalError: a server that must say what it serves is not there.
        """
        ...

    def facts(self) -> Json:
        """Return what else is to be recorded of it, which decides no reply."""
        ...

    def close(self) -> None:
        """Give back what it holds: memory, connections. It is not asked again."""
        ...

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield each request with its reply as it comes, in any order, in groups.

        Requests are taken from the iterable as they can be worked on, so that memory does not
        grow with their number. A failed call is a reply with a reason.

        Raises:
            AutoLoRAEvalError: the judge is gone. What was yielded stands.
        """
        ...


def is_transient(reason: str | None) -> bool:
    """Tell whether a later run should ask again."""
    return reason is not None and reason.startswith(TRANSIENT_REASONS)
