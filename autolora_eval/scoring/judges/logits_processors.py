"""What is done to a judge's logits before its likeliest token is taken, row by row of a batch.

They are recorded, held to a pattern, and made a sample. Each is a logits processor of
`transformers`' `generate`; none knows of the others, nor does a row of its neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval.scoring.judges.base import Token
from autolora_eval.scoring.rubric import Question

# llguidance's trie of tokens takes no longer ones. Shorter tokens spell the same bytes.
_LONGEST_TOKEN = 255
_NO_TEXT = "\u0100\u0100"  # two null bytes to a byte-level tokenizer: no reply has them


class UnsupportedConstraintError(Exception):
    """Replies cannot be held to a pattern here, with the reason as its message."""


class Grammar:
    """A regular expression, compiled for a tokenizer by llguidance.

    Args:
        pattern: what a reply must match from its first character to its last.
        tokenizer: a fast tokenizer of `transformers`.
        ends: the tokens that end a reply.

    Raises:
        UnheldError: llguidance is missing, or takes neither this tokenizer nor this pattern.
    """

    def __init__(self, pattern: str, tokenizer: Any, ends: Sequence[int]) -> None:  # noqa: ANN401
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError as error:
            raise UnsupportedConstraintError(
                "the package 'llguidance' is not installed (pip install 'autolora-eval[models]')"
            ) from error
        self.ends = tuple(ends)
        described, self.overlong = _described(tokenizer)
        size = 1 + max(*tokenizer.get_vocab().values(), *ends)
        try:
            known = LLTokenizer(json.dumps(described), n_vocab=size, eos_token=ends[0])
        except BaseException as error:
            # A panic of Rust's is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UnsupportedConstraintError(
                f"llguidance does not take its tokenizer ({error})"
            ) from error
        grammar = LLMatcher.grammar_from_regex(pattern)
        if problem := LLMatcher.validate_grammar(grammar, known):
            problem = " ".join(problem.split())[:200]
            raise UnsupportedConstraintError(f"llguidance does not take the pattern ({problem})")
        self._start = LLMatcher(known, grammar, log_level=0)

    def matchers(self, n: int) -> list[Any]:
        """Return matchers at the beginning of a reply, one a row."""
        return [self._start.deep_copy() for _ in range(n)]

    def allowed(self, matchers: Sequence[Any], width: int) -> Tensor:
        """Return which tokens may come next, (rows, width) booleans.

        Args:
            matchers: of each row, at its place.
            width: of the model's logits.
        """
        allowed = _unpacked([matcher.compute_bitmask() for matcher in matchers], width)
        for end in self.ends[1:]:  # older versions of llguidance know a single end
            allowed[:, end] = allowed[:, self.ends[0]]
        allowed[:, [token for token in self.overlong if token < width]] = False
        return allowed


class RegexLogitsProcessor:
    """Leaves each row only the tokens that its reply may go on with, or end with.

    A row whose reply is complete is left its end tokens only.

    Args:
        grammar: what replies are held to.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._matchers: list[Any] | None = None
        self._ended: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with −∞ for each token that may not come next.

        Args:
            input_ids: (batch, length) int64, questions and replies so far.
            scores: (batch, vocabulary) floats.
        """
        if self._matchers is None:
            self._matchers = self.grammar.matchers(len(scores))
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._take(row, self._matchers[row], token)
        allowed = self.grammar.allowed(self._matchers, scores.shape[1])
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _take(self, row: int, matcher: Any, token: int) -> None:  # noqa: ANN401
        # What comes after a row's end fills up the batch and is no part of its reply.
        if row in self._ended or token in self.grammar.ends:
            self._ended.add(row)
        elif not matcher.consume_token(token):
            raise AutoLoRAEvalError(
                f"llguidance lost track of a reply ({matcher.get_error()[:200]}). "
                "Set judge.constraint to 'plain'."
            )


class GumbelNoise:
    """Makes the likeliest token of each row a sample, by a generator of the row's own.

    With gᵢ = −ln(−ln uᵢ), uᵢ uniform on (0, 1), the largest of zᵢ/T + gᵢ is token i with the
    probability exp(zᵢ/T) / Σⱼ exp(zⱼ/T): greedy decoding of the noisy logits is sampling at
    temperature T (the Gumbel-max identity). T·gᵢ is added to zᵢ, which has the same largest and
    overflows at no T. The noise is made on the CPU, so that no device decides it.

    Args:
        seeds: of each row, as of `row_seed`.
        temperature: T > 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with noise; −∞ stays.

        Args:
            input_ids: (batch, length) int64; not looked at.
            scores: (batch, vocabulary) floats.
        """
        rows = [
            torch.rand(scores.shape[1], generator=generator, dtype=torch.float64)
            for generator in self._generators
        ]
        # 2⁻⁵⁴ is half the smallest step of torch.rand: a zero would forbid a token.
        uniform = torch.stack(rows).clamp_(min=2.0**-54)
        noise = -self.temperature * torch.log(-torch.log(uniform))
        return scores + noise.to(scores.dtype).to(scores.device)


def row_seed(seed: int, image: bytes, question: Question) -> int:
    """Return the seed of one question about one image, whatever is asked beside it.

    Args:
        seed: of the benchmark, plus the number of the repeat.
        image: the file's bytes.
        question: what is asked.
    """
    said: Json = {"seed": seed, "image": hashlib.sha256(image).hexdigest()}
    said |= {"before": question.before, "after": question.after}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _described(tokenizer: Any) -> tuple[Json, list[int]]:  # noqa: ANN401
    """Return a fast tokenizer as its JSON, without overlong tokens, and these tokens.

    Each leaves another name in its place: the numbers of the tokens after it must not change.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedConstraintError("its tokenizer is not one of the library 'tokenizers'")
    described: Json = json.loads(backend.to_str())
    described["padding"] = described["truncation"] = None
    model = described["model"]
    if model["type"] != "BPE":
        return described, []
    overlong = [n for text, n in model["vocab"].items() if not _fits(text)]
    model["vocab"] = {
        text if _fits(text) else f"{_NO_TEXT}{n}": n for text, n in model["vocab"].items()
    }
    model["merges"] = [merge for merge in model["merges"] if _fits("".join(merge))]
    return described, overlong


def _fits(text: str) -> bool:
    return len(text.encode()) <= _LONGEST_TOKEN


def _unpacked(masks: Sequence[bytes], width: int) -> Tensor:
    """Return llguidance's masks, a bit a token, as (rows, width) booleans.

    A model's logits may be wider than its tokenizer, or narrower by a token for images.
    """
    packed = torch.frombuffer(bytearray(b"".join(masks)), dtype=torch.uint8)
    bits = (packed.view(len(masks), -1, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    bits = bits.flatten(1)[:, :width].bool()
    return torch.nn.functional.pad(bits, (0, width - bits.shape[1]))


# --------------------
# What is recorded of a reply's tokens: the log-probabilities of those that could have come.


TOP = 20  # as many as vLLM gives


class LogprobRecorder:
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


class TokenTexts:
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
