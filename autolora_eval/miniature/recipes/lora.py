"""The pixel-art LoRA: a few pictures, one style, an ordinary file that diffusers loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from autolora_eval.miniature.recipes.data import Renders
from autolora_eval.miniature.recipes.domain import (
    COLOURS,
    Scene,
    canonical_pixel_art,
    caption,
    is_held_out,
)
from autolora_eval.miniature.recipes.shapes import OBJECTS
from autolora_eval.miniature.recipes.text import TextEncoders, token_ids
from autolora_eval.miniature.recipes.training import Progress, cosine, set_lr
from autolora_eval.miniature.recipes.unet import denoising_loss, training_scheduler
from autolora_eval.miniature.recipes.vae import encode

STEPS = 400
LEARNING_RATE = 1e-3
RANK = 8
N_PICTURES = 24
DROPPED_CAPTIONS = 0.1
SEED = 51
WEIGHT_NAME = "pytorch_lora_weights.safetensors"
# Attention alone cannot move the style: measured clearly worse in a trial.
TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
]


def scenes() -> list[Scene]:
    """The few training scenes shown: every object and every colour three times."""
    chosen = []
    for k in range(N_PICTURES):
        turn, position = divmod(k, len(OBJECTS))
        candidates = [
            Scene(OBJECTS[position], COLOURS[(position + 3 * turn) % 8], COLOURS[b])
            for b in ((position * 3 + 5 * turn + 1 + shift) % 8 for shift in range(8))
            if b != (position + 3 * turn) % 8
        ]
        chosen.append(next(scene for scene in candidates if not is_held_out(scene)))
    return chosen


def _encoded(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled latents [N, 4, 16, 16], hidden [N + 1, 24, 128], pooled [N + 1, 64]; last: null."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    labels = torch.tensor([scene.labels for scene in scenes()], dtype=torch.uint8).numpy()
    images = torch.stack([torch.from_numpy(canonical_pixel_art(s)) for s in scenes()]).numpy()
    clean, _ = encode(vae, Renders(images, labels))
    texts = [*(caption(scene, style=True) for scene in scenes()), ""]
    encoders = TextEncoders.load(folder)
    with torch.no_grad():
        hidden, pooled = encoders.encode(token_ids(encoders.tokenizer, texts))
    return clean * float(vae.config["scaling_factor"]), hidden, pooled


def save(unet: UNet2DConditionModel, path: Path) -> None:
    """Save the adapter in diffusers' form of peft's names, `unet.<module>.lora_A.weight`.

    `convert_state_dict_to_diffusers` mixes two naming schemes here, and loading then drops half
    of the layers with no more than a warning.
    """
    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(unet)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"unet.{key}": value.half().contiguous() for key, value in state.items()}, path)


def unused_keys(pipeline: StableDiffusionXLPipeline, path: Path) -> set[str]:
    """The keys of a LoRA file that the pipeline, having loaded it, does not hold."""
    name = pipeline.get_active_adapters()[0]
    held = {
        "unet." + key.replace(f".{name}.", ".")
        for key in pipeline.unet.state_dict()
        if ".lora_" in key
    }
    return set(load_file(path)) - held


def check(folder: Path, path: Path) -> int:
    """Load the file into the pipeline; raise unless every key is used. Return their number."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(folder))
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    unused = unused_keys(pipeline, path)
    if unused:
        raise RuntimeError(f"{path.name}: loading drops {len(unused)} keys: {sorted(unused)[:3]}")
    return len(load_file(path))


def train(work_dir: Path) -> None:
    """Train the LoRA on WORK_DIR/sdxl into WORK_DIR/pixel_art_lora, noted in lora.json."""
    torch.manual_seed(SEED)
    folder = work_dir / "sdxl"
    clean, hidden, pooled = _encoded(folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    adapted = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapted, weight_decay=1e-2)
    scheduler = training_scheduler()
    log = Progress("lora", 0, STEPS, every=50)
    n = len(clean)
    for step in range(STEPS):
        set_lr(optimizer, LEARNING_RATE * cosine(step, STEPS, warmup=20, end=0.1))
        dropped = torch.rand(n) < DROPPED_CAPTIONS
        rows = torch.where(dropped, n, torch.arange(n))
        loss = denoising_loss(unet, scheduler, clean, hidden[rows], pooled[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log(step, loss=loss.item())
    path = work_dir / "pixel_art_lora" / WEIGHT_NAME
    save(unet, path)
    figures = {
        "steps": STEPS,
        "pictures": n,
        "rank": RANK,
        "parameters": sum(p.numel() for p in adapted),
        "keys": len(load_file(path)),
    }
    (work_dir / "lora.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print("lora", figures, flush=True)
