"""What a judge is to the rest of the product: questions about images in, replies out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autolora_eval.files import Json
from autolora_eval.rubric import Question

# Failures of the way to the judge, not of its reply: a later run asks again.
TRANSIENT = ("http_", "timeout", "connection", "bad_response")


@dataclass(frozen=True)
class Request:
    """One image and what is asked about it."""

    image: Path
    question: Question


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
    """

    text: str | None
    reason: str | None
    truncated: bool
    model: str
    latency: float


class Judge(Protocol):
    """A vision-language model that answers questions about images."""

    @property
    def batch_size(self) -> int:
        """Requests that are best asked together."""
        ...

    def identity(self) -> Json:
        """Return what decides its replies: model, revision or hash, sampling parameters."""
        ...

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply a request, in order. A failed call is a reply with a reason."""
        ...


def is_transient(reason: str | None) -> bool:
    """Tell whether a later run should ask again."""
    return reason is not None and reason.startswith(TRANSIENT)
