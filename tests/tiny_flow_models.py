"""Tiny random SD3, Qwen-Image and Z-Image pipelines: real classes, saved as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_models import clip_text, small_vae
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_sd3(
    folder: Path, seed: int = 0, t5: bool = True, widths: tuple[int, int] = (32, 32)
) -> Path:
    """Save a random SD3; its CLIP encoders have 64 channels together, and it may have no T5."""
    torch.manual_seed(seed)
    tokenizer, text = clip_text(folder.parent / f"{folder.name}-vocabulary")
    small, large = (text | {"hidden_size": n, "projection_dim": n} for n in widths)
    characters = t5_tokenizer()
    t5_config = T5Config(
        vocab_size=len(characters), d_model=80, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=80,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=small_vae(shift_factor=0.1, scaling_factor=0.8),
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**small)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**large, hidden_act="gelu")),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5_config) if t5 else None,
        tokenizer_3=characters if t5 else None,
    )
    pipeline.save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer of single characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def make_qwen_image(folder: Path, seed: int = 0) -> Path:
    """Save a random Qwen-Image of about 0.3 M parameters and return its folder."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text = _text(tokenizer) | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "out_hidden_size": 32})
    pipeline = QwenImagePipeline(
        scheduler=_scheduler(),
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
        vae=small_vae(latent_channels=4, shift_factor=0.1, scaling_factor=0.8),
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


def _tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer of single bytes, with the special tokens of its chats."""
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
