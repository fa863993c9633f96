"""The oracle: a small CNN that reads pictures of the domain, for measuring; not shipped.

It is trained only on drawn pictures of the training scenes, and measured on drawn pictures of the
held-out scenes. This estimates its errors on generated pictures of held-out scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn.functional import cross_entropy

from recipes.data import (
    Rows,
    Split,
    draw,
    renders,
    scenes_of,
    to_images,
    to_tensor,
)
from recipes.domain import BACKGROUNDS, COLOURS, SIZE, Scene
from recipes.files import write_figures
from recipes.grades import GRADES, NO_OBJECT, graded_pixel_art, mangled
from recipes.shapes import OBJECTS
from recipes.training import Progress, cosine, descend, mixed_precision
from recipes.vae import DATA_SEED, N_FREE

BATCH = 96
LEARNING_RATE = 2e-3
SEED = 41
OBJECT_CLASSES = (*OBJECTS, NO_OBJECT)
_CLASSES = (len(OBJECT_CLASSES), len(COLOURS), len(BACKGROUNDS), len(GRADES))
_UNKNOWN = -100  # what cross_entropy ignores


@dataclass(frozen=True)
class Effort:
    """How long an oracle learns, and from how many drawn pictures; its files have the name."""

    name: str
    steps: int
    graded: int
    mangled: int
    decoded: int


USUAL = Effort("oracle", 1_100, 16_000, 12_000, 6_000)
# For the labels of the judge, which would also learn the mistakes of the oracle.
THOROUGH = Effort("thorough_oracle", 3_300, 24_000, 18_000, 12_000)


def _conv(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class OracleNet(nn.Module):
    """float [N, 3, 64, 64] in [-1, 1] to logits [N, outputs], here 9 + 8 + 8 + 5."""

    def __init__(self, outputs: int = sum(_CLASSES)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 32, 2, 5),
            _conv(32, 32, 1),
            _conv(32, 64, 2),
            _conv(64, 64, 1),
            _conv(64, 96, 2),
            _conv(96, 128, 2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128 * 16, 192),
            nn.ReLU(),
        )
        self.head = nn.Linear(192, outputs)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits of all heads, side by side."""
        logits: torch.Tensor = self.head(self.features(pictures))
        return logits


@dataclass(frozen=True)
class Readings:
    """What the oracle reads in N pictures.

    object: int64 [N] into OBJECT_CLASSES (8 is none); colour, background: int64 [N] into COLOURS
    and BACKGROUNDS; grade: int64 [N] in 1..5; confidence: float32 [N] in (0, 1], the least
    probability among the chosen object, colour and background.
    """

    object: npt.NDArray[np.int64]
    colour: npt.NDArray[np.int64]
    background: npt.NDArray[np.int64]
    grade: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]

    def right(self, scenes: Sequence[Scene]) -> npt.NDArray[np.bool_]:
        """Boolean [N, 3]: whether object, colour and background are the scene's."""
        found = np.stack([self.object, self.colour, self.background], 1)
        return np.asarray(found == np.array([scene.labels for scene in scenes]))


class Oracle:
    """A trained oracle, loaded from the work directory."""

    def __init__(self, work_dir: Path, effort: Effort = USUAL) -> None:
        self.net = OracleNet().eval()
        self.net.load_state_dict(torch.load(work_dir / f"{effort.name}.pt", weights_only=True))

    @torch.no_grad()
    def read(self, images: npt.NDArray[np.uint8]) -> Readings:
        """Read uint8 pictures [N, 64, 64, 3]."""
        logits = torch.cat([self.net(to_tensor(images[i : i + 200])) for i in _starts(images)])
        parts = [part.softmax(-1).max(-1) for part in logits.split(_CLASSES, -1)]
        labels = [part.indices.numpy() for part in parts]
        sure = torch.stack([part.values for part in parts[:3]]).amin(0).numpy()
        return Readings(labels[0], labels[1], labels[2], labels[3] + 1, sure)


def _starts(images: npt.NDArray[np.uint8]) -> range:
    return range(0, len(images), 200)


@dataclass(frozen=True)
class Labelled(Rows):
    """Pictures uint8 [N, 64, 64, 3], labels int64 [N, 4]: object, colour, background, grade - 1."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def graded(split: Split, n: int, seed: int, grades: Sequence[int] = GRADES) -> Labelled:
    """Draw n graded pictures of the split's scenes, every grade equally often."""
    rng = np.random.default_rng((seed, 2))
    scenes = scenes_of(split)
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty((n, 4), dtype=np.int64)
    for i in range(n):
        scene, grade = scenes[int(rng.integers(len(scenes)))], grades[i % len(grades)]
        images[i] = graded_pixel_art(scene, grade, rng)
        labels[i] = (*scene.labels, grade - 1)
    return Labelled(images, labels)


def without_object(split: Split, n: int, seed: int) -> Labelled:
    """Draw n pictures in the scenes' colours with no nameable object, every other one pixel art."""
    rng = np.random.default_rng((seed, 3))
    scenes = scenes_of(split)
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty((n, 4), dtype=np.int64)
    for i in range(n):
        scene, pixel = scenes[int(rng.integers(len(scenes)))], i % 2 == 1
        images[i] = mangled(scene, rng, pixel)
        labels[i] = (len(OBJECTS), *scene.labels[1:], 4 if pixel else 0)
    return Labelled(images, labels)


@torch.no_grad()
def _decoded(vae: AutoencoderKL, data: Labelled) -> Labelled:
    """Return the pictures after the autoencoder, which changes their style in unknown ways."""
    images = [
        to_images(vae.decode(vae.encode(to_tensor(data.images[i : i + 200])).latent_dist.mean)[0])
        for i in _starts(data.images)
    ]
    labels = data.labels.copy()
    labels[labels[:, 3] > 0, 3] = _UNKNOWN
    return Labelled(np.concatenate(images), labels)


def _training_set(work_dir: Path, effort: Effort) -> Labelled:
    free = renders(work_dir, "free", "training", N_FREE, DATA_SEED)
    plain = Labelled(
        free.images[:20_000],
        np.pad(free.labels[:20_000].astype(np.int64), ((0, 0), (0, 1))),
    )
    drawn = Labelled.concatenate(
        plain,
        graded("training", effort.graded, SEED, GRADES[1:]),
        without_object("training", effort.mangled, SEED),
    )
    vae = AutoencoderKL.from_pretrained(work_dir / "sdxl/vae").eval()
    some = np.random.default_rng(SEED).permutation(len(drawn.images))[: effort.decoded]
    return Labelled.concatenate(drawn, _decoded(vae, drawn.rows(some)))


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = [
        cross_entropy(part, labels[:, k], ignore_index=_UNKNOWN, label_smoothing=0.02)
        for k, part in enumerate(logits.split(_CLASSES, -1))
    ]
    return torch.stack(losses).sum()


def _accuracy(oracle: Oracle) -> dict[str, float]:
    """Shares of right readings on drawn pictures of held-out scenes."""
    free = draw("free", "held_out", 960, 7)
    pixel = draw("pixel", "held_out", 960, 7)
    style = graded("held_out", 1000, 7)
    broken = without_object("held_out", 600, 7)
    figures: dict[str, float] = {}
    for name, data in (("free", free), ("pixel_art", pixel)):
        found = oracle.read(data.images)
        for k, key in enumerate(("object", "colour", "background")):
            right = getattr(found, key) == data.labels[:, k]
            figures[f"{key}_{name}"] = float(right.mean())
    distance = np.abs(oracle.read(style.images).grade - 1 - style.labels[:, 3])
    figures["grade_exact"] = float((distance == 0).mean())
    figures["grade_within_one"] = float((distance <= 1).mean())
    figures["mangled_read_as_none"] = float(
        (oracle.read(broken.images).object == len(OBJECTS)).mean()
    )
    return figures


def train_thoroughly(work_dir: Path) -> None:
    """Train the oracle that labels pictures for the judge; see `train`."""
    train(work_dir, THOROUGH)


def train(work_dir: Path, effort: Effort = USUAL) -> None:
    """Train an oracle into WORK_DIR/<name>.pt, measured in WORK_DIR/<name>.json."""
    torch.manual_seed(SEED)
    data = _training_set(work_dir, effort)
    labels = torch.from_numpy(data.labels)
    net = OracleNet()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    rng = np.random.default_rng(SEED)
    log = Progress(effort.name, 0, effort.steps)
    for step in descend(
        {optimizer: LEARNING_RATE}, effort.steps, partial(cosine, total=effort.steps)
    ):
        rows = rng.integers(0, len(labels), BATCH)
        x = to_tensor(data.images[rows])
        if rng.random() < 0.5:
            x = x.flip(3)
        with mixed_precision():
            logits = net(x)
        loss = _loss(logits.float(), labels[rows])
        loss.backward()
        log(step, loss=loss.item())
    torch.save(net.state_dict(), work_dir / f"{effort.name}.pt")
    figures = {"steps": effort.steps, **_accuracy(Oracle(work_dir, effort))}
    write_figures(work_dir, effort.name, figures)
    print(effort.name, figures, flush=True)
