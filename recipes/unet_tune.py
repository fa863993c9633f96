"""Trains the SDXL denoiser on where it fell short: stars and moons, seen more often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from recipes.data import Renders
from recipes.domain import SIZE, render, training_scenes
from recipes.files import write_figures
from recipes.latents import Latents
from recipes.text import TextEncoders
from recipes.training import Checkpoint, Ema, Progress, cosine, set_lr
from recipes.unet import (
    SAVE_EVERY,
    conditions,
    denoising_loss,
    latents,
    new_unet,
    training_scheduler,
)
from recipes.vae import encode

STEPS = 4000
BATCH = 48
WEAK_IN_BATCH = 12  # beside those that an even draw holds
LEARNING_RATE = 6e-4
SEED = 32
WEAK = ("star", "moon")
N_WEAK = 8_000
_CHECKPOINT = "checkpoints/unet_tuned.pt"


def _weak_latents(work_dir: Path) -> Latents:
    """Scaled latents of fresh pictures of the weak objects, kept in the work directory."""
    path = work_dir / "data/latents_weak.pt"
    if not path.exists():
        rng = np.random.default_rng(SEED)
        rows = [i for i, scene in enumerate(training_scenes()) if scene.object in WEAK]
        chosen = np.array(rows)[rng.permutation(np.arange(N_WEAK) % len(rows))]
        images = np.empty((N_WEAK, SIZE, SIZE, 3), dtype=np.uint8)
        for i, row in enumerate(chosen):
            images[i] = render(training_scenes()[row], rng)
        vae = AutoencoderKL.from_pretrained(work_dir / "sdxl/vae").eval()
        raw = encode(vae, Renders(images, np.zeros((N_WEAK, 3), np.uint8)))
        scale = float(vae.config["scaling_factor"])
        Latents(*raw, torch.from_numpy(chosen)).rescaled(scale).save(path)
    return Latents.load(path)


def _joined(first: Latents, second: Latents) -> Latents:
    return Latents(
        torch.cat([first.mean, second.mean]),
        torch.cat([first.deviation, second.deviation]),
        torch.cat([first.scene, second.scene]),
    )


def tuned(work_dir: Path) -> UNet2DConditionModel:
    """The averaged weights as the last checkpoint has them, finished or not."""
    unet = new_unet()
    state = torch.load(work_dir / _CHECKPOINT, weights_only=True, mmap=True)
    unet.load_state_dict(state["ema"])
    return unet.eval()


def train(work_dir: Path) -> None:
    """Train WORK_DIR/sdxl/unet for STEPS more, in place, resuming from a checkpoint of its own."""
    torch.manual_seed(SEED)
    texts = conditions(TextEncoders.load(work_dir / "sdxl"))
    even, weak = latents(work_dir), _weak_latents(work_dir)
    data = _joined(even, weak)
    unet = UNet2DConditionModel.from_pretrained(work_dir / "sdxl/unet")
    unet.set_attn_processor(AttnProcessor())
    scheduler = training_scheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0.01, betas=(0.9, 0.99))
    ema = Ema(unet, 0.998)
    checkpoint = Checkpoint(work_dir / _CHECKPOINT, model=unet, ema=ema.model, optimizer=optimizer)
    first = checkpoint.load()
    torch.manual_seed(SEED + first)
    log = Progress("unet tuned", first, STEPS)
    for step in range(first, STEPS):
        set_lr(optimizer, LEARNING_RATE * cosine(step, STEPS, warmup=100, flat=0.5))
        extra = len(even.scene) + torch.randint(0, len(weak.scene), (WEAK_IN_BATCH,))
        evenly = torch.randint(0, len(even.scene), (BATCH - WEAK_IN_BATCH,))
        rows = torch.cat([evenly, extra])
        hidden, pooled = texts.draw(data.scene[rows])
        loss = denoising_loss(unet, scheduler, data.draw(rows), hidden, pooled)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(unet, step)
        log(step, loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            checkpoint.save(step + 1)
    tuned(work_dir).save_pretrained(work_dir / "sdxl/unet")
    figures = {"steps": STEPS, "samples": STEPS * BATCH, "weak": list(WEAK)}
    write_figures(work_dir, "unet_tuned", figures)
    print("unet tuned", figures, flush=True)
