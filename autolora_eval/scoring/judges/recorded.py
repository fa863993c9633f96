"""What is recorded of a reply's tokens: the log-probabilities of those that could have come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from autolora_eval.scoring.judges.base import Token

TOP = 20  # as many as vLLM gives


class Recorder:
    """Keeps the log-probabilities of each place's likeliest tokens and of the one taken.

    They are the model's own if no other processor comes before.
    """

    def __init__(self, count: int = TOP) -> None:
        self.count = count
        self._top: list[tuple[Tensor, Tensor]] = []
        self._taken: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores as they are.

        Args:
            input_ids: (batch, length) int64, questions and replies so far.
            scores: (batch, vocabulary) floats.
        """
        self._settle(input_ids)
        self._last = scores.float().log_softmax(-1)
        values, tokens = self._last.topk(min(self.count, scores.shape[1]))
        self._top.append((values, tokens))
        return scores

    def places(self, made: Tensor) -> list[list[dict[int, float]]]:
        """Return natural log-probability by token for each place of each row.

        Args:
            made: (batch, length) int64, as `generate` returns it.
        """
        self._settle(made)
        replies = made[:, made.shape[1] - len(self._top) :].tolist()
        rows: list[list[dict[int, float]]] = [[] for _ in replies]
        for n, ((values, tokens), taken) in enumerate(zip(self._top, self._taken, strict=True)):
            kept = zip(rows, replies, values.tolist(), tokens.tolist(), taken.tolist(), strict=True)
            for row, reply, row_values, row_tokens, one in kept:
                row.append({reply[n]: one} | dict(zip(row_tokens, row_values, strict=True)))
        return rows

    def _settle(self, input_ids: Tensor) -> None:
        """Note what was taken at the place before, which is known only now."""
        if self._last is not None:
            self._taken.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1))
            self._last = None


class Pieces:
    """The text of single tokens.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        # Some tokenizers drop the blank that a text begins with: what is not a reply's first
        # token is read behind another.
        self._before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._skipped = len(self._decoded(self._before))
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[tuple[int, bool], str] = {}

    def tokens(
        self, reply: Sequence[int], places: Sequence[Mapping[int, float]], text: str
    ) -> tuple[Token, ...]:
        """Return a reply's tokens; none if their texts do not make up its text.

        That is so where a letter is spread over several tokens.

        Args:
            reply: its tokens without the end.
            places: log-probability by token at each place, and maybe at further ones.
            text: the whole reply, decoded without special tokens.
        """
        tokens = tuple(
            Token(self._text(token, n == 0), self._alternatives(place, n == 0))
            for n, (token, place) in enumerate(zip(reply, places, strict=False))
            if token not in self._special
        )
        return tokens if "".join(token.text for token in tokens) == text else ()

    def _alternatives(self, place: Mapping[int, float], first: bool) -> dict[str, float]:
        """Return log-probability by text; that of tokens with one text is of either."""
        found: dict[str, float] = {}
        for token, value in place.items():
            text = self._text(token, first)
            found[text] = float(np.logaddexp(found[text], value)) if text in found else value
        return found

    def _text(self, token: int, first: bool) -> str:
        key = token, first
        if key not in self._known:
            alone = [token] if first else [*self._before, token]
            self._known[key] = self._decoded(alone)[0 if first else self._skipped :]
        return self._known[key]

    def _decoded(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
