"""The judge in this process: any image-text-to-text model of `transformers`."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from autolora_eval._devices import choose_dtype, quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._files import Json
from autolora_eval._sources import Source, first_line, identity
from autolora_eval.runs.images import ImageError, Picture, open_image
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judges.base import Reply, Request, Token
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.logits_processors import (
    Grammar,
    GumbelNoise,
    LogprobRecorder,
    RegexLogitsProcessor,
    TokenTexts,
    UnsupportedConstraintError,
    row_seed,
)
from autolora_eval.scoring.rubric import Question, Rubric


@dataclass(frozen=True)
class _Preprocessor:
    """What stands before the model, and can be had without its weights.

    Attributes:
        processor: makes tokens and pixels of a conversation.
        ends: the tokens that end a reply.
        grammar: what replies are held to, or the reason why they are not.
    """

    processor: Any
    ends: tuple[int, ...]
    grammar: Grammar | str


@dataclass(frozen=True)
class _Asked:
    """A question about an image that could be opened."""

    question: Question
    image: Image.Image
    file: Picture
    repeat: int


@dataclass(frozen=True)
class _Completion:
    """The model's words."""

    text: str
    truncated: bool
    tokens: tuple[Token, ...]


class TransformersJudge:
    """A vision-language model run by `transformers`, loaded at the first question.

    Args:
        spec: the benchmark's `judge`.
        source: where the model is.
        device: where it runs.
        rubric: what replies are held to; without one they are free.
    """

    def __init__(
        self, spec: JudgeConfig, source: Source, device: torch.device, rubric: Rubric | None = None
    ) -> None:
        self.spec, self.source, self.device, self.rubric = spec, source, device, rubric
        # Vision-language models are published in bfloat16; float16 can overflow in them.
        on_cuda = spec.dtype == "auto" and device.type == "cuda"
        self.dtype = choose_dtype("bfloat16" if on_cuda else spec.dtype, device)
        self._model: Any = None

    def identity(self) -> Json:
        """Return model, precision, constraint and sampling; the weights are not loaded.

        Raises:
            AutoLoRAEvalError: the model cannot be had, or its replies cannot be held to the
                rubric as the benchmark says.
        """
        sampled = self.spec.temperature > 0
        return {
            "backend": "transformers",
            "identity": identity(self.source),
            "dtype": str(self.dtype).removeprefix("torch."),
            "constraint": "regex" if isinstance(self._front.grammar, Grammar) else "plain",
            "temperature": self.spec.temperature,
            "sampling": "gumbel-max" if sampled else "greedy",
            "max_tokens": self.spec.max_tokens,
            "batch_size": self.spec.batch_size,
            "seed": self.spec.seed if sampled else None,
            "logprobs": self.spec.logprobs,
        }

    def facts(self) -> Json:
        """Return the processor's word on an image's size, and why replies are free if they are."""
        size = getattr(getattr(self._front.processor, "image_processor", None), "size", None)
        known = dict(size or {})
        facts: Json = {"image_size": {key: known[key] for key in known if known[key] is not None}}
        free = self._front.grammar
        return facts | ({"plain_because": free} if isinstance(free, str) else {})

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield requests with their replies, a batch at a time, in order.

        An image that cannot be opened, or a question that the model cannot be asked, is a reply
        with a reason; the others of its batch have theirs.

        Raises:
            AutoLoRAEvalError: the model cannot be loaded or run.
        """
        waiting = iter(requests)
        while batch := list(itertools.islice(waiting, self.spec.batch_size)):
            yield list(zip(batch, self._answers(batch), strict=True))

    def close(self) -> None:
        """Give the memory of the model back."""
        self._model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _answers(self, requests: Sequence[Request]) -> list[Reply]:
        opened = [_open(request) for request in requests]
        asked = [one for one in opened if isinstance(one, _Asked)]
        with quiet_libraries():
            if asked:
                self._load()
            start = time.monotonic()
            said = iter(self._said(asked) if asked else [])
        seconds = (time.monotonic() - start) / len(requests)
        name = self.source.name
        replies = []
        for one in opened:
            if isinstance(one, str):
                replies.append(Reply(None, one, False, name, 0.0))
                continue
            words, sent = next(said), one.file.facts()
            if words is None:
                replies.append(Reply(None, "bad_request", False, name, seconds, sent=sent))
                continue
            text, tokens = words.text, words.tokens
            replies.append(
                Reply(text, None, words.truncated, name, seconds, sent=sent, tokens=tokens)
            )
        return replies

    def _said(self, asked: Sequence[_Asked]) -> list[_Completion | None]:
        """Return what the model says to each; None where it cannot be asked.

        One such question fails its whole batch, which is halved until it stands alone.
        """
        try:
            return list(self._generate(asked))
        except torch.OutOfMemoryError as error:
            raise AutoLoRAEvalError(
                f"the judge '{self.source.name}' ran out of the memory of {self.device} with "
                f"{self.spec.batch_size} images a pass. Lower judge.batch_size. What it judged so "
                "far is kept."
            ) from error
        except (ValueError, IndexError):
            if len(asked) == 1:
                return [None]
        half = len(asked) // 2
        return self._said(asked[:half]) + self._said(asked[half:])

    def _generate(self, asked: Sequence[_Asked]) -> list[_Completion]:
        """Ask a batch at once.

        A short batch is filled up, so that a reply's last bits do not depend on what is missing
        beside it.

        Raises:
            ValueError: one of them cannot be asked.
        """
        from transformers import LogitsProcessorList

        rows = [*asked, *[asked[-1]] * (self.spec.batch_size - len(asked))]
        inputs = self._inputs([conversation(row.question, row.image) for row in rows])
        recorder = LogprobRecorder() if self.spec.logprobs else None
        processors = [] if recorder is None else [recorder]
        made = self._run(inputs, LogitsProcessorList([*processors, *self._processors(rows)]))
        places = [[] for _ in rows] if recorder is None else recorder.places(made)
        replies = made[: len(asked), inputs["input_ids"].shape[1] :].tolist()
        return [self._words(*reply) for reply in zip(replies, places, strict=False)]

    def _processors(self, rows: Sequence[_Asked]) -> Iterator[Any]:
        """Yield what chooses a batch's tokens beside the model."""
        if isinstance(self._front.grammar, Grammar):
            yield RegexLogitsProcessor(self._front.grammar)
        if self.spec.temperature > 0:
            seeds = [row_seed(self.spec.seed + r.repeat, r.file.data, r.question) for r in rows]
            yield GumbelNoise(seeds, self.spec.temperature)

    def _inputs(self, conversations: list[list[Json]]) -> Any:  # noqa: ANN401
        """Return tokens and pixels of a batch.

        Raises:
            ValueError: a question is not what the processor takes, or is too long for the model.
        """
        inputs = self._front.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        longest = int(inputs["attention_mask"].sum(1).max()) + self.spec.max_tokens
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise ValueError(f"{longest} tokens with the reply; the model takes {limit}")
        return inputs.to(self.device, self.dtype)

    @torch.no_grad()
    def _run(self, inputs: Any, processors: Any, max_tokens: int | None = None) -> torch.Tensor:  # noqa: ANN401
        """Return questions and replies as tokens, (batch, length) int64."""
        made: torch.Tensor = self._model.generate(
            **inputs,
            max_new_tokens=max_tokens or self.spec.max_tokens,
            logits_processor=processors,
        )
        return made

    def _words(self, reply: list[int], places: list[dict[int, float]]) -> _Completion:
        """Return what a row of tokens says.

        Args:
            reply: the row, filled up behind its end.
            places: log-probability by token for each of the row's tokens; none if not asked for.
        """
        tokenizer, ends = self._front.processor.tokenizer, set(self._front.ends)
        length = next((n for n, token in enumerate(reply) if token in ends), len(reply))
        # Some tokenizers would tidy the blanks before commas away: the reply is kept as it is.
        text = tokenizer.decode(
            reply[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        tokens = self._pieces.tokens(reply[:length], places, text) if places else ()
        return _Completion(text, length >= self.spec.max_tokens, tokens)

    @cached_property
    def _pieces(self) -> TokenTexts:
        return TokenTexts(self._front.processor.tokenizer)

    @cached_property
    def _front(self) -> _Preprocessor:
        from transformers import AutoProcessor

        with quiet_libraries():
            try:
                processor = AutoProcessor.from_pretrained(self.source.location, **self._revision)
                ends = self._ends(processor.tokenizer)
            except (OSError, ValueError, AttributeError, ImportError) as error:
                raise self._unloadable(error) from error
        processor.tokenizer.padding_side = "left"
        return _Preprocessor(processor, ends, self._grammar(processor.tokenizer, ends))

    def _ends(self, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
        """Return the tokens that end a reply, as the model's own settings or its tokenizer say."""
        from transformers import AutoConfig, GenerationConfig

        location = self.source.location
        try:
            settings = GenerationConfig.from_pretrained(location, **self._revision)
        except OSError:
            config = AutoConfig.from_pretrained(location, **self._revision)
            settings = GenerationConfig.from_model_config(config)
        ends = settings.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        if ends is None:
            raise ValueError("neither its settings nor its tokenizer name an end token")
        return tuple(ends if isinstance(ends, list) else [ends])

    def _grammar(self, tokenizer: Any, ends: tuple[int, ...]) -> Grammar | str:  # noqa: ANN401
        """Return what replies are held to, or why they are not, as `judge.constraint` says.

        Raises:
            AutoLoRAEvalError: it says what cannot be had here.
        """
        stated = self.spec.constraint
        if stated not in ("auto", "regex", "plain"):
            raise AutoLoRAEvalError(
                f"judge.constraint '{stated}' is for servers. With judge.backend 'transformers' "
                "write 'regex', 'plain' or 'auto'."
            )
        if stated == "plain" or self.rubric is None:
            return "the benchmark says so" if self.rubric else "there is no rubric"
        try:
            return Grammar(reply_pattern(self.rubric), tokenizer, ends)
        except UnsupportedConstraintError as error:
            if stated == "auto":
                return str(error)
            raise AutoLoRAEvalError(
                f"the replies of the judge '{self.source.name}' cannot be held to a regular "
                f"expression: {error}. Mend that, or set judge.constraint to 'plain'."
            ) from error

    def _load(self) -> None:
        """Load the model once, and ask it something that every such model can be asked."""
        if self._model is not None:
            return
        from transformers import AutoModelForImageTextToText, GenerationConfig

        front = self._front
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                self.source.location, dtype=self.dtype, use_safetensors=True, **self._revision
            )
        except (OSError, ValueError, ImportError) as error:
            raise self._unloadable(error) from error
        # A model's own settings, such as a penalty on repeated digits, would bend the verdicts.
        pad = front.processor.tokenizer.pad_token_id
        model.generation_config = GenerationConfig(
            eos_token_id=list(front.ends), pad_token_id=front.ends[0] if pad is None else pad
        )
        try:
            self._model = model.to(self.device).eval()
            question = self.rubric.question("a") if self.rubric else Question("", "a")
            grey = conversation(question, Image.new("RGB", (64, 64), (128, 128, 128)))
            self._run(self._inputs([grey]), None, max_tokens=1)
        except Exception as error:
            self.close()
            raise AutoLoRAEvalError(
                f"the judge '{self.source.name}' cannot be asked about an image on "
                f"{self.device} ({type(error).__name__}: {first_line(error)}). It needs a chat "
                "template that takes images, room for the rubric and judge.max_tokens, and memory "
                "for its weights."
            ) from error

    @property
    def _revision(self) -> dict[str, str]:
        return {"revision": self.source.revision} if self.source.revision else {}

    def _unloadable(self, error: Exception) -> AutoLoRAEvalError:
        return AutoLoRAEvalError(
            f"the judge '{self.source.name}' cannot be loaded: {str(error)[:400]}"
        )


def conversation(question: Question, image: Image.Image) -> list[Json]:
    """Return a question as a chat: text, image, text; empty texts are left out."""
    parts: list[Json] = [{"type": "image", "image": image}]
    if question.before:
        parts.insert(0, {"type": "text", "text": question.before})
    if question.after:
        parts.append({"type": "text", "text": question.after})
    return [{"role": "user", "content": parts}]


def _open(request: Request) -> _Asked | str:
    """Return a question with its image, or the reason why the image cannot be opened."""
    try:
        image = open_image(request.image)
    except ImageError as error:
        return str(error)
    with Image.open(request.image) as header:
        kind = header.format or "PNG"
    file = Picture(request.image.read_bytes(), kind, image.width, image.height)
    return _Asked(request.question, image, file, request.repeat)
