"""The shipped miniatures with their LoRAs, guided, equal the loop written by hand."""

from pathlib import Path

import pytest
import torch
from hand_written import SD3, SDXL, load, merge
from safetensors.torch import load_file
from tiny_models import STEPS, TinyModel, tiny_plan

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance

pytestmark = pytest.mark.model

PROMPTS = ("a red heart on a blue background, pixel art style", "a green star on black")
SEEDS = (3, 8)


def weight_changes(file: Path) -> dict[str, torch.Tensor]:
    """ΔW = B·A of every layer of a LoRA file, for linear and convolutional layers."""
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            b = tensors[f"{layer}.lora_B.weight"]
            found[layer] = torch.einsum("or,r...->o...", b.flatten(1), a)
    return found


@pytest.mark.parametrize(
    ("kind", "pipeline", "lora"),
    [(SDXL, "sdxl", "pixel_art_lora"), (SD3, "sd3", "sd3_pixel_art_lora")],
)
def test_latents_equal_the_hand_written_loop(kind, pipeline, lora, tmp_path):
    tiny = TinyModel(f"miniature:{pipeline}", f"miniature:{lora}", {})
    plan = tiny_plan(tmp_path, tiny, {"AutoLoRA": {"guider": "autolora"}})
    (model,) = plan.benchmark.models.values()
    assert model.size == (64, 64)
    base, tuned = (load(kind, Path(model.pipeline.path)) for _ in range(2))
    merged = merge(tuned, weight_changes(model.loras[0].source.path), 1.0)
    by_hand = kind(base, merged, STEPS, model.size, PROMPTS, SEEDS)
    ours = LoraPipeline.load(model, torch.device("cpu"), torch.float32).sample(
        PROMPTS,
        SEEDS,
        AutoLoRAGuidance(1.5, 4.0, 3.0, start=0.2, stop=0.8),
        num_inference_steps=STEPS,
        size=model.size,
        output="latents",
    )
    theirs = by_hand.latents(1.5, 3.0, 4.0, 0.2, 0.8)
    assert (ours - theirs).abs().max() <= 1e-4
    # The LoRA changes far more than the tolerance.
    assert (theirs - by_hand.latents(0.0, 3.0, 4.0)).abs().max() > 0.1
