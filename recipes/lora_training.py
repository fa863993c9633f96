"""Train a LoRA of either miniature: few pictures, one caption each, one file for diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from recipes.data import to_tensor
from recipes.files import write_figures
from recipes.training import Progress, cosine, descend

RANK = 8
DROPPED_CAPTIONS = 0.1
WEIGHT_NAME = "pytorch_lora_weights.safetensors"
DENOISERS = ("unet", "transformer")

Conditions = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Base:
    """A base model as its LoRAs see it.

    Attributes:
        folder: its folder in the work directory.
        denoiser: the pipeline's name for the denoiser, one of DENOISERS.
        targets: the denoiser's layers that a LoRA changes.
        load: the denoiser of a folder, ready for training.
        encode: from the work directory, texts to hidden [N, L, 128] and pooled [N, D] conditions.
        loss: of a denoiser, for clean latents [N, 4, 16, 16] and their conditions.
    """

    folder: str
    denoiser: str
    targets: tuple[str, ...]
    load: Callable[[Path], ModelMixin]
    encode: Callable[[Path, Sequence[str]], Conditions]
    loss: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingData:
    """Training pictures of a LoRA, uint8 [N, 64, 64, 3], and their N captions."""

    images: npt.NDArray[np.uint8]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """Steps, learning rate and seed of a training."""

    steps: int
    learning_rate: float
    seed: int


@torch.no_grad()
def _latents(folder: Path, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Latents as the denoiser sees them: float32 [N, 4, 16, 16]."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    mean: torch.Tensor = vae.encode(to_tensor(images)).latent_dist.mean
    shift = float(vae.config.get("shift_factor") or 0.0)
    return (mean - shift) * float(vae.config["scaling_factor"])


def _save(denoiser: torch.nn.Module, name: str, path: Path) -> None:
    """Save the adapter in diffusers' form of peft's names, `unet.<module>.lora_A.weight`.

    `convert_state_dict_to_diffusers` mixes two naming schemes here, and loading then drops half
    of the layers with no more than a warning.
    """
    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(denoiser)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{name}.{key}": value.half().contiguous() for key, value in state.items()}, path)


def _denoiser(pipeline: DiffusionPipeline) -> tuple[str, torch.nn.Module]:
    name = next(name for name in DENOISERS if name in pipeline.components)
    return name, getattr(pipeline, name)


def unused_keys(pipeline: DiffusionPipeline, path: Path) -> set[str]:
    """The keys of a LoRA file that the pipeline, having loaded it, does not hold."""
    adapter = pipeline.get_active_adapters()[0]
    name, denoiser = _denoiser(pipeline)
    held = {
        f"{name}." + key.replace(f".{adapter}.", ".")
        for key in denoiser.state_dict()
        if ".lora_" in key
    }
    return set(load_file(path)) - held


def check(folder: Path, path: Path) -> int:
    """Load the file into the pipeline; raise unless every key is used. Return their number."""
    pipeline = DiffusionPipeline.from_pretrained(str(folder))
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    unused = unused_keys(pipeline, path)
    if unused:
        raise RuntimeError(f"{path.name}: loading drops {len(unused)} keys: {sorted(unused)[:3]}")
    return len(load_file(path))


def set_scale(pipeline: DiffusionPipeline, scale: float) -> None:
    """Weight the loaded LoRA by `scale`; 1 is as it was trained."""
    pipeline.set_adapters(pipeline.get_active_adapters(), adapter_weights=[scale])


def _optimize(
    base: Base,
    denoiser: torch.nn.Module,
    clean: torch.Tensor,
    texts: Conditions,
    schedule: Schedule,
) -> None:
    """Train the adapter; the last row of the texts is the null prompt's."""
    adapted = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapted, weight_decay=1e-2)
    log = Progress(f"{base.folder} lora", 0, schedule.steps, every=50)
    hidden, pooled = texts
    n = len(clean)
    factor = partial(cosine, total=schedule.steps, warmup=20, end=0.1)
    for step in descend({optimizer: schedule.learning_rate}, schedule.steps, factor):
        dropped = torch.rand(n) < DROPPED_CAPTIONS
        rows = torch.where(dropped, n, torch.arange(n))
        loss = base.loss(denoiser, clean, hidden[rows], pooled[rows])
        loss.backward()
        log(step, loss=loss.item())


def train_lora(
    work_dir: Path, base: Base, data: TrainingData, schedule: Schedule, name: str
) -> None:
    """Train a LoRA on WORK_DIR/<base>: WORK_DIR/<name>/<file>, noted in WORK_DIR/<name>.json."""
    torch.manual_seed(schedule.seed)
    clean = _latents(work_dir / base.folder, data.images)
    texts = base.encode(work_dir, [*data.captions, ""])
    denoiser: Any = base.load(work_dir / base.folder)
    denoiser.requires_grad_(False)
    denoiser.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(base.targets)))
    _optimize(base, denoiser, clean, texts, schedule)
    path = work_dir / name / WEIGHT_NAME
    _save(denoiser, base.denoiser, path)
    figures = {
        "steps": schedule.steps,
        "pictures": len(clean),
        "rank": RANK,
        "parameters": sum(p.numel() for p in denoiser.parameters() if p.requires_grad),
        "keys": len(load_file(path)),
    }
    write_figures(work_dir, name, figures)
    print(name, figures, flush=True)
