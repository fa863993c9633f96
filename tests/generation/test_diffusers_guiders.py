"""Every guider of diffusers on the shipped miniatures: it runs at its cost, or is refused."""

from __future__ import annotations

from pathlib import Path

import diffusers.guiders
import pytest
import torch
import yaml

from autolora_eval.config.load import load_benchmark
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS

STEPS = 10
MODELS = {
    "miniature:sdxl": ("miniature:pixel_art_lora", SDXL),
    "miniature:sd3": ("miniature:sd3_pixel_art_lora", SD3),
}
LAYERS = {
    SDXL: {"indices": [0], "fqn": "mid_block.attentions.0.transformer_blocks"},
    SD3: {"indices": [0], "fqn": "transformer_blocks", "skip_attention": False},
}
CONFIGS = {
    "AutoGuidance": "auto_guidance_config",
    "PerturbedAttentionGuidance": "perturbed_guidance_config",
    "SkipLayerGuidance": "skip_layer_config",
    "SmoothedEnergyGuidance": "seg_guidance_config",
}
REFUSED = {
    SDXL: {"MagnitudeAwareGuidance", "SmoothedEnergyGuidance"},
    SD3: {"MagnitudeAwareGuidance", "SmoothedEnergyGuidance", "PerturbedAttentionGuidance"},
}


@pytest.fixture(scope="module", params=MODELS)
def miniature(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A miniature's pipeline with its LoRA, loaded once for all guiders, and its class."""
    lora, pipeline = MODELS[request.param]
    content = {
        "name": "guiders",
        "prompts": ["a red heart on a blue background"],
        "seeds": {"start": 0, "count": 1},
        "models": {
            "M": {
                "pipeline": request.param,
                "lora": {"path": lora},
                "num_inference_steps": STEPS,
            }
        },
        "methods": {"CFG": {"guider": "cfg"}},
        "features": {"model": "miniature:dinov2"},
    }
    path: Path = tmp_path_factory.mktemp("guiders") / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content))
    (model,) = load_benchmark(path).models.values()
    return LoraPipeline.load(model, torch.device("cpu"), torch.float32), pipeline


def parameters(name: str, pipeline: str) -> dict[str, object]:
    stated: dict[str, object] = {CONFIGS[name]: LAYERS[pipeline]} if name in CONFIGS else {}
    if name == "LTX2Guidance":
        stated["guidance_scale"] = 4.0
    return stated


@pytest.mark.parametrize("name", DIFFUSERS_GUIDERS)
def test_it_runs_at_its_declared_cost_or_is_refused(miniature, name) -> None:
    pipeline, kind = miniature
    stated = parameters(name, kind)
    declared = DIFFUSERS_GUIDERS[name]
    refusal = declared.refusal(stated, kind)
    assert (refusal is not None) == (name in REFUSED[kind]), refusal
    if refusal is not None:
        return
    passes = []
    handle = pipeline.denoiser.register_forward_hook(lambda *_: passes.append(1))
    latents = pipeline.sample(
        ["a red heart on a blue background"],
        [0],
        getattr(diffusers.guiders, name)(**stated),
        num_inference_steps=STEPS,
        size=(64, 64),
        output="latents",
    )
    handle.remove()
    assert latents.isfinite().all()
    assert len(passes) == sum(declared.nfe_per_step(stated, step, STEPS) for step in range(STEPS))
