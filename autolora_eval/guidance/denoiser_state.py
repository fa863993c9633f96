"""The state of a denoiser apart from its weights: hooks, LoRA switches, attributes of layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Self

import torch

ABSENT = object()
"""Stands for the value of an attribute that does not exist."""

# torch puts new tensors into this table when it moves a module, as CPU offload does.
_IGNORED = frozenset({"_buffers"})
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (dict, OrderedDict, list, set)


class DenoiserState:
    """Remembers hooks, LoRA switches and attributes of every layer, and can put them back.

    It holds references and shallow copies of containers, but no copy of a weight: remembering an
    11 GB model takes no memory. It does not see a change of a weight's values. In a run,
    `generation.guards.ModelDriftCheck` finds such changes.

    Args:
        denoiser: A UNet or transformer.
    """

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self._objects = [_ObjectState.of(name, item) for name, item in _stateful(denoiser)]

    def changes(self) -> dict[tuple[str, str], Any]:
        """Return what has changed: (layer, attribute) → its value now, `ABSENT` if removed."""
        return {
            (item.layer, name): value
            for item in self._objects
            for name, value in item.changes().items()
        }

    def restore(self) -> None:
        """Put everything back."""
        for item in self._objects:
            item.restore()


@contextmanager
def restored(denoiser: torch.nn.Module) -> Iterator[DenoiserState]:
    """Run a block and put the denoiser's state back afterwards, also if the block raises."""
    state = DenoiserState(denoiser)
    try:
        yield state
    finally:
        state.restore()


@dataclass(frozen=True)
class _ObjectState:
    """The attributes of one layer, or of diffusers' hook registry on it.

    Attributes:
        layer: Name of the layer.
        item: The object.
        attributes: Its attributes.
        contents: Copies of those attributes that are containers.
    """

    layer: str
    item: object
    attributes: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def of(cls, layer: str, item: object) -> Self:
        attributes = dict(vars(item))
        kept = {name: value for name, value in attributes.items() if name not in _IGNORED}
        contents = {n: copy.copy(v) for n, v in kept.items() if type(v) in _CONTAINERS}
        return cls(layer, item, attributes, contents)

    def changes(self) -> dict[str, Any]:
        now = vars(self.item)
        if self._is_unchanged(now):
            return {}
        found: dict[str, Any] = dict.fromkeys(self.attributes.keys() - now.keys(), ABSENT)
        for name, value in now.items():
            before = self.contents.get(name, self.attributes.get(name, ABSENT))
            # A layer may cache a tensor, such as position embeddings, as an attribute.
            if value is before or name in _IGNORED or isinstance(value, torch.Tensor):
                continue
            if not (_same(before, value) or _is_trace_of_removed_hook(self.item, name, value)):
                found[name] = value
        return found

    def _is_unchanged(self, now: dict[str, Any]) -> bool:
        # The common case, much faster than attribute by attribute.
        try:
            return now == self.attributes and all(now[n] == c for n, c in self.contents.items())
        except RuntimeError:  # Two different tensors were compared.
            return False

    def restore(self) -> None:
        own = vars(self.item)
        if self._is_unchanged(own):
            return
        # The containers themselves go back, since others hold references to them: the handle of
        # a torch hook refers to the dictionary that it was registered in.
        for name, kept in self.contents.items():
            container = self.attributes[name]
            if not _same(kept, container):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(kept)
        own.clear()
        own.update(self.attributes)


def _is_trace_of_removed_hook(item: object, name: str, value: Any) -> bool:  # noqa: ANN401
    """Return `True` for what diffusers leaves of a hook that was removed, which has no effect."""
    if name == "_diffusers_hook":
        return not value.hooks
    return name == "forward" and value == getattr(type(item), name).__get__(item)


def _stateful(denoiser: torch.nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in denoiser.named_modules():
        yield name, module
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            yield name, registry


def _same(a: Any, b: Any) -> bool:  # noqa: ANN401
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict | list | set) and not a and not b:
        return True
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(value, b[key]) for key, value in a.items())
    return isinstance(a, (*_SCALARS, set, MethodType)) and bool(a == b)
