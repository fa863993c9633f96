"""diffusers' guiders: they run on the miniatures or are refused, and their defects are still there.

If a test of a defect fails, diffusers has fixed it.
"""

import diffusers.guiders
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from diffusers.guiders import (
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FrequencyDecoupledGuidance,
)
from diffusers.hooks import LayerSkipConfig
from guider_parameters import acting
from tiny_models import TinyModel, tiny_plan

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.denoiser_state import restored
from autolora_eval.guidance.diffusers_defects import SD3, SDXL
from autolora_eval.guidance.diffusers_guiders import DIFFUSERS_GUIDERS
from autolora_eval.guider_checks.denoising_loop import quiet_diffusers
from autolora_eval.guider_checks.tiny_models import ModelInputs, tiny_model

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


LAYERS = LayerSkipConfig(indices=[0], fqn="mid_block.attentions.0.transformer_blocks")


class _FailedError(Exception):
    pass


def test_a_failing_denoiser_call_leaves_the_hooks_of_a_guider():
    """The loop has no `finally`, so this package restores the denoiser itself."""
    model, inputs = tiny_model("sdxl"), ModelInputs.random(1, steps=2)
    calls = []

    def fail_in_the_second_pass(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise _FailedError

    handle = model.denoiser.conv_out.register_forward_pre_hook(fail_in_the_second_pass)
    try:
        with restored(model.denoiser) as state, quiet_diffusers():
            with pytest.raises(_FailedError):
                model.sample(AutoGuidance(4.0, auto_guidance_config=LAYERS), inputs)
            left = {layer for layer, name in state.changes() if name == "_diffusers_hook"}
    finally:
        handle.remove()
    layer = "mid_block.attentions.0.transformer_blocks.0"
    assert left == {layer, f"{layer}.ff"}


def test_a_second_order_scheduler_counts_more_steps_than_there_are():
    """A guider's interval then ends too early, and half of the image is not guided."""
    model, steps = tiny_model("sdxl"), 4
    seen: list[tuple[int, int]] = []

    class Recording(ClassifierFreeGuidance):
        def set_state(self, step, num_inference_steps, timestep) -> None:
            super().set_state(step, num_inference_steps, timestep)
            seen.append((step, self.num_conditions))

    own = model.pipe.scheduler
    model.pipe.update_components(scheduler=HeunDiscreteScheduler.from_config(own.config))
    try:
        with quiet_diffusers():
            model.sample(Recording(4.0), ModelInputs.random(1, steps=steps))
    finally:
        model.pipe.update_components(scheduler=own)
    assert [step for step, _ in seen] == list(range(2 * steps - 1))
    assert [passes for _, passes in seen] == [2] * steps + [1] * (steps - 1)


def test_new_drops_positional_arguments():
    assert ClassifierFreeGuidance(4.0).new().guidance_scale == 7.5
    assert ClassifierFreeGuidance(guidance_scale=4.0).new().guidance_scale == 4.0


def test_new_silently_accepts_a_misspelt_argument():
    guider = ClassifierFreeGuidance(guidance_scale=4.0).new(guidance_scal=2.0)
    assert guider.guidance_scale == 4.0


def test_cfg_zero_star_with_rescaling_is_nan():
    guider = ClassifierFreeZeroStarGuidance(guidance_rescale=0.5)
    guider.set_state(0, 10, torch.tensor(1.0))
    a, b = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert guider.forward(a, b).pred.isnan().all()


@pytest.mark.parametrize("scales", [[1.0, 5.0], [5.0, 1.0]])
def test_fdg_fails_if_one_of_two_scales_is_1(scales):
    guider = FrequencyDecoupledGuidance(guidance_scales=scales)
    guider.set_state(0, 10, torch.tensor(1.0))
    a, b = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises((UnboundLocalError, RuntimeError)):
        guider.forward(a, b)
