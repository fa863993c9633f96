"""What a guider may change on a denoiser: taken down before it, compared or put back after it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any, Self

import torch

from autolora_eval.guidance.adapters import adapter_layers

_ABSENT = object()
# By attribute of a module, what a difference in it is called.
_ATTRIBUTES = {
    "processor": "attention processor",
    "_disable_adapters": "LoRA switched on or off",
    "_active_adapter": "active LoRA",
    "scaling": "LoRA scale",
    "merged_adapters": "LoRA merged into the weights",
    "training": "training mode",
}
_TABLES = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_modules": "replaced layer",
    "_parameters": "replaced weight",
    "_buffers": "replaced buffer",
}
# What torch keeps of every module is in the tables above, or nothing to a prediction.
_TREATED_APART = frozenset(
    {*torch.nn.Module().__dict__, "forward", "_diffusers_hook", "merge"} - {"training"}
)
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_MAPS = (dict, OrderedDict)
_CONTAINERS = frozenset((list, tuple, set, *_MAPS))


@dataclass(frozen=True)
class _ModuleState:
    """One layer: its own attributes, its hooks of torch and of diffusers, its forward method.

    Attributes are kept as the objects that they are; `contents` is a copy of what containers hold.
    """

    name: str
    module: torch.nn.Module
    forward: Any
    own_forward: Any
    attributes: Mapping[str, Any]
    contents: Mapping[str, Any]
    tables: Mapping[str, Mapping[Any, Any]]
    registry: Any
    registered: tuple[dict[str, Any], list[str], list[Any]]

    @classmethod
    def of(cls, name: str, module: torch.nn.Module) -> Self:
        own = module.__dict__
        registry = own.get("_diffusers_hook", _ABSENT)
        attributes = {key: value for key, value in own.items() if key not in _TREATED_APART}
        return cls(
            name,
            module,
            module.forward,
            own.get("forward", _ABSENT),
            attributes,
            {k: _copied(v) for k, v in attributes.items() if type(v) in _CONTAINERS},
            {key: dict(own[key]) for key in _TABLES},
            registry,
            _registered(registry),
        )

    def changed(self) -> dict[str, Any]:
        """Return the attributes that are not as they were, as they are now; tensors are caches."""
        own, before, contents = self.module.__dict__, self.attributes, self.contents
        found = dict.fromkeys(before.keys() - own.keys(), _ABSENT)
        for key, value in own.items():
            if key in _TREATED_APART:
                continue
            kept = before.get(key, _ABSENT)
            if (value is not kept or key in contents) and not (
                _same(value, contents.get(key, kept)) or isinstance(value, torch.Tensor)
            ):
                found[key] = value
        return found

    def rebuilt(self) -> Iterator[str]:
        """Return in words what has another structure: hooks, forward methods, layers, weights."""
        own = self.module.__dict__
        order = _registered(own.get("_diffusers_hook", _ABSENT))[1]
        if order != self.registered[1]:
            left = [name for name in order if name not in self.registered[1]]
            yield f"hook {', '.join(left)} of diffusers"
        elif self.module.forward != self.forward:
            yield "another forward method"
        for key, called in _TABLES.items():
            if not _same_entries(self.tables[key], own[key]):
                yield called

    def differences(self) -> Iterator[str]:
        at = f"'{self.name}'" if self.name else "the denoiser"
        for what in self.rebuilt():
            yield f"{what} on {at}"
        for key in self.changed():
            yield f"{_ATTRIBUTES.get(key, f'attribute {key!r}')} on {at}"

    def restore(self) -> None:
        own = self.module.__dict__
        for key, table in self.tables.items():
            if not _same_entries(table, own[key]):
                own[key].clear()
                own[key].update(table)
        for key in self.changed():
            found = self.attributes.get(key, _ABSENT)
            _refill(found, self.contents.get(key))
            _put(own, key, found)
        _put(own, "_diffusers_hook", self.registry)
        if self.registry is not _ABSENT:
            hooks, order, references = self.registered
            self.registry.hooks, self.registry._hook_order = dict(hooks), list(order)
            self.registry._fn_refs = list(references)
        _put(own, "forward", self.own_forward)


@dataclass(frozen=True)
class _TensorState:
    """One weight: its memory, which another dtype or a merged LoRA replaces, and maybe a copy."""

    name: str
    live: torch.Tensor
    data: torch.Tensor
    copy: torch.Tensor | None

    def is_changed(self) -> bool:
        if (self.live.dtype, self.live.shape) != (self.data.dtype, self.data.shape):
            return True
        return self.copy is not None and not torch.equal(self.live.data, self.copy)

    def restore(self) -> None:
        if self.live.data_ptr() != self.data.data_ptr() or self.live.dtype != self.data.dtype:
            self.live.data = self.data
        if self.copy is not None and not torch.equal(self.data, self.copy):
            self.data.copy_(self.copy)


class DenoiserState:
    """How a denoiser was found: hooks, forward methods, layers, attributes of layers, LoRA.

    Args:
        denoiser: the network.
        weights: also keep a copy of every weight. Without it a change in place goes unseen.
    """

    def __init__(self, denoiser: torch.nn.Module, *, weights: bool = False) -> None:
        self._layers = [_ModuleState.of(*named) for named in denoiser.named_modules()]
        tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
        self._weights = [
            _TensorState(name, live, live.data, live.detach().clone() if weights else None)
            for name, live in tensors.items()
            if type(live) in (torch.Tensor, torch.nn.Parameter)
        ]

    def differences(self) -> list[str]:
        """Return what is not as it was found, in words; empty if all is."""
        found = [words for layer in self._layers for words in layer.differences()]
        return found + [f"changed weights of '{w.name}'" for w in self._weights if w.is_changed()]

    def settings(self) -> frozenset[str] | None:
        """Return what plain values differ, as a key for the network that it makes of this one.

        None if anything else differs: then what the network computes cannot be told by a key.
        """
        found: set[str] = set()
        for layer in self._layers:
            values = layer.changed()
            plain = all(type(value) in _SCALARS for value in values.values())
            if not plain or next(layer.rebuilt(), None) is not None:
                return None
            found.update(f"{layer.name}.{key}={value!r}" for key, value in values.items())
        return None if any(w.is_changed() for w in self._weights) else frozenset(found)

    def restore(self) -> None:
        """Put everything back as it was found."""
        for layer in self._layers:
            layer.restore()
        with torch.no_grad():
            for weight in self._weights:
                weight.restore()


@contextmanager
def restored(denoiser: torch.nn.Module, *, weights: bool = False) -> Iterator[DenoiserState]:
    """Run a block, and put the denoiser back as it was found, whatever the block does.

    A LoRA that the block merges is merged into a copy of its layer's weights, so that they can be
    put back to the bit without one of every weight: peft's own way back leaves rounding errors.
    """
    with _merging_into_copies(denoiser):
        state = DenoiserState(denoiser, weights=weights)
        try:
            yield state
        finally:
            state.restore()


@contextmanager
def _merging_into_copies(denoiser: torch.nn.Module) -> Iterator[None]:
    layers: list[Any] = list(adapter_layers(denoiser))
    found = [(layer, layer.__dict__.get("merge", _ABSENT)) for layer in layers]
    for layer in layers:
        layer.merge = partial(_merge_into_a_copy, layer, layer.merge)
    try:
        yield
    finally:
        for layer, own in found:
            _put(layer.__dict__, "merge", own)


def _merge_into_a_copy(layer: Any, merge: Callable[..., None], *args: Any, **options: Any) -> None:  # noqa: ANN401
    for weight in layer.get_base_layer().parameters(recurse=False):
        weight.data = weight.data.clone()
    merge(*args, **options)


def _registered(registry: Any) -> tuple[dict[str, Any], list[str], list[Any]]:  # noqa: ANN401
    """Return the hooks that diffusers has on a layer, their order, and what they stand before."""
    if registry is _ABSENT:
        return {}, [], []
    return dict(registry.hooks), list(registry._hook_order), list(registry._fn_refs)


def _copied(value: Any) -> Any:  # noqa: ANN401
    """Return a copy of a container and of those in it; anything else as it is."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(map(_copied, value))
    if kind in _MAPS:
        return kind((key, _copied(item)) for key, item in value.items())
    return set(value) if kind is set else value


def _refill(live: Any, kept: Any) -> None:  # noqa: ANN401
    """Give a container back what it held; layers that share it go on sharing it."""
    if type(live) is list:
        live[:] = _copied(kept)
    elif type(live) in (*_MAPS, set):
        live.clear()
        live.update(_copied(kept))


def _same(a: Any, b: Any) -> bool:  # noqa: ANN401
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if kind in _MAPS:
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if kind in _SCALARS or kind is set:
        return bool(a == b) or a != a
    return False


def _same_entries(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> bool:
    if not before or not after:
        return len(before) == len(after)
    return list(before) == list(after) and all(map(is_, before.values(), after.values()))


def _put(attributes: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401
    if value is _ABSENT:
        attributes.pop(key, None)
    else:
        attributes[key] = value
