"""Logits processors for the judge: constrain replies, sample, and record log-probabilities.

Each is a logits processor of `generate` in transformers. They are independent of each other, and
each row of a batch is independent of the other rows.
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
from autolora_eval.scoring.judge import Token
from autolora_eval.scoring.rubric import Question

# llguidance does not accept longer tokens. Shorter tokens can spell the same bytes.
_LONGEST_TOKEN = 255
_UNUSED_TEXT = "\u0100\u0100"  # two null bytes in a byte-level tokenizer: never in a reply


class UnsupportedConstraintError(Exception):
    """Replies of this model cannot be constrained; the message is the reason."""


class Grammar:
    """A regular expression that a whole reply must match, compiled for a tokenizer by llguidance.

    Raises:
        UnsupportedConstraintError: if llguidance is not installed, or does not support the
            tokenizer or the pattern.
    """

    def __init__(self, pattern: str, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:  # noqa: ANN401
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError as error:
            raise UnsupportedConstraintError(
                "the package 'llguidance' is not installed (pip install 'autolora-eval[models]')"
            ) from error
        self.eos_token_ids = tuple(eos_token_ids)
        serialized, self.overlong = _serialized(tokenizer)
        size = 1 + max(*tokenizer.get_vocab().values(), *eos_token_ids)
        try:
            known = LLTokenizer(json.dumps(serialized), n_vocab=size, eos_token=eos_token_ids[0])
        except BaseException as error:
            # A panic in Rust raises a BaseException.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UnsupportedConstraintError(
                f"llguidance does not support its tokenizer ({error})"
            ) from error
        grammar = LLMatcher.grammar_from_regex(pattern)
        if problem := LLMatcher.validate_grammar(grammar, known):
            problem = " ".join(problem.split())[:200]
            raise UnsupportedConstraintError(f"llguidance does not support the pattern ({problem})")
        self._start = LLMatcher(known, grammar, log_level=0)

    def matchers(self, n: int) -> list[Any]:
        """Return one matcher for each row, at the beginning of a reply."""
        return [self._start.deep_copy() for _ in range(n)]

    def allowed(self, matchers: Sequence[Any], width: int) -> Tensor:
        """Return which tokens of the vocabulary may come next, bool [rows, width]."""
        allowed = _unpacked([matcher.compute_bitmask() for matcher in matchers], width)
        for end in self.eos_token_ids[1:]:  # old llguidance supports one end token
            allowed[:, end] = allowed[:, self.eos_token_ids[0]]
        allowed[:, [token for token in self.overlong if token < width]] = False
        return allowed


class RegexLogitsProcessor:
    """Allows only the tokens that continue or end a valid reply.

    If a row's reply is complete, only end tokens are allowed.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._matchers: list[Any] | None = None
        self._ended: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits, with −∞ for each forbidden token.

        Args:
            input_ids: int64 [batch, length], questions and replies so far.
            scores: logits, float [batch, vocabulary].
        """
        if self._matchers is None:
            self._matchers = self.grammar.matchers(len(scores))
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._advance(row, self._matchers[row], token)
        allowed = self.grammar.allowed(self._matchers, scores.shape[1])
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _advance(self, row: int, matcher: Any, token: int) -> None:  # noqa: ANN401
        # Tokens after the end of a row are padding.
        if row in self._ended or token in self.grammar.eos_token_ids:
            self._ended.add(row)
        elif not matcher.consume_token(token):
            raise AutoLoRAEvalError(
                f"llguidance lost track of a reply ({matcher.get_error()[:200]}). "
                "Set judge.constraint to 'plain'."
            )


class GumbelNoise:
    """Turns greedy decoding into sampling, with a random generator for each row.

    Gumbel-max trick: with gᵢ = −ln(−ln uᵢ), uᵢ uniform on (0, 1), token i maximises zᵢ/T + gᵢ with
    probability exp(zᵢ/T) / Σⱼ exp(zⱼ/T). So greedy decoding of the noisy logits samples at
    temperature T. T·gᵢ is added to zᵢ, which has the same argmax and does not overflow for small T.
    The noise is computed on the CPU, so it does not depend on the device.

    Args:
        seeds: the seed of each row, from `row_seed`.
        temperature: T > 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits with noise; −∞ stays −∞.

        Args:
            input_ids: int64 [batch, length]; unused.
            scores: logits, float [batch, vocabulary].
        """
        rows = [
            torch.rand(scores.shape[1], generator=generator, dtype=torch.float64)
            for generator in self._generators
        ]
        # torch.rand may return 0, which would forbid a token; its smallest step is 2⁻⁵³.
        uniform = torch.stack(rows).clamp_(min=2.0**-54)
        noise = -self.temperature * torch.log(-torch.log(uniform))
        return scores + noise.to(scores.dtype).to(scores.device)


def row_seed(seed: int, image: bytes, question: Question) -> int:
    """Return the seed of one question about one image, independent of its batch."""
    parts: Json = {"seed": seed, "image": hashlib.sha256(image).hexdigest()}
    parts |= {"before": question.before, "after": question.after}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _serialized(tokenizer: Any) -> tuple[Json, list[int]]:  # noqa: ANN401
    """Return a fast tokenizer as JSON, without overlong tokens, and the ids of these tokens.

    Overlong tokens are renamed, not removed, so that the ids of other tokens do not change.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedConstraintError("its tokenizer is not one of the 'tokenizers' library")
    serialized: Json = json.loads(backend.to_str())
    serialized["padding"] = serialized["truncation"] = None
    model = serialized["model"]
    if model["type"] != "BPE":
        return serialized, []
    overlong = [n for text, n in model["vocab"].items() if not _fits(text)]
    model["vocab"] = {
        text if _fits(text) else f"{_UNUSED_TEXT}{n}": n for text, n in model["vocab"].items()
    }
    model["merges"] = [merge for merge in model["merges"] if _fits("".join(merge))]
    return serialized, overlong


def _fits(text: str) -> bool:
    return len(text.encode()) <= _LONGEST_TOKEN


def _unpacked(masks: Sequence[bytes], width: int) -> Tensor:
    """Convert llguidance's masks, one bit per token, to bool [rows, width].

    A model's logits may be wider than its tokenizer, or narrower by an image token.
    """
    packed = np.frombuffer(b"".join(masks), np.uint8).reshape(len(masks), -1)
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=width, bitorder="little")).bool()


class LogprobRecorder:
    """Records the log-probabilities of the most likely tokens, and of the chosen one.

    It records the probabilities after the processors before it, so that a token that a constraint
    forbids has none.
    """

    def __init__(self, count: int = 20) -> None:  # vLLM's maximum
        self.count = count
        self._top: list[tuple[Tensor, Tensor]] = []
        self._chosen: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits unchanged.

        Args:
            input_ids: int64 [batch, length], questions and replies so far.
            scores: logits, float [batch, vocabulary].
        """
        self._record_chosen(input_ids)
        self._last = scores.float().log_softmax(-1)
        values, tokens = self._last.topk(min(self.count, scores.shape[1]))
        self._top.append((values, tokens))
        return scores

    def logprobs(self, generated: Tensor) -> list[list[dict[int, float]]]:
        """Return natural log-probability by token id, for each position of each row.

        Args:
            generated: int64 [batch, length], the result of `generate`.
        """
        self._record_chosen(generated)
        replies = generated[:, generated.shape[1] - len(self._top) :].tolist()
        rows: list[list[dict[int, float]]] = [[] for _ in replies]
        for n, ((values, tokens), chosen) in enumerate(zip(self._top, self._chosen, strict=True)):
            lists = (values.tolist(), tokens.tolist(), chosen.tolist())
            for row, reply, top_values, top_tokens, own in zip(rows, replies, *lists, strict=True):
                listed = zip(top_tokens, top_values, strict=True)
                row.append({reply[n]: own} | {t: value for t, value in listed if value > -np.inf})
        return rows

    def _record_chosen(self, input_ids: Tensor) -> None:
        """Record the token chosen at the previous position, which is known only now."""
        if self._last is not None:
            self._chosen.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1))
            self._last = None


class TokenTexts:
    """Decodes single tokens of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        # Some tokenizers drop a leading blank, so tokens other than the first one of a reply are
        # decoded after another token.
        self._prefix = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._prefix_length = len(self._decoded(self._prefix))
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[tuple[int, bool], str] = {}

    def tokens(
        self, reply: Sequence[int], logprobs: Sequence[Mapping[int, float]], text: str
    ) -> tuple[Token, ...]:
        """Return the tokens of a reply with their alternatives.

        Args:
            reply: token ids without the end token.
            logprobs: log-probability by token id for at least as many positions.
            text: the whole reply, decoded without special tokens.

        Returns:
            Empty if the tokens' texts do not add up to `text`, for example because a character is
            split over several tokens.
        """
        tokens = tuple(
            Token.of(
                self._text(token, n == 0),
                ((self._text(other, n == 0), value) for other, value in found.items()),
            )
            for n, (token, found) in enumerate(zip(reply, logprobs, strict=False))
            if token not in self._special
        )
        return tokens if "".join(token.text for token in tokens) == text else ()

    def _text(self, token: int, first: bool) -> str:
        key = token, first
        if key not in self._known:
            alone = [token] if first else [*self._prefix, token]
            self._known[key] = self._decoded(alone)[0 if first else self._prefix_length :]
        return self._known[key]

    def _decoded(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
