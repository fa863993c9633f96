"""What is known to be wrong in diffusers' own loops: the day a test here fails, it was mended."""

from __future__ import annotations

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from diffusers.guiders import AutoGuidance, ClassifierFreeGuidance
from diffusers.hooks import LayerSkipConfig

from autolora_eval.guidance.denoiser_state import restored
from autolora_eval.guider_checks.denoising_loop import silence
from autolora_eval.guider_checks.tiny_models import ModelInputs, tiny_model

LAYERS = LayerSkipConfig(indices=[0], fqn="mid_block.attentions.0.transformer_blocks")


class _FailedError(Exception):
    pass


def test_a_pass_that_fails_leaves_hooks_in_a_plain_pipeline() -> None:
    """Its loop has no `finally`: so the product puts the denoiser back itself."""
    model, inputs = tiny_model("sdxl"), ModelInputs.random(1, steps=2)
    calls = []

    def fail_in_the_second_pass(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise _FailedError

    handle = model.denoiser.conv_out.register_forward_pre_hook(fail_in_the_second_pass)
    try:
        with restored(model.denoiser) as state, silence():
            with pytest.raises(_FailedError):
                model.sample(AutoGuidance(4.0, auto_guidance_config=LAYERS), inputs)
            left = state.differences()
    finally:
        handle.remove()
    layer = "mid_block.attentions.0.transformer_blocks.0"
    assert left == [f"hook AutoGuidance_0 of diffusers on '{at}'" for at in (layer, f"{layer}.ff")]


def test_a_scheduler_of_second_order_counts_more_steps_than_there_are() -> None:
    """A guider's window is then over before the image is: guidance is off for half of it."""
    model, steps = tiny_model("sdxl"), 4
    seen: list[tuple[int, int]] = []

    class Noting(ClassifierFreeGuidance):
        def set_state(self, step, num_inference_steps, timestep) -> None:
            super().set_state(step, num_inference_steps, timestep)
            seen.append((step, self.num_conditions))

    own = model.pipe.scheduler
    model.pipe.update_components(scheduler=HeunDiscreteScheduler.from_config(own.config))
    try:
        with silence():
            model.sample(Noting(4.0), ModelInputs.random(1, steps=steps))
    finally:
        model.pipe.update_components(scheduler=own)
    assert [step for step, _ in seen] == list(range(2 * steps - 1))
    assert [passes for _, passes in seen] == [2] * steps + [1] * (steps - 1)


def test_new_forgets_parameters_that_were_given_by_position() -> None:
    assert ClassifierFreeGuidance(4.0).new().guidance_scale == 7.5
    assert ClassifierFreeGuidance(guidance_scale=4.0).new().guidance_scale == 4.0


def test_new_takes_a_misspelt_parameter_without_a_word() -> None:
    guider = ClassifierFreeGuidance(guidance_scale=4.0).new(guidance_scal=2.0)
    assert guider.guidance_scale == 4.0


def test_zero_star_with_rescaling_is_nan() -> None:
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    guider = ClassifierFreeZeroStarGuidance(guidance_rescale=0.5)
    guider.set_state(0, 10, torch.tensor(1.0))
    a, b = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert guider.forward(a, b).pred.isnan().all()


@pytest.mark.parametrize("scales", [[1.0, 5.0], [5.0, 1.0]])
def test_fdg_with_one_idle_level_fails(scales) -> None:
    from diffusers.guiders import FrequencyDecoupledGuidance

    guider = FrequencyDecoupledGuidance(guidance_scales=scales)
    guider.set_state(0, 10, torch.tensor(1.0))
    a, b = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises((UnboundLocalError, RuntimeError)):
        guider.forward(a, b)
