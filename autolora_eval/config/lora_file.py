"""What a LoRA file holds, read without torch.

A LoRA file is a list of tensors whose names say which layer they tune and what they are. Every
trainer has names of its own. This module splits the names into layers and parts, and refuses by
name what cannot be loaded exactly. `generation.lora` finds the layers in a pipeline.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autolora_eval._errors import UsageError
from autolora_eval._text import first_few
from autolora_eval.config.lora_settings import Component, LoraSettings, read_settings
from autolora_eval.sources.safetensors_file import (
    TensorInfo,
    is_zero,
    read_header,
    read_number,
    require_finite,
)

Part = Literal["A", "B", "mid", "alpha", "magnitude"]

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
    (
        re.compile(r"^(?:bundle_emb\..+|clip_[lg]|text_encoders_\d|emb_params|string_to_param.*)$"),
        "a file of word embeddings, or a LoRA with them",
    ),
)
# Initial values that peft subtracts from the weights of the base model.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
_LISTED = 3  # tensors that a message names


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
        alpha_source: where alpha is from, if it is not a tensor of the file.
        size: (outputs, inputs) of the layer; each place of a convolution's kernel is an input.
        kernel: (height, width) of a convolution's A; empty for a linear layer's.
    """

    component: Component
    name: str
    keys: Mapping[Part, str]
    rank: int
    alpha: float
    alpha_source: str = ""
    size: tuple[int, int] = (0, 0)
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file whose layers are known.

    Attributes:
        trained_on: the base model that its header names.
        is_zero: all of its B matrices are zero, as before training.
    """

    path: Path
    layers: tuple[LoraLayer, ...]
    trained_on: str = ""
    is_zero: bool = False

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
        sources = Counter(layer.alpha_source for layer in self.layers if layer.alpha_source)
        notes = [
            source
            if count == len(self.layers)
            else f"{source}, in {count} of {len(self.layers)} layers"
            for source, count in sources.items()
        ]
        source = f" ({'; '.join(notes)})" if notes else ""
        found = f"{self.kind}, rank {ranks}, alpha {alphas}{source}; layers: {tuned}"
        zero = "; caveat: all of its B matrices are zero, as before training, so it has no effect"
        return found + (zero if self.is_zero else "")


def read_lora_file(path: Path) -> LoraFile:
    """Read which layers a LoRA file tunes, and how. Of the weights, it only asks for NaN.

    Names of kohya's sd-scripts, LyCORIS (LoCon, DoRA), OneTrainer, ai-toolkit, ComfyUI, peft and
    diffusers, old and new, are understood.

    Raises:
        UsageError: if the file is damaged, is of another kind than LoRA, lacks a half of a
            layer, or holds NaN. The message names the file, and the tensor where there is one.
    """
    tensors, metadata = read_header(path)
    if (shard := _SHARD.search(path.name)) and int(shard[1]) > 1:
        raise UsageError(
            f"'{path}' is one of {int(shard[1])} files of a LoRA. Merge them: read each with "
            "safetensors.torch.load_file, and write all tensors with save_file."
        )
    _refuse_other_kinds(path, tensors)
    grouped: dict[tuple[Component, str], dict[Part, str]] = {}
    names: dict[tuple[Component, str], str] = {}
    for key in tensors:
        component, name, part = _split(key)
        name = names.setdefault((component, name.replace(".", "_")), name)
        parts = grouped.setdefault((component, name), {})
        if part in parts:
            raise UsageError(f"'{path}' tunes one layer twice: '{parts[part]}' and '{key}'.")
        parts[part] = key
    if not grouped:
        raise UsageError(f"'{path}' holds no tensors, so it is not a LoRA.")
    settings = read_settings(path, metadata)
    layers = tuple(
        _layer(path, tensors, component, name, parts, settings)
        for (component, name), parts in grouped.items()
    )
    n_magnitudes = sum("magnitude" in layer.keys for layer in layers)
    if 0 < n_magnitudes < len(layers):
        raise UsageError(
            f"'{path}' has DoRA magnitudes in {n_magnitudes} of its {len(layers)} layers; "
            "expected all of them or none."
        )
    _check_settings(path, layers, settings)
    require_finite(path, tensors)
    trained_on = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version")
    is_untrained = not n_magnitudes and all(is_zero(path, tensors[one.keys["B"]]) for one in layers)
    return LoraFile(path, layers, trained_on or "", is_untrained)


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


def _refuse_other_kinds(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a file with tensors that are not parts of a LoRA's layers."""
    others = [key for key in tensors if not any(known.search(key) for known, _ in _PARTS)]
    if not others:
        return
    for pattern, kind in _OTHER_KINDS:
        if found := [key for key in others if pattern.search(key)]:
            raise UsageError(
                f"'{path}' is {kind} ({_quoted(found)}), which cannot be switched on and off "
                "exactly. Expected LoRA, LoCon or DoRA."
            )
    raise UsageError(
        f"'{path}' holds {_quoted(others)}: not a tensor of a LoRA. Expected LoRA, LoCon or DoRA "
        "alone. Choose another file."
    )


def _quoted(keys: Sequence[str]) -> str:
    return first_few([f"'{key}'" for key in keys], _LISTED)


def _split(key: str) -> tuple[Component, str, Part]:
    """Return the component, the layer and the part that the name of a LoRA's tensor stands for."""
    found = ((match, part) for pattern, part in _PARTS if (match := pattern.search(key)))
    match, part = next(found)
    component, name = _component(key[: match.start()])
    return component, name.replace(".processor.", "."), part


def _component(name: str) -> tuple[Component, str]:
    name = name.removeprefix("base_model.model.").removeprefix("model.")  # peft; old ComfyUI
    for prefix, component in _PREFIXES:
        if name.startswith(prefix):
            return component, name[len(prefix) :].removeprefix("base_model.model.")
    return "denoiser", name


def _layer(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    component: Component,
    name: str,
    parts: Mapping[Part, str],
    settings: LoraSettings,
) -> LoraLayer:
    for part, half in (("A", "down or A"), ("B", "up or B")):
        if part not in parts:
            there = next(iter(parts.values()))
            raise UsageError(f"'{path}' lacks the {half} matrix of the layer of '{there}'.")
    for key in (key for part, key in parts.items() if part != "alpha"):
        if not tensors[key].is_float:
            raise UsageError(
                f"'{path}' holds '{key}' as {tensors[key].dtype}, so it is quantized. Expected "
                "floating-point numbers: choose the original file."
            )
    a, mid = _shapes(path, {part: (key, tensors[key].shape) for part, key in parts.items()})
    rank = a[0]
    source = "" if "alpha" in parts else settings.source
    try:
        alpha = (
            read_number(path, tensors[parts["alpha"]])
            if "alpha" in parts
            else settings.alpha(component, name, rank)
        )
    except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
        raise UsageError(f"'{path}': alpha {settings.source} cannot be used: {error}.") from error
    if alpha is None:
        alpha, source = rank, "alpha = rank, as the file has no alpha"
    if not math.isfinite(alpha):
        raise UsageError(f"'{path}' states alpha {alpha} for '{parts['A']}'.")
    b = tensors[parts["B"]].shape
    size = (math.prod(b) // rank, math.prod(a[1:]) * math.prod(mid[2:]))
    return LoraLayer(component, name, parts, rank, alpha, source, size, (mid or a)[2:])


def _shapes(
    path: Path, parts: Mapping[Part, tuple[str, tuple[int, ...]]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and mid, () without one, after checking that all parts fit."""
    (key_a, a), (key_b, b) = parts["A"], parts["B"]
    mid = parts["mid"][1] if "mid" in parts else ()
    fits = len(a) >= 2 and len(b) >= 2 and a[0] > 0
    if not fits or b[1] != a[0] or ("mid" in parts and mid[:2] != (a[0], a[0])):
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
            f"of the layer's {b[0]} outputs, which is the only kind that can be loaded exactly. "
            "Trainers call it wd_on_output or 'apply on output axis'."
        )
    return a, mid


def _check_settings(path: Path, layers: Sequence[LoraLayer], stated: LoraSettings) -> None:
    """Refuse settings that say another LoRA than the tensors."""
    source = stated.source.removeprefix("from ")
    for component in dict.fromkeys(layer.component for layer in layers):
        tuned = [layer for layer in layers if layer.component == component]
        settings = stated.of(component)
        start = str(settings.get("init_lora_weights")).lower()
        if start.startswith(_CHANGES_BASE):
            raise UsageError(
                f"'{path}' starts from '{start}' (init_lora_weights, {source}), which changes the "
                "weights of the base model too. Convert it to a plain LoRA: save_pretrained of "
                "peft, with path_initial_model_for_weight_conversion."
            )
        if settings.get("use_dora") is True and "magnitude" not in tuned[0].keys:
            raise UsageError(
                f"'{path}' is a DoRA ({source}) without magnitudes. Expected a tensor "
                f"lora_magnitude_vector beside '{tuned[0].keys['A']}'. Get the whole file."
            )
        ranks, rank = {layer.rank for layer in layers}, str(settings.get("r"))
        takes_alpha = any(layer.alpha_source == stated.source for layer in tuned)
        is_other = rank.isdecimal() and int(rank) not in ranks
        if stated.source and takes_alpha and is_other and not settings.get("rank_pattern"):
            raise UsageError(
                f"'{path}' has rank {_values(ranks)}, not {rank} ({source}), so the alpha from "
                "there may be of another LoRA. Correct it there, or remove it: alpha is then the "
                "rank."
            )


def _values(found: set[float] | set[int]) -> str:
    ordered = sorted(found)
    if len(ordered) > 3:
        return f"{ordered[0]:g} to {ordered[-1]:g}"
    return ", ".join(f"{value:g}" for value in ordered)
