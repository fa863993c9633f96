"""`.safetensors` files without torch: their headers, single numbers, and NaN or infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from autolora_eval._errors import UsageError

_LFS_POINTER = b"version https://git-lfs"
# Numbers as integers, and bits that are all set in NaN and infinity alone: those of the exponent.
# E4M3 has no infinity, and NaN has all bits but the sign.
_FLOATS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E4M3": ("|u1", 0x7F),
    "F8_E5M2": ("|u1", 0x7C),
}
_NUMBERS = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1"},
}
_UPPER_HALVES = {"BF16": "<f4", "F8_E5M2": "<f2"}  # of a number of the other type


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header lists it: its type, such as `F16`, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floating-point numbers that can be read."""
        return self.dtype in _FLOATS


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the header of a whole `.safetensors` file: (tensors by name, metadata).

    Raises:
        UsageError: if the library that loads such files refuses it.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UsageError(
                f"'{path}' is a pointer of Git LFS, not the file itself. Fetch it with: "
                "git lfs pull"
            )
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise UsageError(
                f"'{path}' is not a whole .safetensors file ({reason}). Fetch it again."
            ) from error
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    return {key: _tensor_info(value, 8 + length) for key, value in header.items()}, metadata


def _tensor_info(value: Mapping[str, Any], offset: int) -> TensorInfo:
    start, stop = value["data_offsets"]
    return TensorInfo(value["dtype"], tuple(value["shape"]), offset + start, offset + stop)


def require_finite(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Check all values: a LoRA of 200 MB takes under 0.1 s, and NaN would cost a run."""
    for key, info in tensors.items():
        if info.dtype not in _FLOATS or not math.prod(info.shape):
            continue
        kind, mask = _FLOATS[info.dtype]
        bits = np.memmap(path, kind, "r", info.start, (math.prod(info.shape),))
        if ((bits & mask) == mask).any():
            raise UsageError(f"'{path}' holds NaN or infinity in '{key}'.")


def is_zero(path: Path, info: TensorInfo) -> bool:
    """Return whether every value of a tensor is zero, of either sign."""
    kind, _ = _FLOATS[info.dtype]
    bits = np.memmap(path, kind, "r", info.start, (math.prod(info.shape),))
    return not (bits << 1).any()


def read_number(path: Path, info: TensorInfo) -> float:
    """Return the value of a tensor of one number."""
    with path.open("rb") as file:
        file.seek(info.start)
        data = file.read(info.stop - info.start)
    if info.dtype == "F8_E4M3" and len(data) == 1:
        exponent, mantissa = data[0] >> 3 & 15, data[0] & 7
        value = math.ldexp(mantissa + (8 if exponent else 0), max(exponent, 1) - 10)
        return -value if data[0] >> 7 else value
    kind = _NUMBERS.get(info.dtype)
    if info.dtype in _UPPER_HALVES:
        kind, data = _UPPER_HALVES[info.dtype], bytes(len(data)) + data
    if kind is None or len(data) != np.dtype(kind).itemsize:
        raise UsageError(f"'{path}' states an alpha as {info.dtype} of shape {info.shape}.")
    return float(np.frombuffer(data, kind)[0])
