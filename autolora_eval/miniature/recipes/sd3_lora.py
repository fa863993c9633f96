"""The pixel-art LoRA of the SD3 miniature: SDXL's few pictures, the same file format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from autolora_eval.miniature.recipes.data import Renders
from autolora_eval.miniature.recipes.domain import canonical_pixel_art, caption
from autolora_eval.miniature.recipes.lora import WEIGHT_NAME, scenes
from autolora_eval.miniature.recipes.sd3 import attend_briefly, flow_loss
from autolora_eval.miniature.recipes.sd3_text import Sd3Encoders
from autolora_eval.miniature.recipes.training import Progress, cosine, set_lr
from autolora_eval.miniature.recipes.vae import encode

STEPS = 450
LEARNING_RATE = 1.2e-3
RANK = 8
DROPPED_CAPTIONS = 0.1
SEED = 91
# The joint attention of pixels and text, and the pixels' feed-forward layers.
TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
]


def _encoded(work_dir: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents [N, 4, 16, 16], hidden [N + 1, 47, 128], pooled [N + 1, 128]; the last: null."""
    vae = AutoencoderKL.from_pretrained(work_dir / "sd3/vae").eval()
    labels = torch.tensor([scene.labels for scene in scenes()], dtype=torch.uint8).numpy()
    images = torch.stack([torch.from_numpy(canonical_pixel_art(s)) for s in scenes()]).numpy()
    clean, _ = encode(vae, Renders(images, labels))
    texts = [*(caption(scene, style=True) for scene in scenes()), ""]
    hidden, pooled = Sd3Encoders.load(work_dir).encode(texts)
    shift, scale = float(vae.config["shift_factor"]), float(vae.config["scaling_factor"])
    return (clean - shift) * scale, hidden, pooled


def save(transformer: SD3Transformer2DModel, path: Path) -> None:
    """Save the adapter in diffusers' form of peft's names, `transformer.<module>.lora_A.weight`."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(transformer)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"transformer.{key}": value.half().contiguous() for key, value in state.items()}, path
    )


def unused_keys(pipeline: StableDiffusion3Pipeline, path: Path) -> set[str]:
    """The keys of a LoRA file that the pipeline, having loaded it, does not hold."""
    name = pipeline.get_active_adapters()[0]
    held = {
        "transformer." + key.replace(f".{name}.", ".")
        for key in pipeline.transformer.state_dict()
        if ".lora_" in key
    }
    return set(load_file(path)) - held


def check(folder: Path, path: Path) -> int:
    """Load the file into the pipeline; raise unless every key is used. Return their number."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(str(folder))
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    unused = unused_keys(pipeline, path)
    if unused:
        raise RuntimeError(f"{path.name}: loading drops {len(unused)} keys: {sorted(unused)[:3]}")
    return len(load_file(path))


def train(work_dir: Path) -> None:
    """Train the LoRA on WORK_DIR/sd3 into WORK_DIR/sd3_pixel_art_lora, noted in sd3_lora.json."""
    torch.manual_seed(SEED)
    clean, hidden, pooled = _encoded(work_dir)
    transformer = SD3Transformer2DModel.from_pretrained(work_dir / "sd3/transformer")
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    attend_briefly(transformer)
    adapted = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapted, weight_decay=1e-2)
    log = Progress("sd3 lora", 0, STEPS, every=50)
    n = len(clean)
    for step in range(STEPS):
        set_lr(optimizer, LEARNING_RATE * cosine(step, STEPS, warmup=20, end=0.1))
        dropped = torch.rand(n) < DROPPED_CAPTIONS
        rows = torch.where(dropped, n, torch.arange(n))
        loss = flow_loss(transformer, clean, hidden[rows], pooled[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log(step, loss=loss.item())
    path = work_dir / "sd3_pixel_art_lora" / WEIGHT_NAME
    save(transformer, path)
    figures = {
        "steps": STEPS,
        "pictures": n,
        "rank": RANK,
        "parameters": sum(p.numel() for p in adapted),
        "keys": len(load_file(path)),
    }
    (work_dir / "sd3_lora.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print("sd3 lora", figures, flush=True)
