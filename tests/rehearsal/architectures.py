"""The published architectures of SDXL, SD3 Medium and DINOv2-giant, with random weights.

All sizes are those of the published configurations but two: the tokenizers know single characters
only, and SD3's T5 has one narrow layer. Weights are bfloat16, so that they fit disk and memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tiny_flow_models import t5_tokenizer
from tiny_models import clip_text
from transformers import (
    BitImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    T5Config,
    T5EncoderModel,
)

DTYPE = torch.bfloat16
# A file's pages are in memory until it is read: small files keep the peak of loading low.
SHARD = "1GB"
RANK = 8
Sizes = Mapping[str, Any]
CLIP: Sizes = {"vocab_size": 49_408, "max_position_embeddings": 77}
CLIP_L: Sizes = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G: Sizes = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SDXL_UNET: Sizes = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3_TRANSFORMER: Sizes = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
VAE: Sizes = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SDXL_VAE: Sizes = {**VAE, "scaling_factor": 0.13025}
SD3_VAE: Sizes = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SMALL_T5: Sizes = {
    "vocab_size": 32_128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 256,
    "num_layers": 1,
    "num_heads": 4,
}
DINOV2_GIANT: Sizes = {
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 24,
    "use_swiglu_ffn": True,
    "image_size": 518,
    "patch_size": 14,
}
# Parameters of the published models.
SDXL_SIZES = {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
SD3_SIZES = {"transformer": 2_028_328_000}
DINOV2_SIZE = 1_136_480_768


def make_sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Save SDXL with random weights."""
    tokenizer, ids = clip_text(folder.parent / "vocabulary", CLIP["max_position_embeddings"])
    clip = {**ids, **CLIP}
    pipeline = StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**SDXL_UNET),
        vae=AutoencoderKL(**SDXL_VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**{**clip, **CLIP_L})),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**{**clip, **CLIP_G})),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )
    _require_sizes(pipeline, SDXL_SIZES)
    pipeline.save_pretrained(folder, max_shard_size=SHARD)
    return pipeline


def make_sd3(folder: Path) -> StableDiffusion3Pipeline:
    """Save SD3 Medium with random weights and a small T5."""
    tokenizer, ids = clip_text(folder.parent / "vocabulary", CLIP["max_position_embeddings"])
    clip = {**ids, **CLIP}
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**SD3_TRANSFORMER),
        vae=AutoencoderKL(**SD3_VAE),
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**{**clip, **CLIP_L})),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**{**clip, **CLIP_G})),
        text_encoder_3=T5EncoderModel(T5Config(**SMALL_T5)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    _require_sizes(pipeline, SD3_SIZES)
    pipeline.save_pretrained(folder, max_shard_size=SHARD)
    return pipeline


def make_dinov2(folder: Path) -> None:
    """Save DINOv2-giant with random weights."""
    model = Dinov2Model(Dinov2Config(**DINOV2_GIANT))
    assert parameters(model) == DINOV2_SIZE, parameters(model)
    model.save_pretrained(folder)
    # Not its own 224 pixels: on two cores an image would take half a minute.
    BitImageProcessor(
        size={"shortest_edge": 128},
        crop_size={"height": 112, "width": 112},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)


def kohya_sdxl(pipeline: StableDiffusionXLPipeline, file: Path) -> dict[str, int]:
    """Save a LoRA of all that kohya's trainer tunes, and return the layers in each network."""
    counts, tensors = {}, {}
    for component, prefix, pattern in (
        ("unet", "lora_unet_", ".attentions."),
        ("text_encoder", "lora_te1_text_model_", "encoder.layers."),
        ("text_encoder_2", "lora_te2_text_model_", "encoder.layers."),
    ):
        names = linear_layers(getattr(pipeline, component), pattern)
        counts[component] = len(names)
        for name, layer in names.items():
            stem = prefix + name.removeprefix("text_model.").replace(".", "_")
            a, b = _matrices(layer)
            tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
            tensors[f"{stem}.alpha"] = torch.tensor(RANK / 2, dtype=DTYPE)
    save_file(tensors, file)
    return counts


def diffusers_sd3(pipeline: StableDiffusion3Pipeline, file: Path) -> None:
    """Save a LoRA on the attention of SD3's transformer, in diffusers' names."""
    tensors = {}
    for name, layer in linear_layers(pipeline.transformer, ".attn.").items():
        a, b = _matrices(layer)
        tensors[f"transformer.{name}.lora_A.weight"] = a
        tensors[f"transformer.{name}.lora_B.weight"] = b
    save_file(tensors, file)


def linear_layers(network: torch.nn.Module, pattern: str) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of a network whose names contain a pattern, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Linear) and pattern in name
    }


def parameters(network: torch.nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def _require_sizes(pipeline: Any, sizes: Mapping[str, int]) -> None:
    found = {name: parameters(getattr(pipeline, name)) for name in sizes}
    assert found == sizes, found


def _matrices(layer: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Random A and B whose product is about a tenth of a random weight."""
    a = torch.randn(RANK, layer.in_features) / layer.in_features**0.5
    return a, torch.randn(layer.out_features, RANK) * 0.1


def main(folder: Path) -> None:
    """Write `sdxl`, `sd3` and `dinov2_giant` with their LoRAs, each where it is missing."""
    torch.set_default_dtype(DTYPE)
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sdxl.json").exists():
        counts = kohya_sdxl(make_sdxl(folder / "sdxl"), folder / "sdxl_lora.safetensors")
        (folder / "sdxl.json").write_text(json.dumps(counts))
    if not (folder / "sd3_lora.safetensors").exists():
        diffusers_sd3(make_sd3(folder / "sd3"), folder / "sd3_lora.safetensors")
    if not (folder / "dinov2_giant" / "preprocessor_config.json").exists():
        make_dinov2(folder / "dinov2_giant")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
