"""`.safetensors` files without torch: their headers, and what a LoRA file holds.

A LoRA file is a list of tensors whose names say which layer they tune and what they are. Every
trainer has names of its own. This module splits the names into layers and parts, and refuses by
name what cannot be loaded exactly. `generation.lora` finds the layers in a pipeline.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autolora_eval._errors import UsageError

_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
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
_TOO_LARGE = (OverflowError, RecursionError)  # numbers, and JSON that is nested too deeply
_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header lists it: its type, such as `F16`, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the header of a whole `.safetensors` file: (tensors by name, metadata)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise UsageError(
                f"'{path}' is a pointer of Git LFS, not the file itself. Fetch it with: "
                "git lfs pull"
            )
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise UsageError(f"'{path}' is not a .safetensors file, or its header is cut off.")
        try:
            header = json.loads(file.read(length))
            metadata = dict(header.pop("__metadata__", None) or {})
            tensors = {key: _tensor_info(value, 8 + length) for key, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, *_TOO_LARGE) as error:
            raise UsageError(f"'{path}' has a damaged header: {error}.") from error
    end = max((info.stop for info in tensors.values()), default=8 + length)
    if end > size:
        raise UsageError(
            f"'{path}' is cut off: its header lists {end:,} bytes, it has {size:,}. Fetch it again."
        )
    return tensors, {key: value for key, value in metadata.items() if isinstance(value, str)}


def _tensor_info(value: Mapping[str, Any], offset: int) -> TensorInfo:
    start, stop = value["data_offsets"]
    shape = tuple(int(length) for length in value["shape"])
    kind = _FLOATS.get(value["dtype"])
    if not 0 <= start <= stop:
        raise ValueError(f"data_offsets {start} to {stop}")
    if kind and stop - start != math.prod(shape) * np.dtype(kind[0]).itemsize:
        raise ValueError(f"{stop - start} bytes for {value['dtype']} of shape {shape}")
    return TensorInfo(str(value["dtype"]), shape, offset + int(start), offset + int(stop))


def require_finite(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Check all values: a LoRA of 200 MB takes under 0.1 s, and NaN would cost a run."""
    for key, info in tensors.items():
        if info.dtype not in _FLOATS or not math.prod(info.shape):
            continue
        kind, mask = _FLOATS[info.dtype]
        bits = np.memmap(path, kind, "r", info.start, (math.prod(info.shape),))
        if ((bits & mask) == mask).any():
            raise UsageError(f"'{path}' holds NaN or infinity in '{key}'.")


def read_number(path: Path, info: TensorInfo) -> float:
    """Return the value of a tensor of one number."""
    with path.open("rb") as file:
        file.seek(info.start)
        data = file.read(info.stop - info.start)
    if info.dtype == "BF16" and len(data) == 2:  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    kind = _NUMBERS.get(info.dtype)
    if kind is None or len(data) != np.dtype(kind).itemsize:
        raise UsageError(f"'{path}' states an alpha as {info.dtype} of shape {info.shape}.")
    return float(np.frombuffer(data, kind)[0])


Part = Literal["A", "B", "mid", "alpha", "magnitude"]
# The denoiser of the pipeline, or one of its text encoders.
Component = Literal["denoiser", "text_encoder", "text_encoder_2", "text_encoder_3"]

_PREFIXES: tuple[tuple[str, Component], ...] = (
    ("lora_unet_", "denoiser"),  # kohya's sd-scripts, LyCORIS, OneTrainer for SDXL
    ("lora_transformer_", "denoiser"),  # OneTrainer for SD3
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
    ("lycoris_", "denoiser"),
    ("unet.", "denoiser"),  # diffusers
    ("transformer.", "denoiser"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"),
    ("diffusion_model.", "denoiser"),  # ComfyUI, ai-toolkit
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3"),
    ("clip_l.", "text_encoder"),  # OneTrainer's newer files
    ("clip_g.", "text_encoder_2"),
    ("t5.", "text_encoder_3"),
)
# peft may put an adapter's name behind A and B.
_DOWN = r"(?:lora_A(?:\.\w+)?|lora_down|lora\.down|lora_linear_layer\.down)"
_UP = r"(?:lora_B(?:\.\w+)?|lora_up|lora\.up|lora_linear_layer\.up)"
# The first pattern that matches a tensor's name says which part of its layer it is.
_PARTS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(rf"\.{_DOWN}\.weight$"), "A"),
    (re.compile(rf"\.{_UP}\.weight$"), "B"),
    (re.compile(r"_lora\.down\.weight$"), "A"),  # attention processors of old diffusers
    (re.compile(r"_lora\.up\.weight$"), "B"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)*)$"), "magnitude"),
)
_OTHER_KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.hada_\w+$"), "LoHa"),
    (re.compile(r"\.lokr_\w+$"), "LoKr"),
    (re.compile(r"\.(?:diff|diff_b)$"), "a full difference of weights"),
    (re.compile(r"\.(?:w_norm|b_norm|set_weight)$"), "tuned norms or replaced weights"),
    (re.compile(r"\.(?:oft_\w+|boft_\w+)(?:\.weight)?$"), "OFT"),
    (re.compile(r"\.(?:on_input|ia3_l(?:\.\w+)*)$"), "(IA)³"),
    (re.compile(r"\.(?:a[12]|b[12])\.weight$"), "GLoRA"),
    (re.compile(r"\.bias$"), "a LoRA with biases"),
    (re.compile(r"^bundle_emb\."), "a LoRA with embeddings of words bundled in"),
)


# A pattern such as (a+)+ may take for ever.
_ENDLESS = re.compile(r"\)[*+{]")


@dataclass(frozen=True)
class LoraLayer:
    """What a file says of one layer.

    Attributes:
        component: the network that the layer is in.
        name: the layer as the file names it, without the component's prefix.
        keys: names of its tensors in the file: `A` [r, in, …] and `B` [out, r, …] of equation
            (2), and where there are any `mid` (the core of a Tucker decomposition), `alpha` and
            `magnitude` (of DoRA).
        rank: r.
        alpha: the layer's output is scaled by alpha / r.
        kernel: (height, width) of a convolution's A; empty for a linear layer's.
    """

    component: Component
    name: str
    keys: Mapping[Part, str]
    rank: int
    alpha: float
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file whose layers are known, and where layers without an alpha have theirs from."""

    path: Path
    layers: tuple[LoraLayer, ...]
    alpha_source: str = ""

    @property
    def kind(self) -> str:
        """`LoRA`, or `LoCon` if it tunes convolutions of 3×3 too; `DoRA (…)` with magnitudes."""
        tunes_convolutions = any(math.prod(layer.kernel) > 1 for layer in self.layers)
        name = "LoCon" if tunes_convolutions else "LoRA"
        return f"DoRA ({name})" if "magnitude" in self.layers[0].keys else name

    def summary(self) -> str:
        """Return one line for `plan`: kind, ranks, alphas and the number of layers in each part."""
        ranks = _values({layer.rank for layer in self.layers})
        alphas = _values({layer.alpha for layer in self.layers})
        parts = Counter(layer.component for layer in self.layers)
        tuned = ", ".join(f"{part} {count}" for part, count in parts.items())
        source = f" ({self.alpha_source})" if self.alpha_source else ""
        return f"{self.kind}, rank {ranks}, alpha {alphas}{source}; layers: {tuned}"


@dataclass(frozen=True)
class _Alphas:
    """Alphas that stand beside the tensors: in the header's metadata or in adapter_config.json."""

    source: str = ""
    # The settings of each component, in peft's names; those of "" are for all.
    by_component: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, component: Component, name: str, rank: int) -> float | None:
        """Return the alpha of a layer; None if nothing says it."""
        denoisers = ("unet", "transformer") if component == "denoiser" else (component,)
        known = (key for key in (*denoisers, "") if key in self.by_component)
        config = self.by_component.get(next(known, ""), {})
        alpha = config.get("lora_alpha")
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if _ENDLESS.search(pattern):
                raise ValueError(f"the pattern '{pattern:.80}' repeats a group")
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):  # as peft does
                alpha = value
                break
        if alpha is None:
            return None
        # rsLoRA scales by alpha / sqrt(r).
        return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def read_lora_file(path: Path) -> LoraFile:
    """Read which layers a LoRA file tunes, and how. Of the weights, it only asks for NaN.

    Names of kohya's sd-scripts, LyCORIS (LoCon, DoRA), OneTrainer, ai-toolkit, ComfyUI, peft and
    diffusers, old and new, are understood.

    Raises:
        UsageError: if the file is damaged, is of another kind than LoRA, lacks a half of a
            layer, or holds NaN. The message names the file, and the tensor where there is one.
    """
    tensors, metadata = read_header(path)
    grouped: dict[tuple[Component, str], dict[Part, str]] = {}
    names: dict[tuple[Component, str], str] = {}
    for key in tensors:
        component, name, part = _split(path, key)
        name = names.setdefault((component, name.replace(".", "_")), name)
        parts = grouped.setdefault((component, name), {})
        if part in parts:
            raise UsageError(f"'{path}' tunes one layer twice: '{parts[part]}' and '{key}'.")
        parts[part] = key
    if not grouped:
        raise UsageError(f"'{path}' holds no tensors, so it is not a LoRA.")
    alphas = _file_alphas(path, metadata)
    layers = tuple(
        _layer(path, tensors, component, name, parts, alphas)
        for (component, name), parts in grouped.items()
    )
    n_magnitudes = sum("magnitude" in layer.keys for layer in layers)
    if 0 < n_magnitudes < len(layers):
        raise UsageError(
            f"'{path}' has DoRA magnitudes in {n_magnitudes} of its {len(layers)} layers; "
            "expected all of them or none."
        )
    require_finite(path, tensors)
    if all("alpha" in layer.keys for layer in layers):
        return LoraFile(path, layers, "")
    return LoraFile(path, layers, alphas.source or "alpha = rank, as the file has no alpha")


def check_sum(files: Sequence[LoraFile]) -> Sequence[LoraFile]:
    """Return LoRAs that are added up; refuse those whose sum is not defined: a DoRA among several.

    DoRA scales a layer's whole output, so what it does would depend on the order of the LoRAs.
    """
    doras = [file for file in files if "magnitude" in file.layers[0].keys]
    if doras and len(files) > 1:
        raise UsageError(
            f"'{doras[0].path}' is a {doras[0].kind}, which cannot be added to another LoRA: its "
            "magnitudes scale the whole layer. Use it alone, or set 'part_of_base: true' on one "
            "of the two."
        )
    return files


def _split(path: Path, key: str) -> tuple[Component, str, Part]:
    """Return the component, the layer and the part that a tensor's name stands for."""
    for pattern, part in _PARTS:
        if match := pattern.search(key):
            component, name = _component(key[: match.start()])
            return component, name.replace(".processor.", "."), part
    for pattern, kind in _OTHER_KINDS:
        if pattern.search(key):
            raise UsageError(
                f"'{path}' is {kind} ('{key}'), which cannot be switched on and off exactly. "
                "Expected LoRA, LoCon or DoRA."
            )
    raise UsageError(f"'{path}' holds '{key}', which is not a tensor of a LoRA.")


def _component(name: str) -> tuple[Component, str]:
    name = name.removeprefix("base_model.model.").removeprefix("model.")  # peft; old ComfyUI
    for prefix, component in _PREFIXES:
        if name.startswith(prefix):
            return component, name[len(prefix) :]
    return "denoiser", name


def _layer(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    component: Component,
    name: str,
    parts: Mapping[Part, str],
    alphas: _Alphas,
) -> LoraLayer:
    for part, half in (("A", "down or A"), ("B", "up or B")):
        if part not in parts:
            there = next(iter(parts.values()))
            raise UsageError(f"'{path}' lacks the {half} matrix of the layer of '{there}'.")
    a, mid = _shapes(path, {part: (key, tensors[key].shape) for part, key in parts.items()})
    rank = a[0]
    own = read_number(path, tensors[parts["alpha"]]) if "alpha" in parts else None
    try:
        alpha = own if own is not None else alphas.of(component, name, rank)
    except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
        raise UsageError(f"'{path}': alpha {alphas.source} cannot be used: {error}.") from error
    if alpha is not None and not math.isfinite(alpha):
        raise UsageError(f"'{path}' states alpha {alpha} for '{parts['A']}'.")
    kernel = (mid or a)[2:]
    return LoraLayer(component, name, parts, rank, rank if alpha is None else alpha, kernel)


def _shapes(
    path: Path, parts: Mapping[Part, tuple[str, tuple[int, ...]]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and mid, () without one, after checking that all parts fit."""
    (key_a, a), (key_b, b) = parts["A"], parts["B"]
    mid = parts["mid"][1] if "mid" in parts else ()
    fits = len(a) >= 2 and len(b) >= 2 and a[0] > 0
    if not fits or (mid[:2] != (b[1], a[0]) if "mid" in parts else b[1] != a[0]):
        raise UsageError(
            f"'{path}': the matrices of one layer do not fit each other: '{key_a}' is {a}, "
            f"'{key_b}' is {b}."
        )
    key, magnitude = parts.get("magnitude", ("", (b[0],)))
    # Where DoRA was trained along the inputs, dora_scale is [1, in]; peft has [1, out, 1, 1].
    of_inputs = key.endswith(".dora_scale") and magnitude[:1] != b[:1]
    if of_inputs or math.prod(magnitude) != b[0]:
        raise UsageError(
            f"'{path}' has DoRA magnitudes of shape {magnitude} in '{key}'. Expected one for each "
            f"of the layer's {b[0]} outputs, which is the only kind that can be loaded exactly."
        )
    return a, mid


def _file_alphas(path: Path, metadata: Mapping[str, str]) -> _Alphas:
    """Return the alphas of the header's metadata, else those of adapter_config.json beside it."""
    if "lora_adapter_metadata" in metadata:  # diffusers: "unet.lora_alpha" and so on
        by_component: dict[str, dict[str, Any]] = {}
        for key, value in _json(path, metadata["lora_adapter_metadata"]).items():
            component, _, name = key.rpartition(".")
            by_component.setdefault(component, {})[name] = value
        return _Alphas("from the header's lora_adapter_metadata", by_component)
    for name in ("alpha", "lora_alpha", "ss_network_alpha"):
        try:
            value = float(metadata[name])
        except (KeyError, ValueError):
            continue
        return _Alphas(f"from '{name}' in the header", {"": {"lora_alpha": value}})
    config = path.with_name("adapter_config.json")
    if config.is_file():
        settings = _json(config, config.read_text(encoding="utf-8", errors="replace"))
        return _Alphas("from adapter_config.json beside the file", {"": settings})
    return _Alphas()


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' holds JSON that cannot be read: {error}.") from error
    return found if isinstance(found, dict) else {}


def _values(found: set[float] | set[int]) -> str:
    ordered = sorted(found)
    if len(ordered) > 3:
        return f"{ordered[0]:g} to {ordered[-1]:g}"
    return ", ".join(f"{value:g}" for value in ordered)
