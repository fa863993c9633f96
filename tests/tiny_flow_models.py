"""Tiny random Qwen-Image and Z-Image pipelines: real classes, saved as folders, with LoRAs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
)

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_qwen_image(folder: Path, seed: int = 0) -> Path:
    """Save a random Qwen-Image of about 0.3 M parameters and return its folder."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text = _text(tokenizer) | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "out_hidden_size": 32})
    pipeline = QwenImagePipeline(
        scheduler=_scheduler(),
        # Two halvings, as many as `dim_mult` has steps.
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 1.5, 0.8, 1.2],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def make_z_image(folder: Path, seed: int = 0) -> Path:
    """Save a random Z-Image of about 0.2 M parameters and return its folder."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    pipeline = ZImagePipeline(
        scheduler=_scheduler(),
        vae=AutoencoderKL(
            latent_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=8,
            shift_factor=0.1,
            scaling_factor=0.8,
        ),
        text_encoder=Qwen3Model(Qwen3Config(**_text(tokenizer), head_dim=16)),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def make_lora(
    pipeline: type, folder: Path, file: Path, rank: int = 4, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Save a random LoRA on the transformer's attention, and return W' − W by layer."""
    transformer = pipeline.from_pretrained(folder).transformer
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    for name, layer in transformer.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")):
            a = torch.randn(rank, layer.in_features, generator=generator) * 0.3
            b = torch.randn(layer.out_features, rank, generator=generator) * 0.3
            changes[f"transformer.{name}"] = b @ a
            tensors[f"transformer.{name}.lora_A.weight"] = a
            tensors[f"transformer.{name}.lora_B.weight"] = b
    save_file(tensors, file)
    return changes


def _tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer of single bytes, with the marks of its chats."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *MARKS])}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=MARKS[1:], chat_template=CHAT
    )


def _text(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift=1.0
    )
