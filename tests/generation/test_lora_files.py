"""LoRA files of every trainer do what they say, or are refused by name.

One LoRA is written in the names and forms that trainers use. Whatever the form, each layer of the
network must add the same alpha / rank · B·A. The forms are those of public files and of bug
reports against loaders: alphas of single layers, DoRA in kohya's names, alphas in the header.
"""

import json
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from lora_networks import (
    RANK,
    Pairs,
    Tensors,
    assert_equal,
    kohya,
    loaded,
    named,
    pairs_of,
    products,
)
from safetensors.torch import save_file

from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.config.lora_layers import sgm_name

pytestmark = pytest.mark.model


def old_processors(pairs: Pairs) -> Tensors:
    """The names of diffusers' attention processors before 0.22."""
    tensors = {}
    for name, (a, b) in pairs.items():
        inner = re.fullmatch(r"(.*attn\d)\.(to_[qkv]|to_out)(?:\.0)?", name)
        stem = f"unet.{inner[1]}.processor.{inner[2]}_lora" if inner else f"unet.{name}.lora"
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = a, b
    return tensors


def sgm(pairs: Pairs, prefix: str, separator: str) -> Pairs:
    """The same pairs under the names of SDXL's first release."""
    attention = {"up_blocks.0", "up_blocks.1"}
    names = {name: sgm_name(name, 2, attention) or name for name in pairs}
    return {prefix + names[name].replace(".", separator): pair for name, pair in pairs.items()}


def ranks_of_single_layers(pairs: Pairs) -> Tensors:
    """Every second layer at twice the rank, the added half without effect."""
    wide = {}
    for number, (name, (a, b)) in enumerate(pairs.items()):
        if number % 2:
            a, b = torch.cat([a, a]), torch.cat([b, torch.zeros_like(b)], dim=1)
        wide[name] = a, b
    return named(wide, "unet.")


def flat_kernels(pairs: Pairs) -> Tensors:
    """1×1 convolutions as matrices, and matrices as 1×1 convolutions."""
    changed = {}
    for name, (a, b) in pairs.items():
        if a.dim() == 2:
            a, b = a[:, :, None, None], b[:, :, None, None]
        elif a.shape[2:] == (1, 1):
            a, b = a.flatten(1), b.flatten(1)
        changed[name] = a, b
    return kohya(changed)


def alphas_as(dtype: torch.dtype, pairs: Pairs) -> Tensors:
    tensors = kohya(pairs, alpha=-3.0)
    return {k: v.to(dtype) if k.endswith("alpha") else v for k, v in tensors.items()}


TYPES_OF_ALPHA = (
    *(torch.int64, torch.int8, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
VALUES: dict[str, Callable[[Pairs], Tensors]] = {
    **{f"kohya, alphas as {dtype}": partial(alphas_as, dtype) for dtype in TYPES_OF_ALPHA},
    "kohya, kernels flattened": flat_kernels,
    "float64": lambda p: {k: v.double() for k, v in kohya(p).items()},
    "ranks of single layers": ranks_of_single_layers,
}
NAMES: dict[str, Callable[[Pairs], Tensors]] = {
    "kohya": kohya,
    "kohya, names of SDXL's first release": lambda p: kohya(sgm(p, "", "_")),
    "LyCORIS": lambda p: kohya(p, prefix="lycoris_"),
    "ComfyUI": lambda p: named(sgm(p, "", "."), "diffusion_model."),
    "ComfyUI, kohya's parts": lambda p: named(
        sgm(p, "", "."), "diffusion_model.", ".lora_down.weight", ".lora_up.weight"
    ),
    "diffusers": lambda p: named(p, "unet."),
    "diffusers, old": lambda p: named(p, "unet.", ".lora.down.weight", ".lora.up.weight"),
    "diffusers, attention processors": old_processors,
    "diffusers' names, kohya's parts": lambda p: named(
        p, "unet.", ".lora_down.weight", ".lora_up.weight"
    ),
    "peft": lambda p: named(p, "base_model.model."),
    "peft, named adapter": lambda p: named(
        p, "unet.", ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "peft, within a network's prefix": lambda p: named(p, "unet.base_model.model."),
    "no prefix": lambda p: named(p, ""),
}


@pytest.mark.parametrize("form", NAMES | VALUES)
def test_one_lora_in_every_form_does_the_same(form, unet, tmp_path):
    """Names of attention, feed-forward, projections, resnets, resampling and embeddings."""
    some = r"down_blocks\.1\.(attentions\.0\.(proj_in|.*attn1\.to_q)|resnets|down)|time_emb"
    everything = r"to_|ff\.|proj|conv|time_emb|embedding"
    pairs = pairs_of(unet, some if form in VALUES else everything)
    tensors = {name: t.contiguous() for name, t in (NAMES | VALUES)[form](pairs).items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    assert_equal(loaded(unet, tmp_path / "lora.safetensors"), products(pairs))


HEADERS = {
    "alpha and rank": {"rank": "4", "alpha": "2"},
    "network_alpha": {"network_dim": "4", "network_alpha": "2.0"},
    "rsLoRA, alone": {"r": "4", "lora_alpha": "1", "use_rslora": "True"},
    "finetrainers'": {"format": "pt", "lora_config": json.dumps({"r": 4, "lora_alpha": 2})},
    "alpha and rank in a configuration": {
        "alpha": "unknown",
        "lora_config": json.dumps({"rank": 4, "alpha": 2}),
    },
    "diffusers', by pattern": {
        "lora_adapter_metadata": json.dumps(
            {"unet.r": 4, "unet.lora_alpha": 9, "unet.alpha_pattern": {"to_q": 2, "to_v": 2}}
        )
    },
    "rsLoRA": {  # alpha / sqrt(r)
        "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.use_rslora": True})
    },
}


@pytest.mark.parametrize("headers", [*HEADERS.values(), None], ids=[*HEADERS, "adapter_config"])
def test_an_alpha_in_the_header_or_beside_the_file_counts_and_is_reported(headers, unet, tmp_path):
    pairs = pairs_of(unet, r"to_[qv]$")
    file = tmp_path / "adapter_model.safetensors"
    save_file(named(pairs, "unet." if headers else "base_model.model."), file, headers)
    if headers is None:
        (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}')
    half = {name: 0.5 * effect for name, effect in products(pairs).items()}
    assert_equal(loaded(unet, file), half)
    assert ("header" if headers else "adapter_config.json") in read_lora_file(file).summary()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_the_plan_says_that_an_untrained_lora_has_no_effect(dtype, unet, tmp_path):
    tensors = named(pairs_of(unet, r"to_q$"), "unet.")
    zero = {key: -0.0 * t if "lora_B" in key else t for key, t in tensors.items()}
    told = []
    for name, one in (("trained", tensors), ("zero", zero)):
        save_file({key: t.to(dtype) for key, t in one.items()}, tmp_path / name)
        told.append("zero, as before training" in read_lora_file(tmp_path / name).summary())
    assert told == [False, True]


def test_a_tucker_decomposition_is_multiplied_out(unet, tmp_path):
    a = torch.randn(RANK, 8, 1, 1)
    mid, b = torch.randn(RANK, RANK, 3, 3), torch.randn(8, RANK, 1, 1)
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    parts = {"lora_down": a, "lora_mid": mid, "lora_up": b}
    save_file({f"{stem}.{k}.weight": v for k, v in parts.items()}, tmp_path / "l.safetensors")
    effect = torch.einsum("or,rshw,si->oihw", b[:, :, 0, 0], mid, a[:, :, 0, 0]).flatten(1)
    found = loaded(unet, tmp_path / "l.safetensors")
    assert_equal(found, {"down_blocks.0.resnets.0.conv1": effect})


@pytest.mark.parametrize("form", ["kohya", "kohya, flat", "peft"])
def test_dora_keeps_its_magnitudes(form, unet, tmp_path):
    pairs = pairs_of(unet, r"to_k$|resnets.*conv1")
    magnitudes = {name: torch.rand(len(b)) + 0.5 for name, (_, b) in pairs.items()}
    if form == "peft":
        tensors = named(pairs, "unet.")
        tensors |= {f"unet.{name}.lora_magnitude_vector": m for name, m in magnitudes.items()}
    else:
        tensors = kohya(pairs)
        for name, magnitude in magnitudes.items():
            shaped = magnitude.reshape(-1, *[1] * (pairs[name][0].dim() - 1))
            key = f"lora_unet_{name.replace('.', '_')}.dora_scale"
            tensors[key] = magnitude if form == "kohya, flat" else shaped
    save_file(tensors, tmp_path / "lora.safetensors")
    found = loaded(unet, tmp_path / "lora.safetensors")
    expected = {f"{name} magnitude": magnitude for name, magnitude in magnitudes.items()}
    assert_equal(found, products(pairs) | expected)
    assert read_lora_file(tmp_path / "lora.safetensors").kind == "DoRA (LoCon)"


# Further names, and other forms of alpha, are in test_lora_variants.py.
TEXT = {
    "kohya without text_model": lambda p: kohya(p, "lora_te1_"),
    "kohya for one encoder": lambda p: kohya(p, "lora_te_text_model_"),
}


@pytest.mark.parametrize("form", TEXT)
def test_a_text_encoder_is_tuned_in_attention_and_mlp(form, text_encoder, tmp_path):
    pairs = pairs_of(text_encoder, r"_proj|fc[12]")
    save_file(TEXT[form](pairs), tmp_path / "lora.safetensors")
    found = loaded(text_encoder, tmp_path / "lora.safetensors", "text_encoder")
    assert_equal(found, products(pairs))
