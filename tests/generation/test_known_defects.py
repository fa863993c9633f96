"""Known defects of diffusers that this package works around. A failing test means it was fixed."""

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

from autolora_eval.guidance.denoiser_state import restored
from autolora_eval.guider_checks.denoising_loop import quiet_diffusers
from autolora_eval.guider_checks.tiny_models import ModelInputs, tiny_model

pytestmark = pytest.mark.model

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
