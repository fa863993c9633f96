"""The interface of a judge: requests, replies and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from autolora_eval._files import Json
from autolora_eval.scoring.rubric import Question

# Reasons for failed calls, as opposed to unusable replies: a later run asks again.
TRANSIENT_REASONS = ("http_", "timeout", "connection", "bad_response")


@dataclass(frozen=True)
class Request:
    """One question about one image.

    Attributes:
        image: the image file.
        question: the rubric's text with the prompt filled in.
        repeat: index of the repetition of this question, from 0; it is added to the seed.
        tag: any object that the caller wants back with the reply.
    """

    image: Path
    question: Question
    repeat: int = 0
    tag: object = None


@dataclass(frozen=True)
class Token:
    """One token of a reply, with the most likely tokens at its position.

    Attributes:
        text: the token's text.
        alternatives: natural log-probability by text, including the token itself.
    """

    text: str
    alternatives: Mapping[str, float]

    @classmethod
    def of(cls, text: str, alternatives: Iterable[tuple[str, float]]) -> Token:
        """Return a token; the probabilities of alternatives with equal text are summed."""
        found: dict[str, float] = {}
        for other, value in alternatives:
            found[other] = float(np.logaddexp(found.get(other, -np.inf), value))
        return cls(text, found)


@dataclass(frozen=True)
class Reply:
    """A judge's reply to one request.

    Attributes:
        text: the reply; None if the call failed.
        reason: why the call failed: `timeout`, `connection`, `http_500`, `bad_response`,
            `refused`, `corrupt_image` …; None if it succeeded.
        truncated: True if the reply reached the token limit.
        model: the model's name as the judge reports it.
        latency: seconds from question to reply.
        attempts: number of calls made.
        sent: format, width, height and bytes of the image as sent to the judge; None if no image
            was sent.
        tokens: the reply's tokens with their alternatives; empty without log-probabilities.
        detail: the server's error message; None if there is none.
        prompt_tokens: tokens of question and image as the server counts them; None if it does not.
        retry_after: seconds that the server asks to wait before a retry; None if it does not.
    """

    text: str | None
    reason: str | None
    truncated: bool
    model: str
    latency: float
    attempts: int = 1
    sent: Json | None = None
    tokens: tuple[Token, ...] = ()
    detail: str | None = None
    prompt_tokens: int | None = None
    retry_after: float | None = None


class Judge(Protocol):
    """A vision-language model that answers questions about images."""

    def identity(self) -> Json:
        """Return everything that determines the replies: model, revision, constraint, sampling.

        Raises:
            AutoLoRAEvalError: if the judge's server does not answer.
        """
        ...

    def facts(self) -> Json:
        """Return further facts for the manifest that do not influence replies."""
        ...

    def close(self) -> None:
        """Release memory and connections. The judge cannot be used afterwards."""
        ...

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield each request with its reply, in any order, in groups.

        Requests are taken from the iterable only as they can be processed, so memory does not
        grow with their number. A failed call yields a reply with a reason.

        Raises:
            AutoLoRAEvalError: if the judge is unavailable. Replies yielded before remain valid.
        """
        ...


def is_transient(reason: str | None) -> bool:
    """Return True if a later run should ask again."""
    return reason is not None and reason.startswith(TRANSIENT_REASONS)
