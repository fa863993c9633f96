"""The judge in this process: any image-text-to-text model of `transformers`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from autolora_eval.benchmark.schema import Judge as JudgeSpec
from autolora_eval.benchmark.sources import Source
from autolora_eval.devices import choose_dtype
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json
from autolora_eval.identity import identity
from autolora_eval.images import ImageError, open_image
from autolora_eval.libraries import quiet_libraries
from autolora_eval.rubric import Question
from autolora_eval.scoring.judges.base import Reply, Request


class TransformersJudge:
    """A vision-language model run by `transformers`, loaded at the first question.

    Args:
        spec: the benchmark's `judge`.
        source: where the model is.
        device: where it runs.
    """

    def __init__(self, spec: JudgeSpec, source: Source, device: torch.device) -> None:
        self.spec, self.source, self.device = spec, source, device
        # Vision-language models are published in bfloat16; float16 can overflow in them.
        on_cuda = spec.dtype == "auto" and device.type == "cuda"
        self.dtype = choose_dtype("bfloat16" if on_cuda else spec.dtype, device)
        self._loaded: tuple[Any, Any] | None = None

    @property
    def batch_size(self) -> int:
        """Images a forward pass."""
        return self.spec.batch_size

    def identity(self) -> Json:
        """Return model, precision and sampling parameters."""
        return {
            "backend": "transformers",
            "identity": identity(self.source),
            "dtype": str(self.dtype).removeprefix("torch."),
            "temperature": self.spec.temperature,
            "max_tokens": self.spec.max_tokens,
            "batch_size": self.spec.batch_size,
            "seed": self.spec.seed if self.spec.temperature else None,
        }

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply a request; an image that cannot be opened is a reply with a reason."""
        start = time.monotonic()
        images: list[Image.Image | str] = []
        for request in requests:
            try:
                images.append(open_image(request.image))
            except ImageError as error:
                images.append(str(error))
        conversations = [
            conversation(request.question, image)
            for request, image in zip(requests, images, strict=True)
            if not isinstance(image, str)
        ]
        with quiet_libraries():
            texts = iter(self._generate(conversations) if conversations else [])
        seconds = (time.monotonic() - start) / len(requests)
        name = self.source.reference
        replies = []
        for image in images:
            if isinstance(image, str):
                replies.append(Reply(None, image, False, name, 0.0))
            else:
                text, truncated = next(texts)
                replies.append(Reply(text, None, truncated, name, seconds))
        return replies

    @torch.no_grad()
    def _generate(self, conversations: list[list[Json]]) -> list[tuple[str, bool]]:
        """Return (reply, whether it ran into the token limit) for each conversation.

        A short batch is filled up, so that a reply's last bits do not depend on what is missing
        beside it.
        """
        model, processor = self._model()
        copies = [conversations[-1]] * (self.batch_size - len(conversations))
        inputs = processor.apply_chat_template(
            [*conversations, *copies],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device, self.dtype)
        sampling: Json = {"do_sample": False}
        if self.spec.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.spec.temperature}
            torch.manual_seed(self.spec.seed)
        made = model.generate(**inputs, max_new_tokens=self.spec.max_tokens, **sampling)
        replies = made[: len(conversations), inputs["input_ids"].shape[1] :]
        ends = _end_tokens(model)
        texts = processor.batch_decode(replies, skip_special_tokens=True)
        truncated = [
            reply.shape[0] >= self.spec.max_tokens and not ends & set(reply.tolist())
            for reply in replies
        ]
        return list(zip(texts, truncated, strict=True))

    def _model(self) -> tuple[Any, Any]:
        """Load model and processor once."""
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            options = {"revision": self.source.revision} if self.source.revision else {}
            try:
                processor = AutoProcessor.from_pretrained(self.source.location, **options)
                model = AutoModelForImageTextToText.from_pretrained(
                    self.source.location, dtype=self.dtype, use_safetensors=True, **options
                )
            except (OSError, ValueError) as error:
                raise AutoLoRAEvalError(
                    f"the judge '{self.source.reference}' cannot be loaded: {str(error)[:400]}"
                ) from error
            processor.tokenizer.padding_side = "left"
            self._loaded = (model.to(self.device).eval(), processor)
        return self._loaded


def conversation(question: Question, image: Image.Image) -> list[Json]:
    """Return a question as a chat: text, image, text; empty texts are left out."""
    parts: list[Json] = [{"type": "image", "image": image}]
    if question.before:
        parts.insert(0, {"type": "text", "text": question.before})
    if question.after:
        parts.append({"type": "text", "text": question.after})
    return [{"role": "user", "content": parts}]


def _end_tokens(model: Any) -> set[int]:  # noqa: ANN401
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])
