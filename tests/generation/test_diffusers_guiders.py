"""Every guider of diffusers runs on the miniatures with its declared NFE, or is refused."""

import diffusers.guiders
import pytest
import torch
from guider_parameters import acting
from tiny_models import TinyModel, tiny_plan

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS

pytestmark = pytest.mark.model

STEPS = 10
MODELS = {
    "miniature:sdxl": ("miniature:pixel_art_lora", SDXL),
    "miniature:sd3": ("miniature:sd3_pixel_art_lora", SD3),
}
REFUSED = {
    SDXL: {"MagnitudeAwareGuidance", "SmoothedEnergyGuidance"},
    SD3: {"MagnitudeAwareGuidance", "SmoothedEnergyGuidance", "PerturbedAttentionGuidance"},
}


@pytest.fixture(scope="module", params=MODELS)
def miniature(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The pipeline of a miniature with its LoRA, and the class of the pipeline."""
    lora, pipeline = MODELS[request.param]
    tiny = TinyModel(request.param, lora, {})
    folder = tmp_path_factory.mktemp("guiders")
    plan = tiny_plan(folder, tiny, {"CFG": {"guider": "cfg"}}, {"num_inference_steps": STEPS})
    (model,) = plan.benchmark.models.values()
    return LoraPipeline.load(model, torch.device("cpu"), torch.float32), pipeline


@pytest.mark.parametrize("name", DIFFUSERS_GUIDERS)
def test_a_guider_runs_with_its_declared_nfe_or_is_refused(miniature, name):
    pipeline, kind = miniature
    values = acting(name, kind)
    declared = DIFFUSERS_GUIDERS[name]
    refusal = declared.refusal(values, kind)
    assert (refusal is not None) == (name in REFUSED[kind]), refusal
    if refusal is not None:
        return
    calls = []
    handle = pipeline.denoiser.register_forward_hook(lambda *_: calls.append(1))
    latents = pipeline.sample(
        ["a red heart on a blue background"],
        [0],
        getattr(diffusers.guiders, name)(**values),
        num_inference_steps=STEPS,
        size=(64, 64),
        output="latents",
    )
    handle.remove()
    assert latents.isfinite().all()
    assert len(calls) == sum(declared.nfe_per_step(values, step, STEPS) for step in range(STEPS))
