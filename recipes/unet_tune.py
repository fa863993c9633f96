"""Continues the training of the SDXL denoiser with more stars and moons, its weakest objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from recipes.data import Renders
from recipes.domain import SIZE, render, training_scenes
from recipes.files import write_figures
from recipes.latents import Latents
from recipes.text import TextEncoders
from recipes.unet import conditions, latents, train_unet
from recipes.vae import encode

STEPS = 4000
BATCH = 48
WEAK_IN_BATCH = 12  # beside those that an even draw holds
LEARNING_RATE = 6e-4
SEED = 32
WEAK = ("star", "moon")
N_WEAK = 8_000


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


def train(work_dir: Path) -> None:
    """Train WORK_DIR/sdxl/unet for STEPS more, in place, resuming from a checkpoint of its own."""
    torch.manual_seed(SEED)
    texts = conditions(TextEncoders.load(work_dir / "sdxl"))
    even, weak = latents(work_dir), _weak_latents(work_dir)
    data = _joined(even, weak)
    unet = UNet2DConditionModel.from_pretrained(work_dir / "sdxl/unet")

    def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        extra = len(even.scene) + torch.randint(0, len(weak.scene), (WEAK_IN_BATCH,))
        evenly = torch.randint(0, len(even.scene), (BATCH - WEAK_IN_BATCH,))
        rows = torch.cat([evenly, extra])
        hidden, pooled = texts.draw(data.scene[rows])
        return data.draw(rows), hidden, pooled

    schedule = {"learning_rate": LEARNING_RATE, "flat": 0.5}
    train_unet(work_dir, unet, "unet_tuned", draw, seed=SEED, steps=STEPS, **schedule)
    figures = {"steps": STEPS, "samples": STEPS * BATCH, "weak": list(WEAK)}
    write_figures(work_dir, "unet_tuned", figures)
    print("unet tuned", figures, flush=True)
