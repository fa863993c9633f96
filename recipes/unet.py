"""The denoiser of the miniature: a small SDXL UNet on 16×16×4 latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn.functional import mse_loss

from recipes.domain import TEMPLATES, training_scenes
from recipes.files import write_figures
from recipes.latents import Latents, training_latents
from recipes.text import SUFFIXES, WIDTH, TextEncoders, captions_of, token_ids
from recipes.training import averaged, cosine, mixed_precision, train_averaged

STEPS = 6800
BATCH = 48
LEARNING_RATE = 1.5e-3
SEED = 31
CHANNELS = (64, 64, 128)
STYLED_CAPTIONS = 0.2
DROPPED_CAPTIONS = 0.1
SAVE_EVERY = 500
# height, width, crop top, crop left, target height, target width: as the pipelines pass them.
TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)
N_TIMES = 1000
NOISE: dict[str, int | float | str] = {
    "num_train_timesteps": N_TIMES,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    # In pure noise, a predicted ε says almost nothing about the picture, and its error is
    # magnified by 1/√ᾱ; a small model learns colours and objects faster from v.
    "prediction_type": "v_prediction",
}


def new_unet() -> UNet2DConditionModel:
    """An untrained denoiser of 4.8 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=tuple(c // 16 for c in CHANNELS),
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        use_linear_projection=True,
    )


def training_scheduler() -> DDPMScheduler:
    """The noise schedule of training."""
    return DDPMScheduler(**NOISE)


def sampling_scheduler() -> EulerDiscreteScheduler:
    """The same schedule for sampling, with trailing spacing: the first step is pure noise."""
    return EulerDiscreteScheduler(**NOISE, timestep_spacing="trailing")


@dataclass(frozen=True)
class Conditions:
    """Text conditions of every caption of every training scene, and the two null prompts.

    hidden: float32 [scene, template, suffix, 24, 128]; pooled: float32 [scene, template,
    suffix, 64]; null_hidden and null_pooled hold the empty prompt's and then zeros, [2, ...].
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    null_hidden: torch.Tensor
    null_pooled: torch.Tensor

    def draw(self, scenes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A random caption of each scene [B], dropped in one case of ten."""
        n = len(scenes)
        # Template 0 is the one that prompts use most.
        template = (torch.randint(0, len(TEMPLATES) + 1, (n,)) - 1).clamp(min=0)
        styled = torch.rand(n) < STYLED_CAPTIONS
        suffix = torch.randint(1, len(SUFFIXES), (n,)) * styled
        hidden = self.hidden[scenes, template, suffix].clone()
        pooled = self.pooled[scenes, template, suffix].clone()
        # Both null prompts are in use: "" is passed here, zeros are SDXL's default.
        dropped = torch.rand(n) < DROPPED_CAPTIONS
        null = torch.randint(0, 2, (int(dropped.sum()),))
        hidden[dropped], pooled[dropped] = self.null_hidden[null], self.null_pooled[null]
        return hidden, pooled


@torch.no_grad()
def conditions(encoders: TextEncoders) -> Conditions:
    """Encode all captions of the training scenes."""
    texts, _ = captions_of(training_scenes())
    parts = [encoders.encode(ids) for ids in token_ids(encoders.tokenizer, texts).split(800)]
    shape = (len(training_scenes()), len(TEMPLATES), len(SUFFIXES))
    hidden = torch.cat([part[0] for part in parts]).unflatten(0, shape)
    pooled = torch.cat([part[1] for part in parts]).unflatten(0, shape)
    empty_hidden, empty_pooled = encoders.encode(token_ids(encoders.tokenizer, [""]))
    return Conditions(
        hidden,
        pooled,
        torch.cat([empty_hidden, torch.zeros_like(empty_hidden)]),
        torch.cat([empty_pooled, torch.zeros_like(empty_pooled)]),
    )


def latents(work_dir: Path) -> Latents:
    """Encode the training pictures once, and keep the result in the work directory."""
    path = work_dir / "data/latents.pt"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work_dir / "sdxl/vae").eval()
        scale = float(vae.config["scaling_factor"])
        training_latents(work_dir, vae).rescaled(scale).save(path)
    return Latents.load(path)


def predict(
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """The denoiser's raw prediction, float32 [B, 4, 16, 16], with SDXL's added conditions."""
    added = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS]).expand(len(noisy), 6)}
    with mixed_precision():
        sample = unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample
    prediction: torch.Tensor = sample.float()
    return prediction


def denoising_loss(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    clean: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of v at random times, for clean scaled latents [B, 4, 16, 16]."""
    noise = torch.randn_like(clean)
    timesteps = torch.randint(0, N_TIMES, (len(clean),))
    noisy = scheduler.add_noise(clean, noise, timesteps)
    target = scheduler.get_velocity(clean, noise, timesteps)
    return mse_loss(predict(unet, noisy, timesteps, hidden, pooled), target)


def train_unet(
    work_dir: Path,
    unet: UNet2DConditionModel,
    name: str,
    draw: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    *,
    learning_rate: float,
    seed: int,
    steps: int,
    flat: float,
) -> None:
    """Train a denoiser into WORK_DIR/sdxl/unet, resuming from its checkpoint.

    Args:
        work_dir: the work directory.
        unet: the denoiser, which is trained in place.
        name: the name of its checkpoint.
        draw: returns a random batch: latents, text embeddings, and pooled ones.
        learning_rate: the highest learning rate.
        seed: seed of the first step.
        steps: the last step plus one.
        flat: the share of the steps before the learning rate falls.
    """
    # PyTorch's fused attention is slow in bfloat16 on CPUs when training: half of all time.
    unet.set_attn_processor(AttnProcessor())
    scheduler, path = training_scheduler(), work_dir / f"checkpoints/{name}.pt"
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0.01, betas=(0.9, 0.99))
    train_averaged(
        name,
        unet,
        path,
        {"optimizer": (optimizer, learning_rate)},
        lambda: denoising_loss(unet, scheduler, *draw()),
        seed=seed,
        steps=steps,
        factor=partial(cosine, total=steps, warmup=100, flat=flat),
        save_every=SAVE_EVERY,
    )
    averaged(new_unet(), path).save_pretrained(work_dir / "sdxl/unet")


def train(work_dir: Path) -> None:
    """Train the denoiser for STEPS into WORK_DIR/sdxl/unet."""
    torch.manual_seed(SEED)
    data, texts = latents(work_dir), conditions(TextEncoders.load(work_dir / "sdxl"))
    unet = new_unet()

    def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = torch.randint(0, len(data.scene), (BATCH,))
        hidden, pooled = texts.draw(data.scene[rows])
        return data.draw(rows), hidden, pooled

    schedule = {"learning_rate": LEARNING_RATE, "flat": 0.4}
    train_unet(work_dir, unet, "unet", draw, seed=SEED, steps=STEPS, **schedule)
    figures = {
        "steps": STEPS,
        "samples": STEPS * BATCH,
        "parameters": sum(p.numel() for p in unet.parameters()),
    }
    write_figures(work_dir, "unet", figures)
    print("unet", figures, flush=True)
