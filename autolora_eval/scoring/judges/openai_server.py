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
from autolora_eval.rubric import Question
from autolora_eval.scoring.judges.base import Reply, Request

MAX_IMAGE_BYTES = 20_000_000


class OpenAIJudge:
    """A vision-language model behind an OpenAI-compatible server.

    The key is read from the environment and never written.

    Args:
        spec: the benchmark's `judge`.

    Raises:
        MissingDependencyError: the package `openai` is not installed.
    """

    def __init__(self, spec: JudgeSpec) -> None:
        require("openai", "openai")
        import openai

        self.spec = spec
        self._openai = openai
        self._checked = False
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
        """Return the model as the server names it, and the sampling parameters."""
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
            served = [str(model.id) for model in client.models.list()]
        except self._openai.APIStatusError as error:
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} answers {error.status_code} when "
                f"asked for its models. If it needs a key, put it into {self.spec.api_key_env}; "
                "check that judge.base_url ends in /v1."
            ) from error
        except self._openai.APIConnectionError as error:
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} does not answer "
                f"({type(error).__name__}). Start one, such as: vllm serve {self.spec.model}; "
                "or set judge.base_url."
            ) from error
        except (self._openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise AutoLoRAEvalError(
                f"what answers at {self.spec.base_url} does not speak the OpenAI protocol. "
                "Check judge.base_url."
            ) from error
        if self.spec.model not in served:
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} serves "
                f"{', '.join(served) or 'nothing'}, not '{self.spec.model}'."
            )
        self._checked = True

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply a request, asked at the same time.

        Raises:
            AutoLoRAEvalError: the server is not there, does not serve the model, or is gone: no
                call of the batch reached it, nor does a question for its models.
        """
        if not self._checked:
            self.check()
        with ThreadPoolExecutor(max_workers=len(requests)) as pool:
            replies = list(pool.map(self._one, requests))
        if all(reply.reason == "connection" for reply in replies):
            self._refuse_if_gone()
        return replies

    def _refuse_if_gone(self) -> None:
        try:
            self.check()
        except AutoLoRAEvalError as error:
            raise AutoLoRAEvalError(
                f"the judge's server at {self.spec.base_url} cannot be reached any more. What it "
                "judged so far is kept: start it again, and run the same command again."
            ) from error

    def _one(self, request: Request) -> Reply:
        start = time.monotonic()
        text, truncated, model = None, False, self.spec.model
        try:
            text, truncated, model = self._call(request)
            reason = None
            if text is None:
                reason = "truncated" if truncated else "refused"
        except ImageError as error:
            reason = str(error)
        except self._openai.APITimeoutError:
            reason = "timeout"
        except self._openai.APIStatusError as error:
            reason = f"http_{error.status_code}"
        except self._openai.APIConnectionError:
            reason = "connection"
        except (self._openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
            reason = "bad_response"  # an answer, but not of this protocol
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
        text = choice.message.content
        if not (text is None or isinstance(text, str)):
            raise TypeError(f"content of type {type(text).__name__}")
        model = str(completion.model or self.spec.model)
        return text, choice.finish_reason == "length", model


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
