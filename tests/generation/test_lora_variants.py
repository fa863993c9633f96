"""One LoRA of two networks, written by every convention × alpha × precision × kind, does the same.

`test_lora_files.py` proves each naming scheme over all kinds of layers. Here the schemes meet what
trainers combine with them: where the alpha stands, the precision, DoRA, text encoders.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from lora_networks import (
    RANK,
    Tensors,
    assert_equal,
    effects,
    kohya,
    loaded,
    named,
    pairs_of,
    products,
)
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.config.lora_layers import sgm_name
from autolora_eval.generation.lora import load_lora

pytestmark = pytest.mark.model

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
LAYERS = r"^(down_blocks\.1\.(attentions\.0\..*(attn2\.to_[kv]|ff\.net\.2)|resnets\.0\.conv1))$"
MMDIT_LAYERS = r"^transformer_blocks\.1\.(attn\.(to_q|add_k_proj|to_out\.0)|ff\.net\.2)$"
TEXT_LAYERS = r"layers\.1\.(self_attn\.(q|out)_proj|mlp\.fc[12])$"


@dataclass(frozen=True)
class Naming:
    """How a trainer names a layer: by component and name. `down` and `up` end the names of A, B."""

    denoiser: str
    encoder: str
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    separator: str = "."
    is_first_release: bool = False

    def stem(self, component: str, name: str) -> str:
        if component == "denoiser":
            if self.is_first_release:
                name = sgm_name(name, 2, {"up_blocks.0", "up_blocks.1"}) or name
            return self.denoiser + name.replace(".", self.separator)
        return self.encoder + name.removeprefix("text_model.").replace(".", self.separator)


KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
TEXT = "text_model."
SDXL = {
    "kohya": Naming("lora_unet_", "lora_te1_text_model_", **KOHYA, separator="_"),
    "kohya, first release": Naming(
        "lora_unet_", "lora_te1_text_model_", **KOHYA, separator="_", is_first_release=True
    ),
    "OneTrainer, new": Naming("unet.", f"clip_l.{TEXT}", **KOHYA),
    "ComfyUI": Naming(
        "diffusion_model.", f"text_encoders.clip_l.transformer.{TEXT}", is_first_release=True
    ),
    "diffusers": Naming("unet.", "text_encoder."),
    "diffusers, old": Naming(
        "unet.", f"text_encoder.{TEXT}", ".lora.down.weight", ".lora.up.weight"
    ),
    "diffusers, oldest": Naming(
        "unet.",
        f"text_encoder.{TEXT}",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "peft, named adapter": Naming(
        "base_model.model.unet.",
        f"base_model.model.text_encoder.{TEXT}",
        ".lora_A.style.weight",
        ".lora_B.style.weight",
    ),
}
SD3 = {
    "OneTrainer": Naming("lora_transformer_", "lora_te1_text_model_", **KOHYA, separator="_"),
    "ai-toolkit": Naming("transformer.", f"text_encoder.{TEXT}"),
    "ComfyUI": Naming("diffusion_model.", f"text_encoders.clip_l.transformer.{TEXT}"),
    "peft": Naming("base_model.model.transformer.", f"base_model.model.text_encoder.{TEXT}"),
}
ALPHAS = ("none", "tensors", "tensors that differ", "header", "diffusers' header", "config")


def alpha_of(form: str, number: int) -> float:
    """The alpha of the layer of an index."""
    return {"none": float(RANK), "tensors that differ": 1.0 + number % 3}.get(form, 2.0)


def write(file: Path, naming: Naming, form: str, layers: dict[tuple[str, str], Tensors]) -> None:
    """Write a LoRA, its alpha in the given form."""
    tensors: Tensors = {}
    for number, ((component, name), parts) in enumerate(layers.items()):
        stem = naming.stem(component, name)
        tensors |= {stem + naming.down: parts["A"], stem + naming.up: parts["B"]}
        if form.startswith("tensors"):
            alpha = torch.tensor(alpha_of(form, number), dtype=parts["A"].dtype)
            tensors[f"{stem}.alpha"] = alpha
        if "magnitude" in parts:
            is_peft = "lora_A" in naming.down
            key = "lora_magnitude_vector" if is_peft else "dora_scale"
            shape = (-1,) if is_peft else (-1, *[1] * (parts["A"].dim() - 1))
            tensors[f"{stem}.{key}"] = parts["magnitude"].reshape(shape)
    adapter = {f"{part}.lora_alpha": 2 for part in ("unet", "transformer", "text_encoder")}
    header = {
        "header": {"ss_network_alpha": "2.0", "ss_network_dim": str(RANK)},
        "diffusers' header": {"lora_adapter_metadata": json.dumps(adapter)},
    }
    save_file(tensors, file, header.get(form))
    if form == "config":
        file.with_name("adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}')


def variants(schemes: dict[str, Naming]) -> Iterator[object]:
    """Every scheme with every form of alpha; precisions and DoRA in turn."""
    for index, (name, naming) in enumerate(schemes.items()):
        for number, form in enumerate(ALPHAS):
            dtype = PRECISIONS[(index + number) % 3]
            dora = (index + number) % 2 == 1
            precision = str(dtype).removeprefix("torch.")
            label = f"{name} | alpha: {form} | {precision}{' | DoRA' if dora else ''}"
            yield pytest.param((naming, form, dtype, dora), id=label)


def check(
    networks: dict[str, torch.nn.Module],
    patterns: dict[str, str],
    case: tuple[Naming, str, torch.dtype, bool],
    file: Path,
) -> None:
    """Write a variant, load it, and compare what each layer does with B·A and the magnitude."""
    naming, form, dtype, dora = case
    layers: dict[tuple[str, str], Tensors] = {}
    for component, pattern in patterns.items():
        for name, (a, b) in pairs_of(networks[component], pattern).items():
            parts = {"A": a.to(dtype), "B": b.to(dtype)}
            if dora:
                parts["magnitude"] = torch.linspace(0.5, 1.5, len(b)).to(dtype)
            layers[component, name] = parts
    write(file, naming, form, layers)
    fresh = {component: copy.deepcopy(networks[component]) for component in patterns}
    assert load_lora(fresh, read_lora_file(file), "x") == len(layers)
    found = {c: effects(network) for c, network in fresh.items()}
    for number, ((component, name), parts) in enumerate(layers.items()):
        b, a = parts["B"].float().flatten(1), parts["A"].float().flatten(1)
        expected = alpha_of(form, number) / RANK * (b @ a)
        torch.testing.assert_close(found[component].pop(name), expected)
        if dora:
            magnitude = found[component].pop(f"{name} magnitude")
            torch.testing.assert_close(magnitude, parts["magnitude"].float())
    assert not any(found.values())


@pytest.mark.parametrize("case", list(variants(SDXL)))
def test_sdxl(case, unet, text_encoder, tmp_path):
    networks = {"denoiser": unet, "text_encoder": text_encoder}
    patterns = {"denoiser": LAYERS, "text_encoder": TEXT_LAYERS}
    check(networks, patterns, case, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("case", list(variants(SD3)))
def test_sd3(case, transformer, text_encoder, tmp_path):
    networks = {"denoiser": transformer, "text_encoder": text_encoder}
    patterns = {"denoiser": MMDIT_LAYERS, "text_encoder": TEXT_LAYERS}
    check(networks, patterns, case, tmp_path / "lora.safetensors")


def first_release(transformer: SD3Transformer2DModel) -> dict[str, tuple[int, ...]]:
    """SD3's layers by the names of its first release, which kohya's trainer keeps, and shapes."""
    d, blocks = transformer.inner_dim, len(transformer.transformer_blocks)
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": tuple(transformer.pos_embed.proj.weight.shape),
        "context_embedder": tuple(transformer.context_embedder.weight.shape),
        "t_embedder.mlp.0": (d, 256),
        "t_embedder.mlp.2": (d, d),
        "y_embedder.mlp.0": (d, transformer.config.pooled_projection_dim),
        "y_embedder.mlp.2": (d, d),
        "final_layer.linear": tuple(transformer.proj_out.weight.shape),
        "final_layer.adaLN_modulation.1": (2 * d, d),
    }
    for block in range(blocks):
        for side in ("x", "context"):
            stem = f"joint_blocks.{block}.{side}_block."
            is_end = side == "context" and block == blocks - 1
            is_dual = side == "x" and block in transformer.config.dual_attention_layers
            shapes[f"{stem}attn.qkv"] = (3 * d, d)
            shapes[f"{stem}adaLN_modulation.1"] = ((2 if is_end else 9 if is_dual else 6) * d, d)
            if is_dual:
                shapes |= {f"{stem}attn2.qkv": (3 * d, d), f"{stem}attn2.proj": (d, d)}
            if not is_end:
                shapes[f"{stem}attn.proj"] = (d, d)
                shapes |= {f"{stem}mlp.fc1": (4 * d, d), f"{stem}mlp.fc2": (d, 4 * d)}
    return shapes


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_sd3_in_the_names_of_its_first_release_is_what_diffusers_makes_of_it(
    prefix, transformer, tmp_path
):
    """Query, key and value share an A; two norms change the order of their halves."""
    changes, tensors = {"pos_embed": torch.zeros(1)}, {}
    for name, (out, *rest) in first_release(transformer).items():
        a = torch.randn(RANK, *rest)
        b = torch.randn(out, RANK, *[1] * (len(rest) - 1))
        changes[f"{name}.weight"] = torch.einsum("or,r...->o...", b.flatten(1), a)
        changes[f"{name}.bias"] = torch.zeros(out)
        stem = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    save_file(tensors, tmp_path / "lora.safetensors")
    converted = convert_sd3_transformer_checkpoint_to_diffusers(changes)
    expected = {
        name.removesuffix(".weight"): change.flatten(1)
        for name, change in converted.items()
        if name.endswith(".weight")
    }
    assert_equal(loaded(transformer, tmp_path / "lora.safetensors"), expected)


def test_sd3s_t5_is_tuned_in_attention_and_feed_forward(tmp_path):
    sizes = {"vocab_size": 9, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    t5 = T5EncoderModel(T5Config(**sizes, num_layers=2, feed_forward_proj="gated-gelu"))
    pairs = pairs_of(t5, r"SelfAttention\.[qkvo]$|DenseReluDense\.w")
    forms = [
        kohya(pairs, "lora_te3_"),
        named(pairs, "t5.", ".lora_down.weight", ".lora_up.weight"),
        named(pairs, "text_encoder_3."),
    ]
    for number, form in enumerate(forms):
        file = tmp_path / f"{number}.safetensors"
        save_file(form, file)
        assert_equal(loaded(t5, file, "text_encoder_3"), products(pairs))


def test_two_conventions_in_one_file_are_one_lora(unet, tmp_path):
    pairs = pairs_of(unet, LAYERS)
    first, *rest = pairs
    tensors = kohya({first: pairs[first]})
    tensors |= named({name: pairs[name] for name in rest}, "unet.")
    save_file(tensors, tmp_path / "lora.safetensors")
    assert_equal(loaded(unet, tmp_path / "lora.safetensors"), products(pairs))


def test_alphas_by_pattern_are_those_that_peft_takes(unet, tmp_path):
    """peft's patterns are regular expressions, of which the first that matches counts."""
    pairs = pairs_of(unet, r"down_blocks\.1\.attentions\.0\..*attn2\.to_[qkv]$")
    save_file(
        named(pairs, "base_model.model."),
        tmp_path / "adapter_model.safetensors",
    )
    config = {"lora_alpha": 4, "alpha_pattern": {"attn2.to_(q|k)": 8, ".*to_q": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    layers = read_lora_file(tmp_path / "adapter_model.safetensors").layers
    assert {layer.name[-4:]: layer.alpha for layer in layers} == {"to_q": 8, "to_k": 8, "to_v": 4}
