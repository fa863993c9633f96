"""The record of prompts that a model's text encoders do not read to their end."""

from __future__ import annotations

from autolora_eval.runs.records import Record


class PromptCut(Record):
    """A prompt that text encoders do not read to its end.

    Attributes:
        name: "prompt N", counted from 1, "negative prompt N" or "negative prompt".
        encoders: the text encoders that cut it at this place.
        tokens: its tokens.
        limit: the tokens that are read; both with start and end.
        read: the text that is read.
    """

    name: str
    encoders: list[str]
    tokens: int
    limit: int
    read: str


class PromptCuts(Record):
    """What a model's text encoders do not read of the prompts.

    Attributes:
        cut: prompts that are not read to their end.
        same: groups of prompts that every text encoder reads as the same, counted from 1.
    """

    cut: list[PromptCut]
    same: list[list[int]]
