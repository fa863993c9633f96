"""What is done to a judge's logits before its likeliest token is taken, row by row of a batch.

They are recorded, held to a pattern, and made a sample. Each is a logits processor of
`transformers`' `generate`; none knows of the others, nor does a row of its neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json
from autolora_eval.rubric import Question

# llguidance's trie of tokens takes no longer ones. Shorter tokens spell the same bytes.
_LONGEST_TOKEN = 255
_NO_TEXT = "\u0100\u0100"  # two null bytes to a byte-level tokenizer: no reply has them


class UnheldError(Exception):
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
            raise UnheldError(
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
            raise UnheldError(f"llguidance does not take its tokenizer ({error})") from error
        grammar = LLMatcher.grammar_from_regex(pattern)
        if problem := LLMatcher.validate_grammar(grammar, known):
            problem = " ".join(problem.split())[:200]
            raise UnheldError(f"llguidance does not take the pattern ({problem})")
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


class HeldToPattern:
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


class SeededNoise:
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
        raise UnheldError("its tokenizer is not one of the library 'tokenizers'")
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
