"""The denoiser of the SD3 miniature: a small MMDiT on 16×16×4 latents, trained by flow matching."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch.nn.functional import mse_loss

from recipes.files import write_figures
from recipes.latents import Latents, training_latents
from recipes.sd3_muon import Muon
from recipes.sd3_text import (
    T5_WIDTH,
    Sd3Encoders,
    brief_scores,
    conditions,
)
from recipes.text import LENGTH, WIDTH
from recipes.training import averaged, cosine, mixed_precision, train_averaged

STEPS = 13_500
BATCH = 48
LEARNING_RATE = 1.5e-3
# On the same batches, Muon's loss was several percent below AdamW's after 150 steps.
MUON_LEARNING_RATE = 4e-3
# The content of an image is decided at high noise: such times are slightly more frequent.
TIME_MEAN = 0.4
SEED = 81
STYLED_CAPTIONS = 0.2
DROPPED_CAPTIONS = 0.1
SAVE_EVERY = 300
N_TIMES = 1000
HEADS, HEAD_WIDTH, LAYERS = 4, 32, 4
PATCH = 2
GRID = 16
PATCHES = (GRID // PATCH) ** 2


def new_transformer() -> SD3Transformer2DModel:
    """An untrained denoiser of 2.3 M parameters."""
    return SD3Transformer2DModel(
        sample_size=GRID,
        patch_size=PATCH,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=GRID // PATCH,
        # As SD3 Medium. Norms of queries and keys take a third of the time on a CPU.
        qk_norm=None,
    )


def start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Zero the modulations and the output, as DiT begins: each block changes nothing yet."""
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    for layer in (transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def sampling_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along the flow, with a slightly smaller shift towards noise than SD3's."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=N_TIMES, shift=2.0)


class EagerJointAttention:
    """Joint attention as SD3 computes it, in plain products, with scores added to the keys.

    PyTorch's fused attention is slow on CPUs when training.
    """

    def __call__(
        self,
        attn: Any,  # noqa: ANN401
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        scores: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from pixels and text [B, n, d], [B, m, d] to both; scores: [n + m]."""
        n = hidden_states.shape[1]

        def heads(states: torch.Tensor, norm: torch.nn.Module | None = None) -> torch.Tensor:
            split = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)  # type: ignore[no-any-return]

        text = encoder_hidden_states
        query = torch.cat(
            [
                heads(attn.to_q(hidden_states), attn.norm_q),
                heads(attn.add_q_proj(text), attn.norm_added_q),
            ],
            2,
        )
        key = torch.cat(
            [
                heads(attn.to_k(hidden_states), attn.norm_k),
                heads(attn.add_k_proj(text), attn.norm_added_k),
            ],
            2,
        )
        value = torch.cat([heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(text))], 2)
        weights = (query * attn.scale) @ key.transpose(2, 3) + scores.to(query.dtype)
        found = (weights.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        pixels = attn.to_out[0](found[:, :n])
        rest = found[:, n:]
        return pixels, rest if attn.context_pre_only else attn.to_add_out(rest)


def attend_briefly(transformer: SD3Transformer2DModel) -> None:
    """Let the denoiser take brief text conditions; `predict` then passes the scores."""
    transformer.set_attn_processor(EagerJointAttention())


def latents(work_dir: Path) -> Latents:
    """Encode the training pictures once, and save the autoencoder with SD3's factors."""
    path, folder = work_dir / "data/latents_sd3.pt", work_dir / "sd3/vae"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work_dir / "sdxl/vae").eval()
        raw = training_latents(work_dir, vae)
        shift, scale = float(raw.mean.mean()), float(1 / raw.mean.std())
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)
        vae.save_pretrained(folder)
        raw.rescaled(scale, shift).save(path)
    return Latents.load(path)


def predict(
    transformer: SD3Transformer2DModel,
    noisy: torch.Tensor,
    times: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """The velocity of the flow, float32 [B, 4, 16, 16], at times [B] in 0 (clean) to 1 (noise)."""
    sample = transformer(
        hidden_states=noisy,
        timestep=times * N_TIMES,
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        joint_attention_kwargs={"scores": brief_scores(PATCHES, LENGTH)},
    ).sample
    velocity: torch.Tensor = sample.float()
    return velocity


def flow_loss(
    transformer: SD3Transformer2DModel,
    clean: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the velocity at logit-normal times, for latents [B, 4, 16, 16]."""
    noise = torch.randn_like(clean)
    times = (TIME_MEAN + torch.randn(len(clean))).sigmoid()
    t = times.view(-1, 1, 1, 1)
    with mixed_precision():
        velocity = predict(transformer, (1 - t) * clean + t * noise, times, hidden, pooled)
    return mse_loss(velocity, noise - clean)


def optimizers(transformer: SD3Transformer2DModel) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    parameters = dict(transformer.named_parameters())
    matrices = [k for k, p in parameters.items() if k.startswith("transformer_") and p.ndim == 2]
    rest = [p for k, p in parameters.items() if k not in set(matrices)]
    return (
        Muon([parameters[k] for k in matrices], weight_decay=0.01),
        torch.optim.AdamW(rest, weight_decay=0.01, betas=(0.9, 0.99)),
    )


def train(work_dir: Path) -> None:
    """Train the denoiser for STEPS into WORK_DIR/sd3/transformer, resuming from its checkpoint."""
    torch.manual_seed(SEED)
    data, texts = latents(work_dir), conditions(Sd3Encoders.load(work_dir))
    transformer = new_transformer()
    start_as_identity(transformer)
    attend_briefly(transformer)
    muon, adamw = optimizers(transformer)

    def loss() -> torch.Tensor:
        rows = torch.randint(0, len(data.scene), (BATCH,))
        hidden, pooled = texts.draw(data.scene[rows], STYLED_CAPTIONS, DROPPED_CAPTIONS)
        return flow_loss(transformer, data.draw(rows), hidden, pooled)

    path = work_dir / "checkpoints/sd3.pt"
    train_averaged(
        "sd3",
        transformer,
        path,
        {"muon": (muon, MUON_LEARNING_RATE), "adamw": (adamw, LEARNING_RATE)},
        loss,
        seed=SEED,
        steps=STEPS,
        factor=partial(cosine, total=STEPS, warmup=200, flat=0.45),
        save_every=SAVE_EVERY,
    )
    averaged(new_transformer(), path).save_pretrained(work_dir / "sd3/transformer")
    figures = {
        "steps": STEPS,
        "samples": STEPS * BATCH,
        "parameters": sum(p.numel() for p in transformer.parameters()),
    }
    write_figures(work_dir, "sd3", figures)
    print("sd3", figures, flush=True)
