"""Embeddings of prompts: each prompt is encoded once for all images of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import PipelineState

_BLOCK = "text_encoder"
# The outputs of a pipeline's text-encoder block, by name.
Embeddings = dict[str, Any]


class PromptEmbeddings:
    """Encodes prompts with the text-encoder block of a pipeline, and keeps what it makes.

    A prompt is encoded in a batch of copies of itself: so its embedding has the bits that it has
    in any batch of that size, and does not depend on its neighbours. The embeddings are kept on
    the CPU.

    Args:
        pipe: the pipeline.
        clip_skip: layers of the CLIP encoders to skip; None for the pipeline's own choice.
    """

    def __init__(self, pipe: ModularPipeline, clip_skip: int | None = None) -> None:
        self._pipe, self._clip_skip = pipe, clip_skip
        self._block = pipe._blocks.sub_blocks[_BLOCK]
        self._rows: dict[object, Embeddings] = {}

    def batch(self, prompts: Sequence[str], null: Sequence[str], state: object) -> Embeddings:
        """Return the embeddings of a batch, on the device of the pipeline.

        Args:
            prompts: one per image.
            null: the null or negative prompt of each image.
            state: what else decides an embedding: the scale of the LoRA on the text encoders.
        """
        size = len(prompts)
        rows = []
        for pair in zip(prompts, null, strict=True):
            key = (pair, size, state)
            if key not in self._rows:
                self._rows[key] = self._encode(*pair, size)
            rows.append(self._rows[key])
        device = self._pipe._execution_device
        return {name: _joined([row[name] for row in rows], device) for name in rows[0]}

    def _encode(self, prompt: str, null: str, size: int) -> Embeddings:
        # A guider of two predictions, for which every block encodes the null prompt too.
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
    return [made[0].cpu()] if isinstance(made, list) else made[:1].cpu()


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
