"""Drawn pictures as the miniature SDXL's decoder returns them: what generated ones look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from autolora_eval.miniature.recipes.data import to_images, to_tensor
from autolora_eval.miniature.recipes.domain import training_scenes
from autolora_eval.miniature.recipes.judge_data import FREE, Pictures, drawn
from autolora_eval.miniature.recipes.oracle import Oracle

_BATCH = 100
_MOST_NOISE = 0.35


@torch.no_grad()
def decoded_pictures(work_dir: Path, count: int, seed: int) -> Pictures:
    """Drawn pictures of training scenes, encoded, disturbed a little and decoded.

    The noise, up to a third of the latents' deviation, stands for the denoiser's mistakes.
    Object, colour and background are those drawn. A free render stays of grade 1; what the decoder
    leaves of pixel art is graded by the oracle, as generated pictures are.
    """
    generator = torch.Generator().manual_seed(seed)
    plain = drawn(training_scenes(), count, np.random.default_rng(seed))
    autoencoder = AutoencoderKL.from_pretrained(work_dir / "sdxl" / "vae").eval()
    images = np.empty_like(plain.images)
    for start in range(0, count, _BATCH):
        part = slice(start, start + _BATCH)
        latents = autoencoder.encode(to_tensor(plain.images[part])).latent_dist.mean
        strength = torch.rand(len(latents), 1, 1, 1, generator=generator) * _MOST_NOISE
        noise = torch.randn(latents.shape, generator=generator) * latents.std()
        images[part] = to_images(autoencoder.decode(latents + strength * noise).sample)
    truth = plain.truth.copy()
    pixel_art = truth[:, 3] != FREE
    truth[pixel_art, 3] = Oracle(work_dir).read(images).grade[pixel_art]
    return Pictures(images, truth, plain.named)
