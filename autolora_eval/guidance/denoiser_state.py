"""The state of a denoiser apart from its weights: LoRA switches, hooks, attributes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Self

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.lora.layer import Conv2d, Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer


def adapter_layers(module: torch.nn.Module) -> list[BaseTunerLayer]:
    """Return the layers of a network that have an adapter."""
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


class InPlaceLora(LoraLayer):
    """A layer of peft that adds its LoRAs to the base layer's output in place.

    peft computes B·(A·x), its product with the scale and the sum one after the other, each in a
    tensor of the output's size: 8% of a pass of the SD3 miniature. Results differ by rounding.

    Attributes:
        lora_rows: (first, n) if only the rows [first, n) of a batch of n get the LoRAs.
    """

    lora_rows: tuple[int, int] | None = None

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return W·x + s·B·A·x, [n, …]."""
        if args or kwargs or self.lora_variant or self.merged_adapters:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        result: torch.Tensor = self.base_layer(x)
        if self._disable_adapters:
            return result
        first, n = self.lora_rows or (0, len(x))
        if len(x) != n:
            raise ValueError(
                f"a layer got {len(x)} rows for a batch of {n}, so it is not known which rows "
                "belong to the LoRA model. Set 'guidance_batching: conditions'."
            )
        for name in self.active_adapters:
            if name in self.scaling:
                self._add(name, x[first:], result[first:])
        return result

    def _add(self, name: str, x: torch.Tensor, result: torch.Tensor) -> None:
        raise NotImplementedError


class InPlaceLinear(InPlaceLora, Linear):
    """A linear layer with LoRAs."""

    def _add(self, name: str, x: torch.Tensor, result: torch.Tensor) -> None:
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        inner = torch.nn.functional.linear(x, a).view(-1, len(a))
        result.view(-1, len(b)).addmm_(inner, b.T, alpha=self.scaling[name])


class InPlaceConv2d(InPlaceLora, Conv2d):
    """A convolution with LoRAs."""

    def _add(self, name: str, x: torch.Tensor, result: torch.Tensor) -> None:
        result.add_(self.lora_B[name](self.lora_A[name](x)), alpha=self.scaling[name])


def can_mix(module: torch.nn.Module) -> bool:
    """Return whether a network can have its LoRAs on for some rows of a batch only.

    DoRA changes weights in another way than adding B·A.
    """
    layers = adapter_layers(module)
    mixes = (isinstance(layer, InPlaceLora) and not layer.lora_variant for layer in layers)
    return bool(layers) and all(mixes)


def merge_lora(networks: Sequence[torch.nn.Module], adapter: str, scale: float) -> None:
    """Merge the only adapter of some networks into their weights, at a scale, and remove it."""
    set_lora_scale(networks, adapter, scale)
    for network in networks:
        for layer in adapter_layers(network):
            layer.merge(adapter_names=[adapter])
        recurse_remove_peft_layers(network)
        network.__dict__.pop("peft_config", None)
        network._hf_peft_config_loaded = False  # type: ignore[assignment]


def set_lora_scale(networks: Sequence[torch.nn.Module], adapter: str, scale: float) -> None:
    """Set the scale of an adapter: α of equation (2), which multiplies alpha / r of each layer.

    diffusers' `set_adapters` takes a scale of 0 for 1.
    """
    for network in networks:
        for layer in adapter_layers(network):
            layer.set_scale(adapter, scale)


class AdapterSwitch:
    """Switches all adapters of a network on or off.

    It sets a flag on a list of layers that is made once. For SDXL's 560 layers that takes 2 ms,
    while diffusers' `disable_lora` and `enable_lora` take 34 ms a pair with the same result: they
    walk the network and touch `requires_grad` of every parameter.

    Args:
        module: a denoiser or text encoder with a LoRA that was loaded through peft.
        is_required: if `False`, the network may have no adapter. Nothing is switched then.

    Raises:
        ValueError: if the network has no adapter, but must have one.
    """

    def __init__(self, module: torch.nn.Module, *, is_required: bool = True) -> None:
        self.module = module
        # torch's own setattr would look through parameters, buffers and submodules each time.
        self._attributes = [vars(layer) for layer in adapter_layers(module)]
        if is_required and not self._attributes:
            raise ValueError(
                f"AutoLoRA needs a LoRA on {type(module).__name__}, which has none: the base "
                "model and the LoRA model would be the same. Load one with `load_lora_weights` "
                "first."
            )

    def set(self, *, enabled: bool) -> None:
        """Switch every adapter on or off."""
        for attributes in self._attributes:
            attributes["_disable_adapters"] = not enabled

    @contextmanager
    def on_from(self, first: int, rows: int) -> Iterator[None]:
        """Give every adapter to the rows [first, rows) of a batch, within the block.

        All layers must be `InPlaceLora`. Afterwards the adapters are on for every row.
        """
        try:
            for attributes in self._attributes:
                attributes.update(_disable_adapters=False, lora_rows=(first, rows))
            yield
        finally:
            for attributes in self._attributes:
                attributes.pop("lora_rows", None)


@contextmanager
def adapters_off(*modules: torch.nn.Module) -> Iterator[None]:
    """Run a block with the adapters of these networks off, and switch them on afterwards."""
    switches = [AdapterSwitch(module) for module in modules if adapter_layers(module)]
    try:
        for switch in switches:
            switch.set(enabled=False)
        yield
    finally:
        for switch in switches:
            switch.set(enabled=True)


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
    `generation.guider_backend.ModelDriftCheck` finds such changes.
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
    """The attributes of one layer, or of diffusers' hook registry on it."""

    layer: str
    item: object
    attributes: dict[str, Any]
    contents: dict[str, Any]  # copies of those attributes that are containers

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
    """Return `True` for what diffusers leaves of a removed hook; it has no effect."""
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
