"""A tiny SDXL or SD3 in the names of its first release, as single-file checkpoints hold it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# For two levels with one layer each: the names of diffusers, and those of the first release.
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = (
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.0\.", "up.1."),
    (r"up_blocks\.1\.", "up.0."),
    (r"(up\.\d)\.resnets\.", r"\1.block."),
    (r"(up\.\d)\.upsamplers\.0\.", r"\1.upsample."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


# SD3's transformer: what is outside of its blocks, and within one.
_MMDIT = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_MMDIT_BLOCK = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}
_SD3_TEXT = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}


def write_single_file(pipe: Any, file: Path) -> Path:
    """Write the weights of a tiny SDXL or SD3 pipeline as one file, and return it."""
    tensors = _sdxl(pipe) if hasattr(pipe, "unet") else _sd3(pipe)
    for key, value in pipe.vae.state_dict().items():
        name = key
        for pattern, text in _VAE:
            name = re.sub(pattern, text, name)
        is_attention = "attn_1" in name and value.dim() == 2
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if is_attention else value
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, file)
    return file


def _sdxl(pipe: Any) -> dict[str, torch.Tensor]:
    tensors = {f"model.diffusion_model.{_unet(k)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.text_encoder.state_dict().items():
        name = f"text_model.{key.removeprefix('text_model.')}"
        tensors[f"conditioner.embedders.0.transformer.{name}"] = value
    for key, value in _open_clip(pipe.text_encoder_2.state_dict()).items():
        tensors[f"conditioner.embedders.1.model.{key}"] = value
    return tensors


def _sd3(pipe: Any) -> dict[str, torch.Tensor]:
    tensors = {f"model.diffusion_model.{k}": v for k, v in _mmdit(pipe.transformer).items()}
    for component, prefix in _SD3_TEXT.items():
        encoder = getattr(pipe, component)
        weights = {} if encoder is None else encoder.state_dict()
        tensors |= {f"{prefix}{key}": value for key, value in weights.items()}
    return tensors


def _mmdit(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = transformer.state_dict()
    last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}.norm1_context.linear"
    found = {"pos_embed": state.pop("pos_embed.pos_embed")}
    for key, value in state.items():
        name, _, kind = key.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        if block is None:
            first = _MMDIT[name]
        elif block[2] not in _MMDIT_BLOCK:  # k and v, which go with q
            continue
        else:
            first = f"joint_blocks.{block[1]}.{_MMDIT_BLOCK[block[2]]}"
        if first.endswith("qkv"):
            head, _, tail = key.rpartition("_q")
            value = torch.cat([state[f"{head}_{one}{tail}"] for one in "qkv"])
        if name in ("norm_out.linear", last):  # (scale, shift) here, (shift, scale) there
            value = torch.cat(value.chunk(2)[::-1])
        found[f"{first}.{kind}"] = value
    return found


def _unet(key: str) -> str:
    start = next(name for name in _UNET if key.startswith(f"{name}."))
    rest = key.removeprefix(start)
    if ".resnets." in start:
        inner, _, last = rest[1:].partition(".")
        rest = f".{_RESNET[inner]}.{last}"
    return _UNET[start] + rest


def _open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = value.T
            continue
        for old, new in _OPEN_CLIP.items():
            name = name.replace(old, new)
        match = re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name)
        if match:
            parts = [state[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[f"{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif "self_attn" not in name and "position_ids" not in name:
            found[name] = value
    return found
