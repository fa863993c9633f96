"""What a guider may change on a denoiser: taken down before it, compared or put back after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch

_ABSENT = object()
# By attribute of a module, what a difference in it is called.
_ATTRIBUTES = {
    "processor": "attention processor",
    "_disable_adapters": "LoRA switched on or off",
    "_active_adapter": "active LoRA",
    "scaling": "LoRA scale",
    "training": "training mode",
}
_TABLES = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_modules": "replaced layer",
    "_parameters": "replaced weight",
    "_buffers": "replaced buffer",
}


@dataclass(frozen=True)
class _ModuleState:
    """One layer: its own attributes, its hooks of torch and of diffusers, its forward method."""

    name: str
    module: torch.nn.Module
    forward: Any
    own_forward: Any
    attributes: Mapping[str, Any]
    tables: Mapping[str, Mapping[Any, Any]]
    registry: Any
    registered: tuple[dict[str, Any], list[str], list[Any]]

    @classmethod
    def of(cls, name: str, module: torch.nn.Module) -> Self:
        registry = module.__dict__.get("_diffusers_hook", _ABSENT)
        return cls(
            name,
            module,
            module.forward,
            module.__dict__.get("forward", _ABSENT),
            {key: _copied(module.__dict__.get(key, _ABSENT)) for key in _ATTRIBUTES},
            {key: dict(getattr(module, key)) for key in _TABLES},
            registry,
            _registered(registry),
        )

    def differences(self) -> Iterator[str]:
        now = _ModuleState.of(self.name, self.module)
        at = f"'{self.name}'" if self.name else "the denoiser"
        if now.registered[1] != self.registered[1]:
            left = [name for name in now.registered[1] if name not in self.registered[1]]
            yield f"hook {', '.join(left)} of diffusers on {at}"
        elif now.forward != self.forward:
            yield f"another forward method on {at}"
        for key, called in _TABLES.items():
            if not _same_entries(self.tables[key], now.tables[key]):
                yield f"{called} on {at}"
        for key, called in _ATTRIBUTES.items():
            before, after = self.attributes[key], now.attributes[key]
            if before is not after and not _equal(before, after):
                yield f"{called} on {at}"

    def restore(self) -> None:
        own = self.module.__dict__
        for key, table in self.tables.items():
            live = getattr(self.module, key)
            live.clear()
            live.update(table)
        for key, value in {**self.attributes, "_diffusers_hook": self.registry}.items():
            _put(own, key, _copied(value))
        if self.registry is not _ABSENT:
            hooks, order, references = self.registered
            self.registry.hooks, self.registry._hook_order = dict(hooks), list(order)
            self.registry._fn_refs = list(references)
        _put(own, "forward", self.own_forward)


class DenoiserState:
    """How a denoiser was found: hooks, forward methods, layers, attention processors, LoRA.

    Args:
        denoiser: the network.
        weights: also keep a copy of every weight. Without it a change in place goes unseen.
    """

    def __init__(self, denoiser: torch.nn.Module, *, weights: bool = False) -> None:
        self._layers = [_ModuleState.of(*named) for named in denoiser.named_modules()]
        self._weights = {}
        if weights:
            tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
            self._weights = {k: (t, t.detach().clone()) for k, t in tensors.items()}

    def differences(self) -> list[str]:
        """Return what is not as it was found, in words; empty if all is."""
        found = [words for layer in self._layers for words in layer.differences()]
        changed = [k for k, (live, kept) in self._weights.items() if not torch.equal(live, kept)]
        return found + [f"changed weights of '{name}'" for name in changed]

    def restore(self) -> None:
        """Put everything back as it was found."""
        for layer in self._layers:
            layer.restore()
        with torch.no_grad():
            for live, kept in self._weights.values():
                live.copy_(kept)


@contextmanager
def restored(denoiser: torch.nn.Module, *, weights: bool = False) -> Iterator[DenoiserState]:
    """Run a block, and put the denoiser back as it was found, whatever the block does."""
    state = DenoiserState(denoiser, weights=weights)
    try:
        yield state
    finally:
        state.restore()


def _registered(registry: Any) -> tuple[dict[str, Any], list[str], list[Any]]:  # noqa: ANN401
    """Return the hooks that diffusers has on a layer, their order, and what they stand before."""
    if registry is _ABSENT:
        return {}, [], []
    return dict(registry.hooks), list(registry._hook_order), list(registry._fn_refs)


def _copied(value: Any) -> Any:  # noqa: ANN401
    return dict(value) if isinstance(value, dict) else value


def _equal(before: Any, after: Any) -> bool:  # noqa: ANN401
    plain = (bool, str, list, dict)
    return isinstance(before, plain) and isinstance(after, plain) and before == after


def _same_entries(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> bool:
    return list(before) == list(after) and all(before[key] is after[key] for key in before)


def _put(attributes: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401
    if value is _ABSENT:
        attributes.pop(key, None)
    else:
        attributes[key] = value
