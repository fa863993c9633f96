"""The training pictures as latents: posteriors of the autoencoder, encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from recipes.data import renders
from recipes.domain import training_scenes
from recipes.vae import DATA_SEED, N_FREE, encode


@dataclass(frozen=True)
class Latents:
    """Latents in the denoiser's scale, and which training scene each shows.

    mean, deviation: float32 [N, 4, 16, 16]; scene: int64 [N].
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    scene: torch.Tensor

    def draw(self, rows: torch.Tensor) -> torch.Tensor:
        """A sample of the encoder's posterior of each row."""
        return self.mean[rows] + self.deviation[rows] * torch.randn_like(self.mean[rows])

    def rescaled(self, scale: float, shift: float = 0.0) -> Latents:
        """The same with `shift` taken off and multiplied by `scale`."""
        return Latents((self.mean - shift) * scale, self.deviation * scale, self.scene)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        torch.save((self.mean, self.deviation, self.scene), path)

    @classmethod
    def load(cls, path: Path) -> Latents:
        """Read what `save` wrote."""
        return cls(*torch.load(path, weights_only=True))


def training_latents(work_dir: Path, vae: AutoencoderKL) -> Latents:
    """The unscaled latents of all training pictures."""
    data = renders(work_dir, "free", "training", N_FREE, DATA_SEED)
    index = {scene.labels: i for i, scene in enumerate(training_scenes())}
    scene = torch.tensor([index[tuple(int(v) for v in row)] for row in data.labels])  # type: ignore[index]
    return Latents(*encode(vae, data), scene)
