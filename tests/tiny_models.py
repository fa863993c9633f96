"""Tiny random models in standard formats: real classes, real loading code, seconds to make."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from autolora_eval.config.inputs import ResolvedLora, ResolvedModel
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.config.schema import Lora, Model
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.sources.model_source import Source

TOKENS = 16
STEPS = 5
SIZE = (32, 32)


@dataclass(frozen=True)
class TinyModel:
    """A pipeline, a LoRA, and the LoRA's weight changes at scale 1."""

    pipeline: Path | str
    lora: Path | str
    changes: dict[str, torch.Tensor]

    def resolved(self, scale: float, **keys: object) -> ResolvedModel:
        """As the benchmark's loader would give it, with further keys of the model."""
        return ResolvedModel(
            name="tiny",
            spec=Model(
                pipeline=str(self.pipeline),
                lora=Lora(path=str(self.lora), scale=scale),
                num_inference_steps=STEPS,
                **keys,
            ),
            pipeline=Source(str(self.pipeline), "folder", str(self.pipeline)),
            loras=(ResolvedLora(Source(str(self.lora), "file", str(self.lora))),),
            size=SIZE,
        )

    def load(self, scale: float = 1.0, **keys: object) -> LoraPipeline:
        """Load it on the CPU, with the LoRA at a scale."""
        return LoraPipeline.load(self.resolved(scale, **keys), torch.device("cpu"), torch.float32)


def tiny_plan(
    folder: Path,
    tiny: TinyModel,
    methods: dict[str, Any],
    keys: dict[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    """Write a benchmark of a tiny model `T` with these keys and sections, and return its plan."""
    content = {
        "name": "tiny",
        "prompts": ["a red cat"],
        "seeds": {"count": 2},
        "models": {
            "T": {
                "pipeline": str(tiny.pipeline),
                "lora": {"path": str(tiny.lora)},
                "num_inference_steps": STEPS,
                **(keys or {}),
            }
        },
        "methods": methods,
        "features": {"model": "miniature:dinov2"},
        "batch_size": 2,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "benchmark.yaml"
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return make_plan(load_benchmark(file))


def make_sdxl(folder: Path, seed: int = 0, widths: tuple[int, int] = (32, 32)) -> Path:
    """Save a random SDXL of about 0.3 M parameters; its text encoders have 64 channels together."""
    torch.manual_seed(seed)
    tokenizer, text = clip_text(folder.parent / f"{folder.name}-vocabulary")
    pipeline = StableDiffusionXLPipeline(
        vae=small_vae(force_upcast=False),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text | {"hidden_size": widths[0]})),
        text_encoder_2=CLIPTextModelWithProjection(
            CLIPTextConfig(**text | {"hidden_size": widths[1], "hidden_act": "gelu"})
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1),
            attention_head_dim=(2, 4),
            cross_attention_dim=64,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    # A random UNet denoises nothing, so that latents stay at σ = 14.6 and multiply float32's
    # rounding; with small predictions that rounding stays far below what the branches differ by.
    pipeline.unet.conv_out.weight.data *= 0.25
    pipeline.save_pretrained(folder)
    return folder


def small_vae(**options: object) -> AutoencoderKL:
    """A random VAE that halves each side."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        **options,
    )


def clip_text(folder: Path, tokens: int = TOKENS) -> tuple[CLIPTokenizer, dict[str, int]]:
    """A CLIP tokenizer of single characters, and the configuration of its text encoders."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokens}))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=tokens)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokens,
        "projection_dim": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return tokenizer, config


UNET = ("to_q", "to_k", "to_v", "to_out.0")
ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")
# kohya's prefix of each component.
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def make_lora(
    pipeline: Path, file: Path, *, kohya: bool, text_encoders: bool, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Save a random LoRA on the attention of a tiny SDXL; see `write_lora`."""
    pipe = StableDiffusionXLPipeline.from_pretrained(pipeline)
    parts = {"unet": UNET}
    if text_encoders:
        parts |= {"text_encoder": ENCODER, "text_encoder_2": ENCODER}
    return write_lora(pipe, file, parts, kohya=kohya, seed=seed)


def write_lora(
    pipe: object,
    file: Path,
    parts: dict[str, tuple[str, ...]],
    *,
    kohya: bool = False,
    std: float = 0.15,
    rank: int = 4,
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Save a random LoRA, and return (alpha / rank)·B·A by `component.layer`.

    Args:
        pipe: the pipeline that the LoRA is for.
        file: the `.safetensors` file to write.
        parts: component → the ends of the names of its tuned linear layers.
        kohya: use kohya's key names with alpha ≠ rank, instead of diffusers' names.
        std: the standard deviation of the values of the matrices.
        rank: the rank of the matrices.
        seed: the seed of the matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    alpha = rank / 2 if kohya else rank
    for component, names in parts.items():
        for name, layer in getattr(pipe, component).named_modules():
            if not name.endswith(names) or not isinstance(layer, torch.nn.Linear):
                continue
            a = torch.randn(rank, layer.in_features, generator=generator) * std
            b = torch.randn(layer.out_features, rank, generator=generator) * std
            changes[f"{component}.{name}"] = alpha / rank * (b @ a)
            if kohya:
                stem = _KOHYA[component] + _kohya_name(component, name).replace(".", "_")
                tensors[f"{stem}.lora_down.weight"] = a
                tensors[f"{stem}.lora_up.weight"] = b
                tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
            else:
                tensors[f"{component}.{name}.lora_A.weight"] = a
                tensors[f"{component}.{name}.lora_B.weight"] = b
    save_file(tensors, file)
    return changes


def _kohya_name(component: str, name: str) -> str:
    """kohya puts the layers of text encoders under `text_model` in any version of transformers."""
    if component == "unet" or name.startswith("text_model."):
        return name
    return f"text_model.{name}"
