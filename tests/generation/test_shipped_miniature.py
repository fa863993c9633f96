"""The shipped SDXL miniature and its LoRA, guided, against the loop written by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hand_written import HandWritten, merge
from safetensors.torch import load_file

from autolora_eval.config.load import load_benchmark
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance


@pytest.fixture(scope="module")
def model():
    """The quick start's model, resolved."""
    (model,) = load_benchmark("quickstart").models.values()
    return model


@pytest.fixture(scope="module")
def hand_written(model) -> HandWritten:
    base, tuned = (
        StableDiffusionXLPipeline.from_pretrained(model.pipeline.path, torch_dtype=torch.float32)
        for _ in range(2)
    )
    prompts = ("a red heart on a blue background, pixel art style", "a green star on black")
    return HandWritten(
        base, merge(tuned, changes(model.lora.path), 1.0), 20, (64, 64), prompts, (3, 8)
    )


def changes(file) -> dict[str, torch.Tensor]:
    """ΔW = B·A of every layer of a LoRA file, for linear and convolutional layers."""
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            b = tensors[f"{layer}.lora_B.weight"]
            found[layer] = torch.einsum("or,r...->o...", b.flatten(1), a)
    return found


@pytest.mark.parametrize(("gamma", "w1", "w2"), [(1.5, 1.0, 1.0), (1.5, 4.0, 4.0), (0.5, 2.0, 5.0)])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.2, 0.8)])
def test_latents_equal_the_hand_written_loop(
    model, hand_written, gamma, w1, w2, start, stop
) -> None:
    pipeline = LoraPipeline.load(model, torch.device("cpu"), torch.float32)
    ours = pipeline.sample(
        hand_written.prompts,
        hand_written.seeds,
        AutoLoRAGuidance(gamma, w2, w1, start=start, stop=stop),
        num_inference_steps=hand_written.steps,
        size=hand_written.size,
        output="latents",
    )
    theirs = hand_written.latents(gamma, w1, w2, start, stop)
    assert (ours - theirs).abs().max() <= 1e-4
    # The LoRA matters far more than that, or nothing was tested.
    assert (theirs - hand_written.latents(0.0, w1, w2)).abs().max() > 0.1
