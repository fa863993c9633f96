"""Several LoRAs, one of them in the base model, or none: against merged weights, by hand."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hand_written import SDXL, load, merge
from safetensors.torch import load_file, save_file
from standard_pipeline import PROMPTS, SEEDS, ours, same, theirs
from tiny_models import SIZE, STEPS, make_lora

from autolora_eval._errors import UsageError
from autolora_eval.config.inputs import ResolvedLora, ResolvedModel
from autolora_eval.config.lora_file import check_sum, read_lora_file
from autolora_eval.config.schema import Lora, Model
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model

SCALES = {"style": 0.8, "character": 0.5}


@pytest.fixture(scope="module")
def loras(sdxl: Path) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """Two LoRAs on the same layers: file and changes of weights. One tunes the text encoders."""
    found = {}
    for seed, name in enumerate(SCALES, 5):
        file = sdxl.parent / f"{name}.safetensors"
        tunes_text = name == "style"
        changes = make_lora(sdxl, file, kohya=tunes_text, text_encoders=tunes_text, seed=seed)
        found[name] = file, changes
    return found


def model_of(sdxl: Path, *loras: Lora) -> ResolvedModel:
    return ResolvedModel(
        name="tiny",
        spec=Model(pipeline=str(sdxl), lora=list(loras) or None, num_inference_steps=STEPS),
        pipeline=Source(str(sdxl), "folder", str(sdxl)),
        loras=tuple(ResolvedLora(Source(lora.path, "file", lora.path)) for lora in loras),
        size=SIZE,
    )


def latents(pipeline: LoraPipeline, guider: object) -> torch.Tensor:
    return pipeline.sample(
        PROMPTS, SEEDS, guider, num_inference_steps=STEPS, size=SIZE, output="latents"
    )


@pytest.mark.parametrize("in_base", [[], ["style"], ["character"]])
def test_two_loras_equal_merged_weights(sdxl, loras, in_base):
    """All are off in the base branch but those that are part of the base model."""
    listed = [
        Lora(path=str(loras[name][0]), scale=scale, part_of_base=name in in_base)
        for name, scale in SCALES.items()
    ]
    pipeline = LoraPipeline.load(model_of(sdxl, *listed), torch.device("cpu"), torch.float32)
    base, tuned = load(SDXL, sdxl), load(SDXL, sdxl)
    for name, scale in SCALES.items():
        merge(tuned, loras[name][1], scale)
        if name in in_base:
            merge(base, loras[name][1], scale)
    by_hand = SDXL(base, tuned, STEPS, SIZE, tuple(PROMPTS), tuple(SEEDS))
    found = latents(pipeline, AutoLoRAGuidance(1.5, 6.0, 3.0))
    assert (found - by_hand.latents(1.5, 3.0, 6.0)).abs().max() <= 1e-4
    # A sweep multiplies the scales of several LoRAs, and sets that of a single one.
    pipeline.set_lora_scales(model_of(sdxl, *listed).spec.at_lora_scale(0.3).lora_scales)
    for name, scale in SCALES.items():
        if name not in in_base:
            merge(tuned, loras[name][1], (0.3 if in_base else 0.3 * scale) - scale)
    swept = latents(pipeline, AutoLoRAGuidance(1.5, 6.0, 3.0))
    assert (swept - by_hand.latents(1.5, 3.0, 6.0)).abs().max() <= 1e-4
    assert (swept - found).abs().max() > 1e-2


def test_a_dora_is_not_added_to_another_lora(sdxl, loras, tmp_path):
    plain = loras["character"][0]
    tensors = load_file(plain)
    magnitudes = {
        key.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(len(value))
        for key, value in tensors.items()
        if "lora_B" in key
    }
    dora = tmp_path / "dora.safetensors"
    save_file(tensors | magnitudes, dora)
    with pytest.raises(UsageError, match=r"is a DoRA \(LoRA\), which cannot be added"):
        check_sum([read_lora_file(plain), read_lora_file(dora)])


def test_without_a_lora_images_are_those_of_the_plain_pipeline(sdxl):
    assert same(ours(model_of(sdxl)), theirs(StableDiffusionXLPipeline.from_pretrained(sdxl)))
