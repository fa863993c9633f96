"""The shipped SD3 miniature and its LoRA, by their names, guided, against the loop by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hand_written import merge
from hand_written_sd3 import HandWritten, load
from safetensors.torch import load_file

from autolora_eval.config.load import load_benchmark
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    """The miniature as a benchmark's file names it, resolved."""
    content = {
        "name": "sd3",
        "prompts": ["a red heart on a blue background, pixel art style"],
        "seeds": {"start": 0, "count": 1},
        "models": {
            "SD3 miniature": {
                "pipeline": "miniature:sd3",
                "lora": {"path": "miniature:sd3_pixel_art_lora"},
                "num_inference_steps": 20,
            }
        },
        "methods": {"AutoLoRA+CFG": {"guider": "autolora", "autolora_scale": 1.5}},
        "features": {"model": "miniature:dinov2"},
    }
    path = tmp_path_factory.mktemp("sd3") / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content))
    (model,) = load_benchmark(path).models.values()
    return model


@pytest.fixture(scope="module")
def hand_written(model) -> HandWritten:
    base, tuned = (load(Path(model.pipeline.path)) for _ in range(2))
    prompts = ("a red heart on a blue background, pixel art style", "a green star on black")
    return HandWritten(
        base, merge(tuned, changes(model.lora.path), 1.0), 12, (64, 64), prompts, (3, 8)
    )


def changes(file) -> dict[str, torch.Tensor]:
    """ΔW = B·A of every layer of a LoRA file."""
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    return {
        name.removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")] @ a
        for name, a in tensors.items()
        if name.endswith(".lora_A.weight")
    }


def test_the_size_is_read_off_the_folder(model) -> None:
    assert model.size == (64, 64)


@pytest.mark.parametrize(
    ("gamma", "w1", "w2", "start", "stop"),
    [(1.5, 1.0, 1.0, 0.0, 1.0), (1.5, 4.0, 4.0, 0.0, 1.0), (0.5, 2.0, 5.0, 0.2, 0.8)],
)
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
