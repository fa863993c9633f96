"""AutoLoRA on the real SDXL equals the loop written by hand, in float32.

Two models of 14 GB do not fit 16 GB, so the loop merges the LoRA into the weights of one model
before each prediction that needs it, and takes it out again.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.guiders import ClassifierFreeGuidance
from hand_written import SDXL, load
from safetensors.torch import load_file

from autolora_eval.config.load import load_benchmark
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance

STEPS, SIZE, PROMPTS, SEEDS = 2, (64, 64), ("a red cat",), (7,)
GAMMA, W1, W2 = 1.5, 3.0, 6.0
# Relative to the largest latent. Merging rounds each weight once more than adding B·A·x does.
TOLERANCE = 1e-4
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


class Switched:
    """The pipeline with the LoRA merged into its weights, or without it.

    Args:
        pipe: the pipeline, shared by both.
        changes: (weight, B, A) for each tuned layer; alpha / rank is in B.
        scale: 1 with the LoRA, 0 without.
    """

    merged = 0.0

    def __init__(self, pipe: Any, changes: list[tuple[torch.Tensor, ...]], scale: float) -> None:
        self.pipe, self.changes, self.scale = pipe, changes, scale

    def __getattr__(self, name: str) -> Any:
        if name in ("unet", "encode_prompt") and Switched.merged != self.scale:
            for weight, b, a in self.changes:
                weight.addmm_(b, a, alpha=self.scale - Switched.merged)
            Switched.merged = self.scale
        return getattr(self.pipe, name)


def ours(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents of AutoLoRA with CFG, and those of the LoRA with CFG."""
    model = load_benchmark(Path(__file__).with_name("benchmark.yaml")).models["SDXL"]
    loaded = LoraPipeline.load(model, torch.device("cpu"), torch.float32)
    expected = sum(json.loads((folder / "sdxl.json").read_text()).values())
    assert loaded.lora_layers[0] == expected == 722 + 264, loaded.lora_layers
    autolora, cfg = (
        loaded.sample(
            PROMPTS, SEEDS, guider, num_inference_steps=STEPS, size=SIZE, output="latents"
        )
        for guider in (AutoLoRAGuidance(GAMMA, W2, W1), ClassifierFreeGuidance(guidance_scale=W2))
    )
    return autolora.numpy(), cfg.numpy()


def by_hand(folder: Path) -> np.ndarray:
    """Return the latents of the loop written by hand."""
    pipe = load(SDXL, folder / "sdxl")
    tensors = load_file(folder / "sdxl_lora.safetensors")
    changes = []
    for component, prefix in PREFIXES.items():
        for name, layer in getattr(pipe, component).named_modules():
            stem = name if component == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            stem = prefix + stem.replace(".", "_")
            if f"{stem}.alpha" in tensors:
                a, b, alpha = (
                    tensors.pop(f"{stem}.{part}").float()
                    for part in ("lora_down.weight", "lora_up.weight", "alpha")
                )
                changes.append((layer.weight.data, b * (alpha / len(a)), a))
    assert not tensors, list(tensors)
    base, tuned = (Switched(pipe, changes, scale) for scale in (0.0, 1.0))
    return SDXL(base, tuned, STEPS, SIZE, PROMPTS, SEEDS).latents(GAMMA, W1, W2).numpy()


def main(folder: Path) -> None:
    """Compare, and print how far they are apart. Each has a process, whose memory is given back."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        autolora, cfg = pool.apply(ours, (folder,))
        expected = pool.apply(by_hand, (folder,))
    size = np.abs(expected).max()
    error, without = (np.abs(found - expected).max() / size for found in (autolora, cfg))
    print(f"off the loop, of the largest latent: AutoLoRA {error:.1e}, LoRA+CFG {without:.1e}")
    assert error <= TOLERANCE < without / 10


if __name__ == "__main__":
    main(Path(sys.argv[1]))
