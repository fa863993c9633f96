"""Drawn pictures after the miniature SDXL's autoencoder, which look like generated ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from recipes.data import to_images, to_tensor
from recipes.domain import training_scenes
from recipes.judge_data import FREE, Pictures, drawn
from recipes.oracle import USUAL, Effort, Oracle

_BATCH = 100
_MOST_NOISE = 0.35


@torch.no_grad()
def decoded(work_dir: Path, images: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """Return pictures uint8 [N, 64, 64, 3] encoded, with some noise added, and decoded.

    The noise, up to a third of the latents' deviation, simulates errors of the denoiser.
    """
    generator = torch.Generator().manual_seed(seed)
    autoencoder = AutoencoderKL.from_pretrained(work_dir / "sdxl" / "vae").eval()
    result = np.empty_like(images)
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        latents = autoencoder.encode(to_tensor(images[part])).latent_dist.mean
        strength = torch.rand(len(latents), 1, 1, 1, generator=generator) * _MOST_NOISE
        noise = torch.randn(latents.shape, generator=generator) * latents.std()
        result[part] = to_images(autoencoder.decode(latents + strength * noise).sample)
    return result


def decoded_pictures(work_dir: Path, count: int, seed: int, effort: Effort = USUAL) -> Pictures:
    """Drawn pictures of training scenes as the decoder returns them.

    Object, colour and background are those drawn. A free render stays of grade 1; what the decoder
    leaves of pixel art is graded by the oracle, as generated pictures are.
    """
    plain = drawn(training_scenes(), count, np.random.default_rng(seed))
    images = decoded(work_dir, plain.images, seed)
    truth = plain.truth.copy()
    pixel_art = truth[:, 3] != FREE
    truth[pixel_art, 3] = Oracle(work_dir, effort).read(images).grade[pixel_art]
    return Pictures(images, truth, plain.named)
