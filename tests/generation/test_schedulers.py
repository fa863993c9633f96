"""A benchmark's scheduler and clip_skip: equal to loops by hand and to the standard pipelines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from hand_written import SD3, SDXL, load, merge
from standard_pipeline import PROMPTS, SEEDS
from standard_pipeline import theirs as standard
from tiny_models import ENCODER, SIZE, STEPS, UNET, TinyModel, write_lora

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.config.model_section import count_timesteps
from autolora_eval.config.schema import Scheduler
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.pipeline_loading import make_scheduler
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.method_registry import GUIDERS

pytestmark = pytest.mark.model

SCALE, TOLERANCE = 0.8, 1e-4
KARRAS = {"use_karras_sigmas": True}
SCHEDULERS = {
    "DPM++ 2M Karras": {"class": "DPMSolverMultistepScheduler", **KARRAS},
    "UniPC": {"class": "UniPCMultistepScheduler"},
    "Euler a": {"class": "EulerAncestralDiscreteScheduler"},
    "DDIM": {"class": "DDIMScheduler"},
    "LCM": {"class": "LCMScheduler"},
    "Heun": {"class": "HeunDiscreteScheduler"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, sdxl: Path) -> TinyModel:
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    parts = {"unet": UNET, "text_encoder": ENCODER, "text_encoder_2": ENCODER}
    return TinyModel(sdxl, file, write_lora(load(SDXL, sdxl), file, parts))


@pytest.fixture(scope="module")
def own(sdxl: Path) -> dict[str, Any]:
    """The configuration of SDXL's own scheduler."""
    return json.loads((sdxl / "scheduler" / "scheduler_config.json").read_text())


@pytest.fixture(scope="module")
def loop_by_hand(tiny: TinyModel) -> Callable[[Scheduler], SDXL]:
    """A function that returns the loop with a scheduler."""
    base, tuned = (load(SDXL, tiny.pipeline) for _ in range(2))
    merged, config = merge(tuned, tiny.changes, SCALE), base.scheduler.config

    def loop(section: Scheduler) -> SDXL:
        kind = getattr(diffusers, section.class_name)
        base.scheduler = kind.from_config(config, **section.options)
        return SDXL(base, merged, STEPS, SIZE, tuple(PROMPTS), tuple(SEEDS))

    return loop


def sample(pipeline: LoraPipeline, guider, prompts=PROMPTS, seeds=SEEDS, output="latents"):
    steps = {"num_inference_steps": STEPS, "size": SIZE}
    return pipeline.sample(list(prompts), list(seeds), guider, output=output, **steps)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_equals_the_loop_by_hand_and_its_nfe_is_planned(name, tiny, loop_by_hand):
    """With an interval, which ends after the same step by hand, and alone as in a batch."""
    section = Scheduler.model_validate(SCHEDULERS[name])
    pipeline, model = tiny.load(SCALE, scheduler=section), tiny.resolved(SCALE, scheduler=section)
    autolora = GUIDERS.find("autolora")
    parameters = autolora.parameters(
        autolora_scale=1.5, base_guidance_scale=3.0, guidance_scale=6.0, start=0.2, stop=0.8
    )
    theirs = loop_by_hand(section).latents(1.5, 3.0, 6.0, 0.2, 0.8)
    ours = sample(pipeline, autolora.build(parameters))
    assert (ours - theirs).abs().max() <= TOLERANCE
    alone = sample(pipeline, autolora.build(parameters), PROMPTS[1:], SEEDS[1:])
    assert (ours[1:] - alone).abs().max() <= TOLERANCE

    timesteps = count_timesteps(model.spec, model.pipeline)
    image = sample(pipeline, autolora.build(parameters), PROMPTS[:1], SEEDS[:1], output="images")
    assert image.nfe == autolora.nfe(parameters, STEPS, timesteps)
    json.dumps(pipeline.description(), allow_nan=False)


@pytest.mark.parametrize("name", ["Heun", "DPM++ 2M Karras"])
def test_a_reused_base_equals_the_loop_by_hand_with_second_order(name, tiny, loop_by_hand):
    """Heun's two timesteps of a step both evaluate the base model, or both reuse."""
    section = Scheduler.model_validate(SCHEDULERS[name])
    pipeline, model = tiny.load(SCALE, scheduler=section), tiny.resolved(SCALE, scheduler=section)
    rule = GUIDERS.find("autolora_reuse")
    scales = {"autolora_scale": 1.5, "base_guidance_scale": 3.0, "guidance_scale": 6.0}
    parameters = rule.parameters(**scales, start=0.2, stop=0.8, base_every=2)
    by_hand = loop_by_hand(section)
    theirs, every_step = (by_hand.latents(1.5, 3.0, 6.0, 0.2, 0.8, k) for k in (2, 1))
    ours = sample(pipeline, rule.build(parameters))
    assert (ours - theirs).abs().max() <= TOLERANCE
    assert (ours - every_step).abs().max() > 10 * TOLERANCE
    image = sample(pipeline, rule.build(parameters), PROMPTS[:1], SEEDS[:1], output="images")
    assert image.nfe == rule.nfe(parameters, STEPS, count_timesteps(model.spec, model.pipeline))


def test_cheaper_autolora_at_its_limits_is_autolora_or_cfg_to_the_bit(tiny):
    pipeline = tiny.load(SCALE)

    def made(name: str, **given: float) -> torch.Tensor:
        rule = GUIDERS.find(name)
        return sample(pipeline, rule.build(rule.parameters(**given).with_model_defaults(3.0)))

    autolora, cfg = made("autolora"), made("cfg")
    assert torch.equal(made("autolora_reuse", base_every=1), autolora)
    assert torch.equal(made("autolora_interval", start=0.0, stop=1.0), autolora)
    for name in ("autolora_interval", "autolora_reuse"):
        assert torch.equal(made(name, start=0.4, stop=0.4), cfg)
    assert not torch.equal(made("autolora_reuse", base_every=2), autolora)


def test_a_flow_model_draws_an_images_noise_from_its_own_generator(tiny_sd3):
    """Without `own_noise` FlowMatchLCM would draw from the global generator."""
    section = Scheduler.model_validate({"class": "FlowMatchLCMScheduler"})
    pipeline = tiny_sd3.load(SCALE, scheduler=section)
    both = sample(pipeline, ClassifierFreeGuidance(3.0))
    swapped = sample(pipeline, ClassifierFreeGuidance(3.0), PROMPTS[::-1], SEEDS[::-1])
    assert (both - swapped.flip(0)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("model", ["SDXL", "SD3"])
def test_clip_skip_equals_the_standard_pipelines(model, tiny, tiny_sd3):
    """With the LoRA, and, where it tunes the encoders too, of the base model alone."""
    one, kind = (tiny, SDXL) if model == "SDXL" else (tiny_sd3, SD3)
    ours = one.load(SCALE, clip_skip=1)
    guiders = {"base": AutoLoRAGuidance(0.0, 3.0, 5.0), "LoRA": AutoLoRAGuidance(1.0, 5.0)}
    for name, guider in guiders.items():
        pipe = load(kind, one.pipeline)
        if name == "LoRA":
            merge(pipe, one.changes, SCALE)
        theirs = {skip: standard(pipe, clip_skip=skip, output_type="latent") for skip in (None, 1)}
        found = sample(ours, guider)
        assert (found - theirs[1]).abs().max() <= TOLERANCE
        assert (found - theirs[None]).abs().max() > 1e-3


def test_the_timesteps_of_every_scheduler_are_counted_from_its_source(sdxl, own):
    """Every class of diffusers that samples SDXL; Heun's kind and PNDM take more than steps."""
    spec = TinyModel(sdxl, Path("lora"), {}).resolved(1.0)
    found = {}
    for kind in diffusers.EulerDiscreteScheduler(beta_schedule="linear").compatibles:
        section = Scheduler.model_validate({"class": kind.__name__})
        model = spec.spec.model_copy(update={"scheduler": section, "num_inference_steps": 6})
        try:
            scheduler = make_scheduler(section, own, 6)
        except AutoLoRAEvalError:
            continue
        planned = count_timesteps(model, spec.pipeline)
        found[kind.__name__] = planned == len(scheduler.timesteps)
    assert len(found) >= 12
    assert all(found.values()), found


ANOTHER = "Choose another class."


@pytest.mark.parametrize(
    ("section", "says", "advice"),
    [
        (
            {"class": "DPMSolverMultistepScheduler", "algorithm_type": "sde"},
            "cannot be used here: NotImplementedError: sde is not implemented for <class '",
            "Change its options, or choose another class.",
        ),
        (
            {"class": "FlowMatchEulerDiscreteScheduler"},
            "is not for a model that predicts noise",
            ANOTHER,
        ),
        ({"class": "DPMSolverMultistepInverseScheduler"}, "goes from images to noise", ANOTHER),
    ],
)
def test_a_scheduler_that_cannot_sample_is_refused(section, says, advice, own):
    with pytest.raises(AutoLoRAEvalError) as caught:
        make_scheduler(Scheduler.model_validate(section), own, 6)
    assert str(caught.value).startswith(f"the scheduler {section['class']} {says}")
    assert str(caught.value).endswith(f". {advice}")


def test_a_scheduler_whose_noise_depends_on_the_batch_is_refused(own, monkeypatch):
    """As DPMSolverSDEScheduler would be, which needs a package that is not always here."""
    step = diffusers.EulerDiscreteScheduler.step

    def noisy(self, model_output, timestep, sample, return_dict=True):
        made = step(self, model_output, timestep, sample, return_dict=False)
        return (made[0] + torch.randn(made[0].shape),)

    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "step", noisy)
    with pytest.raises(AutoLoRAEvalError, match="draws noise that is not the image's own"):
        make_scheduler(Scheduler.model_validate({"class": "EulerDiscreteScheduler"}), own, 6)


def test_a_diffusion_scheduler_for_a_flow_model_is_refused(tiny_sd3):
    file = tiny_sd3.pipeline / "scheduler" / "scheduler_config.json"
    own = json.loads(file.read_text())
    section = {"class": "DPMSolverMultistepScheduler"}
    with pytest.raises(AutoLoRAEvalError, match="is not for a model that predicts a flow"):
        make_scheduler(Scheduler.model_validate(section), own, 6)
    section |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    make_scheduler(Scheduler.model_validate(section), own, 6)
