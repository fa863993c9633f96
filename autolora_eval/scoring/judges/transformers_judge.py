"""The judge in this process: any image-text-to-text model of transformers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from autolora_eval._devices import choose_dtype, free_memory, is_out_of_memory, require_gpu
from autolora_eval._errors import AutoLoRAEvalError, first_line
from autolora_eval._files import Json
from autolora_eval._progress import quiet_libraries
from autolora_eval.runs.images import ImageError, Picture, read_picture, reduced
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judge import Reply, Request
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
from autolora_eval.sources.identity import identity
from autolora_eval.sources.model_source import LOADING_ERRORS, Source, loading_options, unloadable


@dataclass(frozen=True)
class _Prompt:
    """A request with its opened image."""

    request: Request
    image: Image.Image
    file: Picture


class TransformersJudge:
    """A vision-language model run by transformers, loaded at the first question."""

    def __init__(
        self, spec: JudgeConfig, source: Source, device: torch.device | str, rubric: Rubric
    ) -> None:
        self.spec, self.source, self.rubric = spec, source, rubric
        self.device = torch.device(device)
        # Vision-language models are published in bfloat16; float16 can overflow in them.
        on_cuda = spec.dtype == "auto" and self.device.type == "cuda"
        name = choose_dtype("bfloat16" if on_cuda else spec.dtype, self.device.type)
        self.dtype: torch.dtype = getattr(torch, name)
        self._model: Any = None

    def identity(self) -> Json:
        """Return model, precision, constraint and sampling, without loading the weights.

        Raises:
            AutoLoRAEvalError: if the model is not available, or does not support the constraint
                that the benchmark asks for.
        """
        sampled = self.spec.temperature > 0
        return {
            "backend": "transformers",
            "identity": identity(self.source),
            "dtype": str(self.dtype).removeprefix("torch."),
            "constraint": "regex" if isinstance(self._grammar, Grammar) else "plain",
            "temperature": self.spec.temperature,
            "sampling": "gumbel-max" if sampled else "greedy",
            "max_tokens": self.spec.max_tokens,
            "batch_size": self.spec.batch_size,
            # With torchvision, many families use another one, whose pixels differ slightly.
            "image_processor": type(self._image_processor).__name__,
            "seed": self.spec.seed if sampled else None,
            # Of the allowed tokens, as on vLLM.
            "logprobs": "constrained" if self.spec.logprobs else None,
        }

    def facts(self) -> Json:
        """Return the image size of the processor, and why replies are not constrained."""
        known = dict(getattr(self._image_processor, "size", None) or {})
        facts: Json = {"image_size": {key: known[key] for key in known if known[key] is not None}}
        is_plain = isinstance(self._grammar, str)
        return facts | ({"plain_because": self._grammar} if is_plain else {})

    def replies(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Yield requests with their replies, one batch at a time, in order.

        An image that cannot be opened, or a question that is too long for the model, yields a
        reply with a reason and does not affect the rest of the batch.

        Raises:
            AutoLoRAEvalError: if the model cannot be loaded or run.
        """
        waiting = iter(requests)
        while batch := list(itertools.islice(waiting, self.spec.batch_size)):
            yield list(zip(batch, self._answers(batch), strict=True))

    def close(self) -> None:
        """Release the model's memory."""
        self._model = None
        free_memory()

    def _answers(self, requests: Sequence[Request]) -> list[Reply]:
        opened = [_open(request) for request in requests]
        prompts = [one for one in opened if isinstance(one, _Prompt)]
        with quiet_libraries():
            if prompts:
                self._load()
            start = time.monotonic()
            replies = iter(self._complete(prompts) if prompts else [])
        seconds = (time.monotonic() - start) / len(requests)
        return [
            self._failed(one)
            if isinstance(one, str)
            else replace(next(replies), latency=seconds, sent=one.file.facts())
            for one in opened
        ]

    def _failed(self, reason: str) -> Reply:
        return Reply(None, reason, False, self.source.name, 0.0)

    def _complete(self, prompts: Sequence[_Prompt]) -> list[Reply]:
        """Return the model's reply to each prompt, without latency.

        A prompt that the model cannot process fails its whole batch, which is halved until the
        prompt is alone.
        """
        try:
            return list(self._generate(prompts))
        except (ValueError, IndexError):
            if len(prompts) == 1:
                return [self._failed("bad_request")]
        except RuntimeError as error:
            require_gpu(f"the judge '{self.source.name}'", error)
            if not is_out_of_memory(error):
                raise
            raise AutoLoRAEvalError(
                f"the judge '{self.source.name}' ran out of memory on {self.device} with "
                f"judge.batch_size {self.spec.batch_size}. The judgements so far are "
                "kept: lower it, and run the same command again to continue."
            ) from error
        half = len(prompts) // 2
        return self._complete(prompts[:half]) + self._complete(prompts[half:])

    def _generate(self, prompts: Sequence[_Prompt]) -> list[Reply]:
        """Process one batch.

        Short batches are filled up to `batch_size`, since the last bits of the logits may depend
        on the size of the batch.

        Raises:
            ValueError: if the model cannot process one of the prompts.
        """
        from transformers import LogitsProcessorList

        rows = [*prompts, *[prompts[-1]] * (self.spec.batch_size - len(prompts))]
        inputs = self._inputs([conversation(row.request.question, row.image) for row in rows])
        recorder = LogprobRecorder() if self.spec.logprobs else None
        generated = self._run(inputs, LogitsProcessorList(self._processors(rows, recorder)))
        logprobs = [[] for _ in rows] if recorder is None else recorder.logprobs(generated)
        replies = generated[: len(prompts), inputs["input_ids"].shape[1] :].tolist()
        return [self._decode(*reply) for reply in zip(replies, logprobs, strict=False)]

    def _processors(
        self, rows: Sequence[_Prompt], recorder: LogprobRecorder | None
    ) -> Iterator[Any]:
        """Yield the logits processors that constrain, record and sample a batch, as vLLM does."""
        if isinstance(self._grammar, Grammar):
            yield RegexLogitsProcessor(self._grammar)
        if recorder is not None:
            yield recorder
        if self.spec.temperature > 0:
            seeds = [
                row_seed(self.spec.seed + row.request.repeat, row.file.data, row.request.question)
                for row in rows
            ]
            yield GumbelNoise(seeds, self.spec.temperature)

    def _inputs(self, conversations: list[list[Json]]) -> Any:  # noqa: ANN401
        """Return the tokens and pixels of a batch.

        Raises:
            ValueError: if the processor rejects a question, or it is too long for the model.
        """
        inputs = self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        longest = int(inputs["attention_mask"].sum(1).max()) + self._max_tokens
        if self._context is not None and longest > self._context:
            raise ValueError(f"{longest} tokens with the reply; the limit is {self._context}")
        return inputs.to(self.device, self.dtype)

    @property
    def _context(self) -> int | None:
        """The number of tokens that the model can take, with the reply."""
        config = self._model.config.get_text_config()
        limit: int | None = getattr(config, "max_position_embeddings", None)
        return limit

    @property
    def _max_tokens(self) -> int:
        """The limit of a reply: at most half of the context, whatever the question."""
        limit = self.spec.max_tokens
        return limit if self._context is None else min(limit, self._context // 2)

    @torch.no_grad()
    def _run(self, inputs: Any, processors: Any, max_tokens: int | None = None) -> torch.Tensor:  # noqa: ANN401
        """Return questions and replies as tokens, int64 [batch, length]."""
        generated: torch.Tensor = self._model.generate(
            **inputs,
            max_new_tokens=max_tokens or self._max_tokens,
            logits_processor=processors,
        )
        return generated

    def _decode(self, reply: list[int], logprobs: list[dict[int, float]]) -> Reply:
        """Decode the tokens of one reply.

        Args:
            reply: token ids, with padding after the end token.
            logprobs: log-probability by token id for each position; empty if not requested.
        """
        length = next((n for n, token in enumerate(reply) if token in self._ends), len(reply))
        # Without clean-up: some tokenizers would remove blanks before commas.
        text = self._tokenizer.decode(
            reply[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        tokens = self._token_texts.tokens(reply[:length], logprobs, text) if logprobs else ()
        truncated = length == len(reply)
        return Reply(text, None, truncated, self.source.name, 0.0, tokens=tokens)

    @cached_property
    def _token_texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer)

    @property
    def _image_processor(self) -> Any:  # noqa: ANN401
        return getattr(self._processor, "image_processor", None)

    @property
    def _tokenizer(self) -> Any:  # noqa: ANN401
        return self._processor.tokenizer

    @cached_property
    def _processor(self) -> Any:  # noqa: ANN401
        """Converts conversations to tokens and pixels."""
        from transformers import AutoProcessor

        location, options = self.source.location, loading_options(self.source)
        with quiet_libraries(), self._explained():
            processor = AutoProcessor.from_pretrained(location, **options)
            processor.tokenizer.padding_side = "left"
        return processor

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The tokens that end a reply, from the generation config or the tokenizer."""
        from transformers import AutoConfig, GenerationConfig

        location, options = self.source.location, loading_options(self.source)
        with quiet_libraries(), self._explained():
            try:
                settings = GenerationConfig.from_pretrained(location, **options)
            except OSError:
                config = AutoConfig.from_pretrained(location, **options)
                settings = GenerationConfig.from_model_config(config)
            ends = settings.eos_token_id
            ends = self._tokenizer.eos_token_id if ends is None else ends
            if ends is None:
                raise ValueError("neither its generation config nor its tokenizer has an end token")
        return tuple(ends if isinstance(ends, list) else [ends])

    @cached_property
    def _grammar(self) -> Grammar | str:
        """The constraint on replies, or the reason why there is none."""
        if self.spec.constraint == "plain":
            return "the benchmark says so"
        try:
            return Grammar(reply_pattern(self.rubric), self._tokenizer, self._ends)
        except UnsupportedConstraintError as error:
            if self.spec.constraint == "auto":
                return str(error)
            raise AutoLoRAEvalError(
                f"the replies of the judge '{self.source.name}' cannot be constrained by a regular "
                f"expression: {error}. Fix that, or set judge.constraint to 'plain'."
            ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except LOADING_ERRORS as error:
            raise unloadable("judge", self.source, error) from error

    def check(self, size: tuple[int, int]) -> None:
        """Load the model, and ask about grey images: a whole batch on a GPU, up to two on a CPU.

        The images have the given width and height.

        Raises:
            AutoLoRAEvalError: if the judge cannot be loaded or run.
        """
        with quiet_libraries():
            rows = self.spec.batch_size
            self._load(size, min(rows, 2) if self.device.type == "cpu" else rows)

    def _load(self, size: tuple[int, int] = (64, 64), rows: int = 1) -> None:
        """Load the model once, and check that it can answer questions about images."""
        if self._model is not None:
            return
        _ = self._processor, self._ends, self._grammar  # before the weights, which take minutes
        model = self._pretrained()
        try:
            self._model = model.to(self.device).eval()
            grey = Image.new("RGB", size, (128, 128, 128))
            asked = conversation(self.rubric.question("a"), grey)
            self._run(self._inputs([asked] * rows), None, max_tokens=1)
        except Exception as error:
            self.close()
            raise AutoLoRAEvalError(
                f"the judge '{self.source.name}' cannot answer a question about an image on "
                f"{self.device} ({type(error).__name__}: {first_line(error)}). It needs a chat "
                "template with images, a context long enough for the rubric and judge.max_tokens, "
                f"and enough memory for judge.batch_size {self.spec.batch_size}."
            ) from error

    def _pretrained(self) -> Any:  # noqa: ANN401
        """Return the model with a neutral generation config."""
        from transformers import AutoModelForImageTextToText, GenerationConfig

        with self._explained():
            model = AutoModelForImageTextToText.from_pretrained(
                self.source.location,
                dtype=self.dtype,
                use_safetensors=True,
                **loading_options(self.source),
            )
        # Not the model's own generation config: a repetition penalty, for example, biases scores.
        pad = self._tokenizer.pad_token_id
        model.generation_config = GenerationConfig(
            eos_token_id=list(self._ends), pad_token_id=self._ends[0] if pad is None else pad
        )
        return model


def conversation(question: Question, image: Image.Image) -> list[Json]:
    """Return a question as a chat of one message."""
    return [{"role": "user", "content": question.parts({"type": "image", "image": image})}]


def _open(request: Request) -> _Prompt | str:
    """Return a request with its image, or the reason why the image cannot be opened."""
    try:
        file, image = read_picture(request.image)
    except ImageError as error:
        return str(error)
    return _Prompt(request, reduced(image), file)
