"""A GPU that is none: tensors that say `cuda:0`, compute on the CPU, and refuse to mix devices.

Within `pretended_gpu()` torch says that there is one CUDA device. A tensor on it is `OnGPU`, which
holds a tensor of the CPU. An operation on tensors of both devices raises what CUDA raises, with
CUDA's exceptions: copies, numbers (tensors without dimensions) and the indices of an indexing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")
TOTAL = 8 * 2**30
_aten = torch.ops.aten
_MAY_MIX = {_aten.copy_.default, _aten._to_copy.default, torch.Tensor.__setitem__}
_MAY_INDEX = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    torch.Tensor.__getitem__,
}
_MATH_ATTENTION = 0
# Some methods, such as indexing, ask the driver for the current device before they are dispatched.
_NO_DRIVER = "not linked with support for cuda"


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGPU:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnGPU({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        except RuntimeError as error:
            if _NO_DRIVER not in str(error) and func is not torch.Tensor.tolist:
                raise
        return run(func, args, kwargs)


class _Pretended(TorchDispatchMode):
    """Sees every operation, also those that make tensors from nothing."""

    def __init__(self) -> None:
        super().__init__()
        # torch does not look for a GPU while a mode of this key is on: it takes it for its own
        # FakeTensorMode.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def _each(function: Any, value: Any) -> Any:
    """Apply a function to everything in lists, tuples and dictionaries."""
    if isinstance(value, list | tuple):
        made = [_each(function, one) for one in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {key: _each(function, one) for key, one in value.items()}
    return function(value)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGPU) else value


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and say where its result is.

    Raises:
        RuntimeError: if the operation mixes devices.
    """
    if func is _aten._fused_sdp_choice.default:
        return _MATH_ATTENTION
    tensors: list[torch.Tensor] = []
    _each(lambda t: tensors.append(t) if isinstance(t, torch.Tensor) else None, (args, kwargs))
    on_gpu = any(isinstance(t, OnGPU) for t in tensors)
    if func in _MAY_MIX:
        must_agree = []
    else:
        must_agree = [*args[:1], *args[2:3]] if func in _MAY_INDEX else tensors
    on_cpu = [
        t
        for t in must_agree
        if isinstance(t, torch.Tensor) and not isinstance(t, OnGPU) and t.dim()
    ]
    device = kwargs.get("device")
    to_gpu = on_gpu if device is None else torch.device(device).type == "cuda"
    if func is _aten.copy_.default:
        to_gpu = isinstance(args[0], OnGPU)
    if on_gpu and on_cpu:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
            f"and cpu! ({func} with a tensor of {list(on_cpu[0].shape)} on the cpu)"
        )
    generator = kwargs.get("generator")
    if to_gpu and generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    known = {id(t.inner): t for t in tensors if isinstance(t, OnGPU)}
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = _each(_inner, (args, kwargs))
    made = func(*args, **kwargs)
    if func is _aten._to_copy.default and made is args[0]:
        made = made.clone()

    def placed(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or not to_gpu:
            return one
        return known[id(one)] if id(one) in known else OnGPU(one)

    return _each(placed, made)


@contextmanager
def pretended_gpu(free: int = TOTAL) -> Iterator[None]:
    """Pretend that this machine has one GPU, of which so many bytes are free."""
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda *_: (free, TOTAL),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda *_: torch.zeros(0, device="cpu"),
        "set_rng_state": lambda *_: None,
        "get_device_name": lambda *_: "pretended",
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=TOTAL, major=8, minor=0),
        "get_device_capability": lambda *_: (8, 0),
    }
    torch._C._ensureCUDADeviceGuardSet()
    lifts = torch._C._only_lift_cpu_tensors()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    # A network that moves keeps its parameters: the objects that others refer to, as on CUDA.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        # No gradients: for those torch asks a driver that is not here.
        with mock.patch.multiple(torch.cuda, **cuda), torch.no_grad(), _Pretended():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
