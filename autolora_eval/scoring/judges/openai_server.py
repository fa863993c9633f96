"""The judge on a server: vLLM's, or any other that speaks the OpenAI protocol."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from autolora_eval.benchmark.schema import Judge as JudgeSpec
from autolora_eval.devices import require
from autolora_eval.errors import AutoLoRAEvalError
from autolora_eval.files import Json
from autolora_eval.images import ImageError, open_image
from autolora_eval.scoring.judges.base import Reply, Request
from autolora_eval.scoring.rubric import Question

MAX_IMAGE_BYTES = 20_000_000


class OpenAIJudge:
    """A vision-language model behind an OpenAI-compatible server.

    The key is read from the environment and never written.

    Args:
        spec: the benchmark's `judge`.

    Raises:
        AutoLoRAEvalError: the server does not answer, or does not serve the model.
    """

    def __init__(self, spec: JudgeSpec) -> None:
        require("openai", "openai")
        import openai

        self.spec = spec
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=spec.base_url,
            api_key=os.environ.get(spec.api_key_env) or "EMPTY",
            timeout=spec.timeout,
            max_retries=spec.max_retries,
        )

    @property
    def batch_size(self) -> int:
        """Calls at a time."""
        return self.spec.batch_size

    def identity(self) -> Json:
        """Return the model, the address it was reached at (without credentials), and sampling."""
        return {
            "backend": "openai",
            "model": self.spec.model,
            "temperature": self.spec.temperature,
            "max_tokens": self.spec.max_tokens,
            "seed": self.spec.seed,
        }

    def check(self) -> None:
        """Ask the server which models it serves.

        Raises:
            AutoLoRAEvalError: it does not answer, or does not serve the judge's model.
        """
        try:
            client = self._client.with_options(timeout=5.0, max_retries=0)
            served = [model.id for model in client.models.list()]
        except self._openai.OpenAIError as error:
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} does not answer "
                f"({type(error).__name__}). Start one, such as: vllm serve {self.spec.model}; "
                "or set judge.base_url."
            ) from error
        if self.spec.model not in served:
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} serves {', '.join(served)}, "
                f"not '{self.spec.model}'."
            )

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply a request, asked at the same time.

        Raises:
            AutoLoRAEvalError: no call of the batch reached the server: it is gone.
        """
        with ThreadPoolExecutor(max_workers=len(requests)) as pool:
            replies = list(pool.map(self._one, requests))
        if all(reply.reason == "connection" for reply in replies):
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} cannot be reached any more. What it "
                "judged so far is kept: start it again, and run the same command again."
            )
        return replies

    def _one(self, request: Request) -> Reply:
        start = time.monotonic()
        try:
            text, truncated, model = self._call(request)
            reason = "refused" if text is None else None
        except ImageError as error:
            text, truncated, model, reason = None, False, self.spec.model, str(error)
        except self._openai.APITimeoutError:
            text, truncated, model, reason = None, False, self.spec.model, "timeout"
        except self._openai.APIStatusError as error:
            text, truncated, model = None, False, self.spec.model
            reason = f"http_{error.status_code}"
        except (self._openai.OpenAIError, ValueError):
            text, truncated, model, reason = None, False, self.spec.model, "connection"
        return Reply(text, reason, truncated, model, time.monotonic() - start)

    def _call(self, request: Request) -> tuple[str | None, bool, str]:
        """Return (reply, whether it ran into the token limit, the server's name of the model)."""
        completion = self._client.chat.completions.create(
            model=self.spec.model,
            messages=[{"role": "user", "content": content(request.question, _data_url(request))}],  # type: ignore[list-item, misc]
            temperature=self.spec.temperature,
            max_tokens=self.spec.max_tokens,
            seed=self.spec.seed,
        )
        choice = completion.choices[0]
        return choice.message.content, choice.finish_reason == "length", completion.model


def content(question: Question, image_url: str) -> list[Json]:
    """Return a question as the protocol's content parts: text, image, text."""
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": image_url}}]
    if question.before:
        parts.insert(0, {"type": "text", "text": question.before})
    if question.after:
        parts.append({"type": "text", "text": question.after})
    return parts


def _data_url(request: Request) -> str:
    """Return the image's file, byte for byte, as a data URL."""
    image = open_image(request.image)
    data = request.image.read_bytes()
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"too_large ({image.width}×{image.height})")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
