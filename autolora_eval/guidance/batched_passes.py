"""Predictions of one step in one denoiser pass, where no guider code can tell the difference.

The loops of Modular Diffusers make a pass for each prediction of a guider, one after the other,
where the standard pipelines stack the conditional and the null rows
(https://github.com/huggingface/diffusers/tree/v0.42.1/src/diffusers/modular_pipelines).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers.guiders import BaseGuidance

from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.denoiser_state import AdapterSwitch, can_mix

_METHODS = ("prepare_models", "cleanup_models")
_KINDS = (BaseGuidance, AutoLoRAGuidance)
# A pass's arguments: positional ones and keyword arguments.
_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _NotStackableError(Exception):
    """An argument of a pass that cannot be stacked with that of another prediction."""


@contextmanager
def batched(
    guider: BaseGuidance, denoiser: torch.nn.Module, mix_adapters: bool = False
) -> Iterator[None]:
    """Make predictions that differ in their conditions only in one pass, within the block.

    The loop still asks for one prediction after the other, so hooks on the denoiser count them
    all. The first question is answered by a pass with the rows of all predictions, the others by
    what that pass made. Results differ from those of separate passes by rounding.

    Pipelines whose conditions are lists or differ in length keep separate passes.

    Args:
        guider: a fresh guider that `predicts_independently`. It is not used again.
        denoiser: the network that it acts on.
        mix_adapters: put base and LoRA rows in one pass too, if no LoRA is DoRA.
    """
    before = vars(denoiser).get("forward")
    mixed = AdapterSwitch(denoiser) if mix_adapters and can_mix(denoiser) else None
    passes = _BatchedPasses(guider, denoiser.forward, mixed)

    # Qwen-Image's loop leaves out arguments that are not in the signature, hence `wraps`.
    @functools.wraps(denoiser.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return passes.forward(*args, **kwargs)

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward
        if before is not None:
            denoiser.forward = before
        guider.cleanup_models(denoiser)  # after an exception, a LoRA may still be turned off


def predicts_independently(guider: BaseGuidance) -> bool:
    """Return whether a guider does nothing with the denoiser but switch its LoRAs.

    Its code then runs before and after all predictions of a step, and not between them.
    """
    own = [getattr(getattr(guider, name), "__func__", None) for name in _METHODS]
    return any(own == [vars(kind)[name] for name in _METHODS] for kind in _KINDS)


class _BatchedPasses:
    """The denoiser's `forward`, which knows the predictions that the current step will ask for."""

    def __init__(
        self,
        guider: BaseGuidance,
        forward: Callable[..., Any],
        mixed: AdapterSwitch | None,
    ) -> None:
        self._prepare, self._forward, self._mixed = guider.prepare_inputs, forward, mixed
        self._key = guider._identifier_key
        self._asked: list[Any] = []
        self._is_base: list[bool] = []
        self._made: dict[int, tuple[torch.Tensor, ...]] = {}
        self._next = 0
        guider.prepare_inputs = self.prepare_inputs

    def prepare_inputs(self, data: Any) -> Any:  # noqa: ANN401
        """Prepare the inputs of a step's predictions, and remember them."""
        batches = self._prepare(data)
        self._asked = list(batches) if isinstance(batches, list) else []
        names = [str(getattr(one, self._key, "")) for one in self._asked]
        self._is_base = [name.startswith("base_") for name in names]
        self._made, self._next = {}, 0
        return batches

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the next prediction, made now or with one before it."""
        number, self._next = self._next, self._next + 1
        if number in self._made:
            return self._made.pop(number)
        together = self._together(number)
        if len(together) > 1 and kwargs.get("return_dict") is False:
            inputs = [_fields(self._asked[n]) for n in together]
            try:
                stacked_args, stacked_kwargs = _stacked((args, kwargs), inputs)
            except _NotStackableError:
                return self._forward(*args, **kwargs)
            # AutoLoRA asks for the base predictions first.
            base = sum(self._is_base[n] for n in together)
            size = len(next(iter(inputs[0].values())))
            mixed = self._mixed if 0 < base < len(together) else None
            with mixed.on_from(base * size, len(together) * size) if mixed else nullcontext():
                parts = self._forward(*stacked_args, **stacked_kwargs)
            rows = zip(*(part.chunk(len(together)) for part in parts), strict=True)
            self._made = dict(zip(together, rows, strict=True))
            return self._made.pop(number)
        return self._forward(*args, **kwargs)

    def _together(self, number: int) -> list[int]:
        """Return this prediction and those after it that the same weights make."""
        last = number
        while last < len(self._asked) and (
            self._mixed is not None or self._is_base[last] == self._is_base[number]
        ):
            last += 1
        return list(range(number, last))


def _fields(batch: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def _stacked(call: _Call, inputs: Sequence[dict[str, torch.Tensor]]) -> _Call:
    """Return the arguments of one pass for several predictions.

    Args:
        call: the arguments for the first prediction.
        inputs: what the guider prepared for each prediction, by name. Tensors of the first one are
            found in the call by identity, and stacked with those of the others. All other
            arguments are the same for every prediction, such as the latents.

    Raises:
        _NotStackableError: if that is not possible.
    """
    first = inputs[0]
    images = {len(tensor) for tensor in first.values() if tensor.dim()}
    if len(images) != 1 or any(one.keys() != first.keys() for one in inputs):
        raise _NotStackableError
    size = images.pop()
    found: set[str] = set()

    def stack(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {name: stack(one) for name, one in value.items()}
        if not isinstance(value, torch.Tensor):
            if value is None or isinstance(value, bool | int | float | str):
                return value
            raise _NotStackableError  # a list may have one item an image
        if value.dim() == 0:
            return value
        names = [name for name, tensor in first.items() if tensor is value]
        found.update(names)
        rows = [one[names[0]] for one in inputs] if names else [value] * len(inputs)
        is_ambiguous = any(
            one[n] is not row for n in names for one, row in zip(inputs, rows, strict=True)
        )
        if is_ambiguous or len(value) != size or any(row.shape != value.shape for row in rows):
            raise _NotStackableError
        return torch.cat(rows)

    args, kwargs = call
    stacked = tuple(map(stack, args)), stack(kwargs)
    # A loop may have cast what the guider prepared: then the call holds other tensors.
    differ = {n for n, t in first.items() if any(one[n] is not t for one in inputs)}
    if not differ <= found:
        raise _NotStackableError
    return stacked
