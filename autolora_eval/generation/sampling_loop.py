"""What a batch puts in place of parts of diffusers' denoising loop.

The loop takes prompt embeddings that are made already, draws each image's noise from the image's
own generator, and tells the guider true steps. What the guider returns is checked, and so are the
images: those of a broken guider look like any other. Samplers share its global seed and errors.

Named defects are those of diffusers 0.42 in
https://github.com/huggingface/diffusers/tree/v0.42.1/src/diffusers.
"""

from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ModularPipeline
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import PipelineState
from PIL import Image

from autolora_eval._devices import restored_generators
from autolora_eval.plugins.third_party import third_party_frame
from autolora_eval.runs.images import single_colour

REASON_LENGTH = 200  # characters kept of the reason of a failure
_BLOCK = "text_encoder"
# The outputs of a pipeline's text-encoder block, by name.
Embeddings = dict[str, Any]


class PromptEmbeddings:
    """Encodes each prompt once, with the text-encoder block of a pipeline.

    A prompt is encoded in a batch of copies of itself, so that its embedding has the same bits in
    any batch of that size. The embeddings are kept on the CPU.

    Args:
        pipe: the pipeline.
        clip_skip: layers of the CLIP encoders to skip; None for the pipeline's own choice.
    """

    def __init__(self, pipe: ModularPipeline, clip_skip: int | None = None) -> None:
        self._pipe, self._clip_skip = pipe, clip_skip
        self._block = pipe._blocks.sub_blocks[_BLOCK]
        self._rows: dict[object, Embeddings] = {}
        self._first: dict[object, Embeddings] = {}  # by negative prompt

    def batch(self, prompts: Sequence[str], null: Sequence[str], state: object) -> Embeddings:
        """Return the embeddings of a batch, on the device of the pipeline.

        Args:
            prompts: one per image.
            null: the negative prompt of each image.
            state: what else decides an embedding: the scale of the LoRA on the text encoders.
        """
        size = len(prompts)
        rows = []
        for pair in zip(prompts, null, strict=True):
            key = (pair, size, state)
            if key not in self._rows:
                row = self._encode(*pair, size)
                # The embedding of the negative prompt is the same beside every prompt.
                first = self._first.setdefault(key[1:] + pair[1:], row)
                self._rows[key] = {
                    name: first[name] if _equal(first[name], made) else made
                    for name, made in row.items()
                }
            rows.append(self._rows[key])
        device = self._pipe._execution_device
        return {name: _joined([row[name] for row in rows], device) for name in rows[0]}

    def _encode(self, prompt: str, null: str, size: int) -> Embeddings:
        # A guider of two predictions, so that every block encodes the negative prompt too.
        self._pipe.update_components(guider=ClassifierFreeGuidance())
        state = PipelineState()
        # Lists of its own: Z-Image's block writes its chat template into them
        # (modular_pipelines/z_image/encoders.py).
        state.set("prompt", [prompt] * size)
        state.set("negative_prompt", [null] * size)
        state.set("clip_skip", self._clip_skip)
        with torch.no_grad():
            self._block(self._pipe, state)
        return {
            output.name: _first(state.get(output.name))
            for output in self._block.intermediate_outputs
        }

    @contextmanager
    def known(self, embeddings: Embeddings) -> Iterator[None]:
        """Make the pipeline take embeddings in place of encoding prompts, within the block."""
        blocks = self._pipe._blocks.sub_blocks
        blocks[_BLOCK] = _Encoded(self._block, embeddings)
        try:
            yield
        finally:
            blocks[_BLOCK] = self._block


class _Encoded:
    """Stands for a text-encoder block whose outputs are known."""

    def __init__(self, block: Any, embeddings: Embeddings) -> None:  # noqa: ANN401
        self._block, self._embeddings = block, embeddings

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._block, name)

    def __call__(self, pipe: ModularPipeline, state: PipelineState) -> tuple[Any, PipelineState]:
        for output in self._block.intermediate_outputs:
            state.set(output.name, self._embeddings[output.name], output.kwargs_type)
        return pipe, state


def _first(made: Any) -> Any:  # noqa: ANN401
    """Return the first row of an output, on the CPU: of a tensor [B, …] or of a list of tensors."""
    if made is None:
        return None
    row = made[0] if isinstance(made, list) else made[:1]
    row = row.to("cpu", copy=True)  # on the CPU it would refer to the whole batch
    return [row] if isinstance(made, list) else row


def _equal(a: Any, b: Any) -> bool:  # noqa: ANN401
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(torch.equal, a, b))
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _joined(rows: Sequence[Any], device: torch.device) -> Any:  # noqa: ANN401
    """Return the rows as one output; short ones are filled up with zeros, as the blocks do."""
    if rows[0] is None:
        return None
    if isinstance(rows[0], list):
        return [tensor.to(device, copy=True) for row in rows for tensor in row]
    longest = max(row.shape[1] for row in rows)
    padded = torch.zeros((len(rows), longest, *rows[0].shape[2:]), dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: row.shape[1]] = row[0]
    return padded.to(device)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python; restore them after the block.

    Otherwise images of third-party code that draws from them would depend on earlier images. The
    working directory is restored too.
    """
    with chdir("."), restored_generators():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def own_noise(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:  # noqa: ANN401
    """Let a scheduler draw each image's noise from the image's own generator.

    The loops of SD3, Qwen-Image and Z-Image give the scheduler no generator, so that it would draw
    from the global one (modular_pipelines/stable_diffusion_3/denoise.py).
    """
    step = scheduler.step
    if "generator" in inspect.signature(step).parameters:
        scheduler.step = partial(step, generator=generators)
    try:
        yield
    finally:
        scheduler.step = step


def tell_steps(guider: BaseGuidance, scheduler: Any) -> None:  # noqa: ANN401
    """Let a guider see denoising steps if the scheduler takes several timesteps for one.

    The loops count timesteps, of which Heun has 2N - 1, but tell the guider that there are N, so
    that its interval would end halfway (modular_pipelines/stable_diffusion_xl/denoise.py).
    """
    set_state = guider.set_state

    def set_steps(step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        now = step * num_inference_steps // len(scheduler.timesteps)
        set_state(step=now, num_inference_steps=num_inference_steps, timestep=timestep)

    guider.set_state = set_steps


class UnusablePredictionError(Exception):
    """The guider returned an unusable prediction."""


class UnusableImageError(Exception):
    """An image cannot be measured: it is of another kind or size, or it shows nothing.

    Args:
        problem: what is wrong with it.
        problems: what is wrong with each such image of a batch, by its index.
    """

    def __init__(self, problem: str, problems: Mapping[int, str] | None = None) -> None:
        super().__init__(problem)
        self.problems = problems or {0: problem}


def checked_images(decoded: npt.NDArray[np.floating[Any]]) -> list[Image.Image]:
    """Return decoded images as RGB.

    Args:
        decoded: [B, H, W, 3] from 0 to 1, as a pipeline returns them.

    Raises:
        UnusableImageError: if an image has NaN, which a conversion to 8 bits would make black, or
            a single colour.
    """
    images: list[Image.Image] = []
    problems: dict[int, str] = {}
    for index, values in enumerate(decoded):
        if not np.isfinite(values).all():
            problems[index] = "has NaN after decoding"
            continue
        images += VaeImageProcessor.numpy_to_pil(values)
        if colour := single_colour(images[-1]):
            problems[index] = "has a single colour, RGB {} {} {}".format(*colour)
    if problems:
        raise UnusableImageError(next(iter(problems.values())), problems)
    return images


class PredictionCheck:
    """Replaces a guider's `forward` and checks what it returns.

    Args:
        guider: a fresh guider, which is not used again.
    """

    def __init__(self, guider: BaseGuidance) -> None:
        self._forward = guider.forward
        self._finite: list[torch.Tensor] = []
        guider.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the guider makes of the denoiser's predictions.

        Raises:
            UnusablePredictionError: if `forward` returned no tensor, or one of another shape.
        """
        output = self._forward(*args, **kwargs)
        prediction = getattr(output, "pred", None)
        # Pipelines read output[0]. If a guider returns a bare tensor, that is its first image.
        if not isinstance(prediction, torch.Tensor) or output[0] is not prediction:
            raise UnusablePredictionError(
                f"forward returned a {type(output).__name__}: expected GuiderOutput(pred=…)"
            )
        parts = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        if parts and prediction.shape != parts[0].shape:
            got, wanted = list(prediction.shape), list(parts[0].shape)
            raise UnusablePredictionError(
                f"it returned a prediction of shape {got} for predictions of shape {wanted}"
            )
        self._finite.append(prediction.isfinite().all())
        return output

    def require_finite(self) -> None:
        """Check the predictions of all steps.

        They are checked together at the end, because each check on a GPU waits for all kernels
        in flight.

        Raises:
            UnusablePredictionError: if a prediction is NaN or infinite.
        """
        steps = [number for number, finite in enumerate(self._finite) if not finite]
        if steps:
            raise UnusablePredictionError(
                f"the prediction is NaN or infinite at step {steps[0]} of {len(self._finite)}"
            )


def failure_reason(error: BaseException) -> str:
    """Return one line on an error of third-party code: type, message, and the line of that code."""
    if isinstance(error, UnusableImageError):
        return f"the sampler {error}"[:REASON_LENGTH]
    frame = third_party_frame(error) or traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    location = f" ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {message}"[: REASON_LENGTH - len(location)] + location
