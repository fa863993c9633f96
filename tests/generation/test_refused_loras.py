"""LoRA files that cannot be loaded exactly are refused, with the file, the kind and the tensor."""

import copy
import json
import re
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from lora_networks import effects, kohya, named, pairs_of
from safetensors.torch import save, save_file

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.config.lora_layers import sgm_name
from autolora_eval.generation import lora as lora_module
from autolora_eval.generation.lora import load_lora
from autolora_eval.guidance.denoiser_state import set_lora_scale

pytestmark = pytest.mark.model
STEM = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"
LAYER = {DOWN: torch.ones(4, 16), UP: torch.ones(16, 4)}
SECOND = {key.replace("proj_in", "proj_out"): value.clone() for key, value in LAYER.items()}

FIRST = "middle_block_1"  # as SDXL's first release calls mid_block.attentions.0
NAN, INFINITY = float("nan"), float("inf")

REFUSED_BY_FILE: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "LoHa": ({f"{STEM}.hada_w1_a": torch.ones(16, 4)}, f"is LoHa ('{STEM}.hada_w1_a')"),
    "LoKr": ({f"{STEM}.lokr_w1": torch.ones(4, 4)}, f"is LoKr ('{STEM}.lokr_w1')"),
    "difference": ({f"{STEM}.diff": torch.ones(16, 16)}, "is a full difference of weights"),
    "norms": ({f"{STEM}.w_norm": torch.ones(16)}, "is tuned norms or replaced weights"),
    "OFT": ({f"{STEM}.oft_blocks": torch.ones(4, 4)}, "is OFT"),
    "BOFT": ({f"{STEM}.boft_R": torch.ones(4, 4)}, f"is OFT ('{STEM}.boft_R')"),
    "GLoRA": ({f"{STEM}.a1.weight": torch.ones(4, 4)}, f"is GLoRA ('{STEM}.a1.weight')"),
    "IA3": ({f"{STEM}.on_input": torch.ones(1)}, f"is (IA)³ ('{STEM}.on_input')"),
    "IA3, peft": ({"unet.mid_block.to_k.ia3_l": torch.ones(4)}, "is (IA)³"),
    "LyCORIS' scalar": (LAYER | {f"{STEM}.scalar": torch.ones(1)}, f"holds '{STEM}.scalar'"),
    "bias difference": (LAYER | {f"{STEM}.diff_b": torch.ones(16)}, f"('{STEM}.diff_b')"),
    "replaced weights": ({f"{STEM}.set_weight": torch.ones(4)}, "norms or replaced weights"),
    "trained modules": ({"base_model.model.conv_in.weight": torch.ones(4)}, "not a tensor of a"),
    "biases": (
        LAYER | {f"{STEM}.lora_up.bias": torch.ones(16)},
        f"is a LoRA with biases ('{STEM}.lora_up.bias')",
    ),
    "embeddings bundled in": (
        LAYER | {f"bundle_emb.zib.clip_{x}": torch.ones(1, 4) for x in "gl"},
        "or a LoRA with them ('bundle_emb.zib.clip_g', 'bundle_emb.zib.clip_l'), which cannot",
    ),
    "embeddings alone": (
        {"clip_l": torch.ones(1, 4), "clip_g": torch.ones(1, 4)},
        "is a file of word embeddings, or a LoRA with them ('clip_g', 'clip_l')",
    ),
    "many other tensors": (
        LAYER | {f"lora_unet_{n}.scale": torch.ones(1) for n in range(5)},
        "holds 'lora_unet_0.scale', 'lora_unet_1.scale', 'lora_unet_2.scale' and 2 more: not a "
        "tensor of a LoRA. Expected LoRA, LoCon or DoRA alone. Choose another file.",
    ),
    "integers": (LAYER | {UP: torch.ones(16, 4).to(torch.int8)}, f"holds '{UP}' as I8, so it is"),
    "a model": ({"unet.conv_in.weight": torch.ones(4, 4)}, "not a tensor of a LoRA"),
    "only A": ({DOWN: torch.ones(4, 16)}, "lacks the up or B matrix"),
    "only B": ({UP: torch.ones(16, 4)}, "lacks the down or A matrix"),
    "only alpha": (LAYER | {"lora_unet_x.alpha": torch.tensor(1.0)}, "'lora_unet_x.alpha'"),
    "other ranks": ({DOWN: torch.ones(4, 16), UP: torch.ones(16, 3)}, "do not fit each other"),
    "alpha NaN": (LAYER | {f"{STEM}.alpha": torch.tensor(float("nan"))}, "alpha nan"),
    "alpha of many": (LAYER | {f"{STEM}.alpha": torch.ones(2)}, "an alpha as F32 of shape (2,)"),
    "some DoRA": (
        LAYER | SECOND | {f"{STEM}.dora_scale": torch.ones(16, 1)},
        "DoRA magnitudes in 1 of its 2 layers",
    ),
    "DoRA along inputs": (
        LAYER | {f"{STEM}.dora_scale": torch.ones(1, 16)},
        f"of shape (1, 16) in '{STEM}.dora_scale'. Expected one for each of the layer's 16 outputs",
    ),
    "DoRA of another layer": (
        LAYER | {f"{STEM}.lora_magnitude_vector": torch.ones(8)},
        f"of shape (8,) in '{STEM}.lora_magnitude_vector'",
    ),
    "core of another rank": (
        LAYER | {f"{STEM}.lora_mid.weight": torch.ones(2, 4, 3, 3)},
        "do not fit each other",
    ),
    "matrices of one axis": ({DOWN: torch.ones(4), UP: torch.ones(4)}, "do not fit each other"),
    "rank 0": ({DOWN: torch.ones(0, 16), UP: torch.ones(16, 0)}, "do not fit each other"),
    "NaN": (LAYER | {DOWN: torch.full((4, 16), NAN)}, f"NaN or infinity in '{DOWN}'"),
    **{
        f"{value} in {dtype}": (
            {
                DOWN: LAYER[DOWN].to(dtype),
                UP: torch.tensor([1.0] * 63 + [value]).view(16, 4).to(dtype),
            },
            f"NaN or infinity in '{UP}'",
        )
        for value, dtype in (
            *((INFINITY, torch.float16), (NAN, torch.bfloat16), (-INFINITY, torch.float64)),
            *((NAN, torch.float8_e4m3fn), (NAN, torch.float8_e5m2)),
        )
    },
    "DoRA with NaN": (
        LAYER | {f"{STEM}.dora_scale": torch.full((16, 1), NAN)},
        f"NaN or infinity in '{STEM}.dora_scale'",
    ),
    "two conventions": (
        LAYER | {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(4, 16)},
        f"tunes one layer twice: '{DOWN}' and 'unet.mid_block.attentions.0.proj_in.lora_A",
    ),
    "two adapters": (
        {f"unet.x.lora_A.{name}.weight": torch.ones(4, 16) for name in ("one", "two")},
        "tunes one layer twice",
    ),
    "twice": (LAYER | {f"{STEM}.lora_A.weight": torch.ones(4, 16)}, "tunes one layer twice"),
    "nothing": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("case", REFUSED_BY_FILE)
def test_what_the_file_shows_is_refused_before_anything_is_loaded(case, tmp_path):
    tensors, message = REFUSED_BY_FILE[case]
    file = tmp_path / "mine.safetensors"
    save_file(tensors, file)
    with pytest.raises(UsageError) as caught:
        read_lora_file(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "PiSSA": (
        {"init_lora_weights": "pissa_niter_4", "lora_alpha": 4, "r": 4},
        "starts from 'pissa_niter_4' (init_lora_weights, adapter_config.json beside the file), "
        "which changes the weights of the base model too. Convert it",
    ),
    "DoRA without magnitudes": (
        {"use_dora": True, "lora_alpha": 4, "r": 4},
        f"is a DoRA (adapter_config.json beside the file) without magnitudes. Expected a tensor "
        f"lora_magnitude_vector beside '{DOWN}'",
    ),
    "another rank": (
        {"lora_alpha": 8, "r": 16},
        "has rank 4, not 16 (adapter_config.json beside the file), so the alpha",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_say_another_lora_than_the_tensors_are_refused(case, tmp_path):
    settings, message = SETTINGS[case]
    file = tmp_path / "mine.safetensors"
    save_file(LAYER, file)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(settings))
    with pytest.raises(UsageError) as caught:
        read_lora_file(file)
    assert f"'{file}' {message}" in str(caught.value)
    right = {"init_lora_weights": "gaussian", "use_dora": False, "lora_alpha": 8, "r": 4}
    config.write_text(json.dumps(right))
    assert read_lora_file(file).layers[0].alpha == 8


def test_one_of_several_files_of_a_lora_is_refused(tmp_path):
    file = tmp_path / "lora-00001-of-00002.safetensors"
    save_file(LAYER, file)
    with pytest.raises(UsageError, match=r"is one of 2 files of a LoRA\. Merge"):
        read_lora_file(file)
    whole = file.rename(tmp_path / "lora-00001-of-00001.safetensors")
    assert len(read_lora_file(whole).layers) == 1


DAMAGED = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n",
    "is not a whole .safetensors file (header too large)": b"<html>Log in to download</html>",
    "(invalid JSON in header: key must be": (20).to_bytes(8, "little") + b"{" * 20,
    "(header too small). Fetch it again": b"{",
    "file not fully covered": save(LAYER)[:-100],
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_file_is_refused_by_name(message, tmp_path):
    file = tmp_path / "mine.safetensors"
    file.write_bytes(DAMAGED[message])
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read_lora_file(file)
    assert str(file) in str(caught.value)


def test_a_lora_of_another_base_model_is_refused(unet, transformer, tmp_path):
    file = tmp_path / "mine.safetensors"
    wide = {name: (torch.ones(4, 99), b) for name, (_, b) in pairs_of(unet, r"to_q$").items()}
    for tensors, message in (
        (
            kohya(pairs_of(transformer, r"to_q$"), "lora_transformer_"),
            r"4 of the 4 layers .* trained on another base model",
        ),
        (named(wide, "unet."), r"has 99 inputs and 16 outputs, but 16 inputs and 16 outputs in"),
        ({k.replace("unet", "te3"): value for k, value in LAYER.items()}, "tunes text_encoder_3"),
        (  # SD 1.5 has attention in its first block, which SDXL has not
            LAYER | {k.replace("mid_block", "down_blocks_0"): v.clone() for k, v in LAYER.items()},
            r"1 of the 2 layers .* such as 'lora_unet_down_blocks_0_attentions_0_proj_in\.",
        ),
        (
            LAYER
            | {k.replace("mid_block_attentions_0", FIRST): v.clone() for k, v in LAYER.items()},
            r"tunes one layer twice: 'lora_unet_mid_.*' and 'lora_unet_middle_block_1_proj_in",
        ),
    ):
        save_file(tensors, file)
        with pytest.raises(AutoLoRAEvalError, match=message):
            load_lora({"denoiser": unet}, read_lora_file(file), "x")
    assert not effects(unet)


def test_a_scale_is_absolute_and_zero_is_zero(unet, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(kohya(pairs_of(unet, r"to_q$"), alpha=2.0), file)
    fresh = copy.deepcopy(unet)
    load_lora({"denoiser": fresh}, read_lora_file(file), "x")
    whole = effects(fresh)
    for scale in (0.25, 0.0, 1.0):
        set_lora_scale([fresh], "x", scale)
        for name, effect in effects(fresh).items():
            torch.testing.assert_close(effect, scale * whole[name])


@pytest.mark.parametrize("part", ["scaling", "lora_B"])
def test_what_was_loaded_is_compared_with_the_file(part, unet, tmp_path, monkeypatch):
    file = tmp_path / "mine.safetensors"
    save_file(kohya(pairs_of(unet, r"to_q$")), file)
    inject = lora_module._inject

    def faulty(network: torch.nn.Module, layers: Any, adapter: str) -> None:
        inject(network, layers, adapter)
        layer: Any = network.get_submodule(next(iter(layers)))
        if part == "scaling":
            layer.scaling[adapter] *= 2
        else:
            layer.lora_B[adapter].weight.data[0, 0] += 1

    monkeypatch.setattr(lora_module, "_inject", faulty)
    with pytest.raises(AutoLoRAEvalError, match="does not hold what"):
        load_lora({"denoiser": copy.deepcopy(unet)}, read_lora_file(file), "x")


def test_the_names_of_sdxls_first_release_are_those_that_diffusers_converts(unet):
    weights = unet.state_dict()
    first = {}
    for name, tensor in weights.items():
        layer, _, last = name.rpartition(".")
        old = sgm_name(layer, 2, {"up_blocks.0", "up_blocks.1"})
        old = "out.0" if layer == "conv_norm_out" else old  # a norm, which no LoRA tunes
        first[f"model.diffusion_model.{old}.{last}"] = tensor
    converted = convert_ldm_unet_checkpoint(first, dict(unet.config))
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("down_blocks.1.resnets.0.conv1", "input_blocks.3.0.in_layers.2"),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.5.0.op"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.2.resnets.1.conv1", "output_blocks.7.0.in_layers.2"),
    ],
)
def test_blocks_with_different_numbers_of_layers_have_names_too(layer, name):
    assert sgm_name(layer, [1, 2, 2], set()) == name
