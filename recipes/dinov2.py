"""Train the miniature DINOv2: a `transformers.Dinov2Model`, by self-distillation.

As in DINOv2, a student gets large and small crops of pictures. It predicts the output of a teacher,
its own moving average, for the large crops. Sinkhorn-Knopp balances the teacher, and KoLeo spreads
the features. Colours are the same in all crops, because they are part of the content.

Unlike DINOv2, it uses labels: in ten minutes on a laptop, self-distillation from scratch learned
colours but not shapes. The backbone therefore starts from the judge's vision tower, which can
distinguish objects, and one term of the loss classifies the object.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from recipes.domain import (
    SIZE,
    Picture,
    Scene,
    canonical_pixel_art,
    pixel_art,
    render,
    training_scenes,
)
from recipes.shapes import OBJECTS
from recipes.training import Progress, cosine, descend, mixed_precision

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """What decides the weights."""

    seed: int = 20
    steps: int = 1_100
    batch_size: int = 64
    full_size_from: float = 0.7  # share of the steps after which crops have their final size
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    local_views: int = 2
    student_temperature: float = 0.1
    teacher_temperature: float = 0.05
    koleo_weight: float = 0.1
    centre_weight: float = 0.2
    name_weight: float = 1.0


def architecture() -> Dinov2Config:
    """Five layers, 128 wide, patches of 8 × 8 of a 64 × 64 picture: 0.86 M parameters."""
    return Dinov2Config(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        mlp_ratio=3,
        image_size=SIZE,
        patch_size=8,
        hidden_act="quick_gelu",  # the judge's vision tower has it
        attn_implementation="eager",  # twice as fast as SDPA in backward passes on a CPU
    )


def softened(picture: Picture, rng: np.random.Generator) -> Picture:
    """Blur a picture as a small decoder does: by a Gaussian or by a smaller copy, plus noise."""
    image = Image.fromarray(picture)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    else:
        small = int(rng.integers(20, 48))
        image = image.resize((small, small), Image.Resampling.BILINEAR)
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, rng.uniform(0, 4), (SIZE, SIZE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def drawn(scene: Scene, rng: np.random.Generator) -> Picture:
    """One picture of the scene: free style, pixel art of some grid, either of them softened."""
    kind = rng.random()
    if kind < 0.6:
        picture = render(scene, rng)
    elif kind < 0.95:
        picture = pixel_art(scene, rng, grid=int(rng.choice((16, 16, 21, 32))))
    else:
        picture = canonical_pixel_art(scene)
    return softened(picture, rng) if rng.random() < 0.4 else picture


def drawn_pictures(
    count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """New pictures of training scenes, uint8 [count, 64, 64, 3], and their objects, int64."""
    scenes = training_scenes()
    chosen = [scenes[int(rng.integers(len(scenes)))] for _ in range(count)]
    objects = np.array([scene.labels[0] for scene in chosen], dtype=np.int64)
    return np.stack([drawn(scene, rng) for scene in chosen]), objects


def as_pixel_values(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 64, 64, 3] to float32 [N, 3, 64, 64] in [-1, 1], as the image processor does."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(
    images: Tensor, size: int, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """One random crop of each image, resized and perhaps mirrored: [N, 3, size, size].

    `area` bounds the share of the image that a crop covers; images are [N, 3, 64, 64].
    """
    n = len(images)
    share = torch.empty(n).uniform_(*area, generator=generator).sqrt()
    stretch = torch.empty(n).uniform_(-0.15, 0.15, generator=generator).exp()
    side = torch.stack([share * stretch, share / stretch], 1).clamp(max=1.0)
    shift = torch.empty(n, 2).uniform_(-1, 1, generator=generator) * (1 - side)
    sign = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side[:, 0] * sign, side[:, 1]
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta, [n, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change light, contrast and sharpness slightly, but not the hue: [N, 3, H, W]."""
    n = len(images)
    gain = torch.empty(n, 1, 1, 1).uniform_(0.9, 1.1, generator=generator)
    offset = torch.empty(n, 1, 1, 1).uniform_(-0.08, 0.08, generator=generator)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(n, 1, 1, 1, generator=generator)
    amount = amount * (torch.rand(n, 1, 1, 1, generator=generator) < 0.3)
    return torch.lerp(images, blurred, amount) * gain + offset


class Head(nn.Module):
    """DINO's projection head: [N, 128] features to [N, prototypes] cosines."""

    def __init__(self, width: int = 128, prototypes: int = 384) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, 64))

    def forward(self, features: Tensor) -> Tensor:
        """Cosine of each projected feature with each prototype."""
        projected = functional.normalize(self.layers(features).float(), dim=-1)
        return functional.linear(projected, functional.normalize(self.prototypes, dim=-1))


class Network(nn.Module):
    """The exported backbone with the heads that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Dinov2Model(architecture())
        self.head = Head()
        self.namer = nn.Linear(self.backbone.config.hidden_size, len(OBJECTS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] to pooled features [N, 128] and prototype cosines [N, K]."""
        with mixed_precision():
            pooled = self.backbone(pixel_values=images).pooler_output
            return pooled.float(), self.head(pooled)


@torch.no_grad()
def sinkhorn(cosines: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Targets [N, K] whose rows sum to one and whose prototypes are used equally often."""
    targets = torch.exp((cosines - cosines.max()) / temperature)
    for _ in range(rounds):
        targets = targets / targets.sum(0, keepdim=True).clamp_min(1e-12)
        targets = targets / targets.sum(1, keepdim=True).clamp_min(1e-12)
    return targets


def koleo(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko loss: minus the mean log distance to the nearest neighbour."""
    unit = functional.normalize(features, dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    return -torch.log(functional.pairwise_distance(unit, unit[nearest]) + 1e-6).mean()


def common_component(features: Tensor) -> Tensor:
    """Squared length of the mean unit feature, which all pictures share. It should be small."""
    return functional.normalize(features, dim=-1).mean(0).square().sum()


def student_loss(
    recipe: Recipe,
    targets: tuple[Tensor, Tensor],
    pooled: Tensor,
    large: tuple[Tensor, Tensor],
    small: list[Tensor],
) -> Tensor:
    """Cross-entropy of each student view with the teacher's other large views, plus spreading."""
    total, terms = torch.zeros(()), 0
    for i, target in enumerate(targets):
        for logits in [large[1 - i], *small]:
            log_q = functional.log_softmax(logits / recipe.student_temperature, dim=-1)
            total = total - (target * log_q).sum(1).mean()
            terms += 1
    spread = sum((koleo(half) for half in pooled.chunk(2)), torch.zeros(())) / 2
    return (
        total / terms
        + recipe.koleo_weight * spread
        + recipe.centre_weight * common_component(pooled)
    )


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's weights towards the student's."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


def train_step(
    recipe: Recipe,
    student: Network,
    teacher: Network,
    images: Tensor,
    objects: Tensor,
    view: tuple[int, int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The losses of one batch, "total" being minimised; `view` holds both sizes of crops."""
    batch = len(images)
    twice, many = images.repeat(2, 1, 1, 1), images.repeat(recipe.local_views, 1, 1, 1)
    large = disturbed(crops(twice, view[0], (0.6, 1.0), generator), generator)
    small = disturbed(crops(many, view[1], (0.2, 0.5), generator), generator)
    with torch.no_grad():
        targets = sinkhorn(teacher(large)[1], recipe.teacher_temperature)
    pooled, logits = student(large)
    local = student(small)[1].split(batch)
    distilled = student_loss(
        recipe,
        (targets[:batch], targets[batch:]),
        pooled,
        (logits[:batch], logits[batch:]),
        list(local),
    )
    named = functional.cross_entropy(student.namer(pooled), objects.repeat(2))
    return {"total": distilled + recipe.name_weight * named, "named": named}


# A layer's parts in a CLIP vision tower, and in a DINOv2.
_LAYER_NAMES = {
    "layer_norm1": "norm1",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.o_proj",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@torch.no_grad()
def start_from_tower(backbone: Dinov2Model, tower: dict[str, Tensor]) -> None:
    """Copy a CLIP vision tower's layers into the backbone's first ones, and its embeddings.

    A CLIP tower normalises its embeddings and a DINOv2 does not: the norm's gain, over the
    embeddings' usual deviation, and its bias go into the embeddings themselves.
    """
    weights = backbone.state_dict()
    for name, value in tower.items():
        for clip, ours in _LAYER_NAMES.items():
            if name.startswith("encoder.layers.") and f".{clip}." in name:
                layer, end = name.split(".")[2], name.rsplit(".", 1)[1]
                weights[f"encoder.layer.{layer}.{ours}.{end}"].copy_(value)
    patch = tower["embeddings.patch_embedding.weight"]
    place = tower["embeddings.position_embedding.weight"]
    pictures, _ = drawn_pictures(64, np.random.default_rng(0))
    raw = functional.conv2d(as_pixel_values(pictures), patch, stride=patch.shape[-1])
    deviation = (raw.flatten(2).transpose(1, 2) + place[1:]).std(-1).mean()
    gain, shift = tower["pre_layrnorm.weight"] / deviation, tower["pre_layrnorm.bias"]
    weights["embeddings.patch_embeddings.projection.weight"].copy_(
        patch * gain[:, None, None, None]
    )
    weights["embeddings.patch_embeddings.projection.bias"].copy_(shift)
    weights["embeddings.position_embeddings"].copy_((place * gain)[None])
    start = tower["embeddings.class_embedding"] * gain + shift
    weights["embeddings.cls_token"].copy_(start[None, None])


def train(
    recipe: Recipe, tower: dict[str, Tensor] | None, checkpoint: Path | None = None
) -> Dinov2Model:
    """Train, from a CLIP vision tower's weights if given, and return the teacher's backbone."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    student = Network()
    if tower is not None:
        start_from_tower(student.backbone, tower)
    teacher = copy.deepcopy(student).requires_grad_(False)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    progress = Progress("dinov2", 0, recipe.steps, every=100)

    def follow_student(step: int) -> None:
        share = 0.998 - 0.009 * (1 + math.cos(math.pi * step / recipe.steps))
        follow(teacher, student, share)
        if checkpoint is not None and (step + 1) % 200 == 0:
            export(teacher.backbone, checkpoint)

    rates, factor = (
        {optimizer: recipe.learning_rate},
        partial(cosine, total=recipe.steps, warmup=100),
    )
    for step in descend(rates, recipe.steps, factor, clip=3.0, after=follow_student):
        pictures, objects = drawn_pictures(recipe.batch_size, rng)
        view = (SIZE, SIZE // 2) if step / recipe.steps >= recipe.full_size_from else (48, 24)
        batch = as_pixel_values(pictures), torch.from_numpy(objects)
        losses = train_step(recipe, student, teacher, *batch, view, generator)
        losses["total"].backward()
        progress(step, **{name: value.item() for name, value in losses.items()})
    return teacher.backbone


def export(backbone: Dinov2Model, directory: Path) -> None:
    """Write float16 weights and the image processor so that the Auto classes load them."""
    half = copy.deepcopy(backbone).to(torch.float16)
    half.config._attn_implementation = "sdpa"
    half.save_pretrained(directory)
    BitImageProcessor(
        do_resize=True,
        size={"shortest_edge": SIZE},
        do_center_crop=True,
        crop_size={"height": SIZE, "width": SIZE},
        resample=Image.Resampling.BICUBIC,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    ).save_pretrained(directory)
