"""The autoencoder of the miniature: 64×64 pictures to 16×16×4 latents and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from recipes.data import Renders, renders, to_tensor
from recipes.files import write_figures
from recipes.training import Checkpoint, Ema, Progress, cosine, descend

STEPS = 3000
BATCH = 16
PIXEL_ART_IN_BATCH = 3
LEARNING_RATE = 2e-3
SEED = 11
N_FREE, N_PIXEL, DATA_SEED = 40_000, 4_000, 1


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of 0.41 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def reconstruction_loss(error: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error of values and of neighbours' differences: sharp edges count."""
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + 0.5 * (across + down)


def psnr(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for errors on a range of [-1, 1]."""
    return float(10 * torch.log10(4 / error.pow(2).mean()))


def _batch(free: Renders, pixel: Renders, rng: np.random.Generator) -> torch.Tensor:
    first = rng.integers(0, len(free), BATCH - PIXEL_ART_IN_BATCH)
    second = rng.integers(0, len(pixel), PIXEL_ART_IN_BATCH)
    return to_tensor(np.concatenate([free.images[first], pixel.images[second]]))


def _optimize(vae: AutoencoderKL, work_dir: Path) -> AutoencoderKL:
    """Train for STEPS in all, resuming where a checkpoint stands; return the averaged model."""
    free = renders(work_dir, "free", "training", N_FREE, DATA_SEED)
    pixel = renders(work_dir, "pixel", "training", N_PIXEL, DATA_SEED)
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=0.0, betas=(0.9, 0.99))
    ema = Ema(vae, 0.995)
    checkpoint = Checkpoint(
        work_dir / "checkpoints/vae.pt", model=vae, ema=ema.model, optimizer=optimizer
    )
    first = checkpoint.load()
    rng = np.random.default_rng((SEED, first))
    torch.manual_seed(SEED + first)

    def keep(step: int) -> None:
        ema.update(vae, step)
        if (step + 1) % 500 == 0:
            checkpoint.save(step + 1)

    log, rates = Progress("vae", first, STEPS), {optimizer: LEARNING_RATE}
    factor = partial(cosine, total=STEPS, warmup=100)
    for step in descend(rates, STEPS, factor, first=first, clip=1.0, after=keep):
        x = _batch(free, pixel, rng)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(error) + 1e-3 * kl
        loss.backward()
        log(step, loss=loss.item(), psnr=psnr(error.detach()), kl=kl.item())
    averaged = ema.model
    assert isinstance(averaged, AutoencoderKL)
    return averaged


@torch.no_grad()
def encode(vae: AutoencoderKL, data: Renders) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and deviations of the unscaled latents: float32 [N, 4, 16, 16] each."""
    means, deviations = [], []
    for start in range(0, len(data), 200):
        posterior = vae.encode(to_tensor(data.images[start : start + 200])).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def _held_out_psnr(vae: AutoencoderKL, data: Renders) -> float:
    means, _ = encode(vae, data)
    decoded = torch.cat([vae.decode(part).sample for part in means.split(100)])
    return psnr(decoded - to_tensor(data.images))


def train(work_dir: Path) -> None:
    """Train the autoencoder into WORK_DIR/sdxl/vae, measured in WORK_DIR/vae.json."""
    torch.manual_seed(SEED)
    vae = _optimize(new_vae(), work_dir)
    free = renders(work_dir, "free", "held_out", 480, 2)
    pixel = renders(work_dir, "pixel", "held_out", 480, 2)
    means, _ = encode(vae, free)
    vae.register_to_config(scaling_factor=float(1 / means.std()))
    vae.save_pretrained(work_dir / "sdxl/vae")
    figures = {
        "steps": STEPS,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "held_out_psnr_free": _held_out_psnr(vae, free),
        "held_out_psnr_pixel_art": _held_out_psnr(vae, pixel),
    }
    write_figures(work_dir, "vae", figures)
    print("vae", figures, flush=True)
