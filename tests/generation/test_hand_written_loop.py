"""AutoLoRA guidance against a loop written by hand: two models, merged weights, four predictions.

Nothing of the product stands in the loop: neither guider nor adapter nor modular pipeline.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import ModularPipeline, StableDiffusionXLPipeline
from diffusers.guiders import ClassifierFreeGuidance
from hand_written import HandWritten, merge
from tiny_models import SIZE, STEPS, TinyModel

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.method import method

SCALE = 0.8
TOLERANCE = 1e-4
PROMPTS = ["a red cat", "two dogs"]
SEEDS = [7, 11]
SCALES = [
    (1.5, 1.0, 1.0),
    (1.5, 5.0, 5.0),
    (1.5, 3.0, 6.0),
    (0.5, 4.0, 4.0),
    (2.0, 1.0, 5.0),
    (1.75, 5.0, 1.0),
    (0.0, 4.0, 2.0),
    (1.0, 2.0, 4.0),
    (1.5, 0.0, 3.0),
]
INTERVALS = [(0.0, 1.0), (0.2, 0.8), (0.4, 1.0), (0.0, 0.5)]


@pytest.fixture(scope="module")
def hand_written(tiny: TinyModel) -> HandWritten:
    base, tuned = (StableDiffusionXLPipeline.from_pretrained(tiny.pipeline) for _ in range(2))
    merged = merge(tuned, tiny.changes, SCALE)
    return HandWritten(base, merged, STEPS, SIZE, tuple(PROMPTS), tuple(SEEDS))


@pytest.fixture(scope="module")
def pipeline(tiny: TinyModel) -> LoraPipeline:
    return LoraPipeline.load(tiny.resolved(SCALE), torch.device("cpu"), torch.float32)


def run(pipeline: LoraPipeline, guider) -> torch.Tensor:
    return pipeline.sample(
        PROMPTS, SEEDS, guider, num_inference_steps=STEPS, size=SIZE, output="latents"
    )


@pytest.mark.parametrize(("start", "stop"), INTERVALS)
@pytest.mark.parametrize(("gamma", "w1", "w2"), SCALES)
def test_latents_equal_the_hand_written_loop(
    pipeline, hand_written, gamma, w1, w2, start, stop
) -> None:
    guider = AutoLoRAGuidance(gamma, w2, w1, start=start, stop=stop)
    ours = run(pipeline, guider)
    theirs = hand_written.latents(gamma, w1, w2, start, stop)
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_the_branches_differ_by_far_more_than_the_tolerance(hand_written) -> None:
    """Else the test above could pass with the branches mixed up."""
    results = [
        hand_written.latents(*scales, *interval)
        for scales, interval in itertools.product(
            [(1.5, 3.0, 6.0), (1.5, 6.0, 3.0), (0.5, 3.0, 6.0)], [(0.0, 1.0), (0.2, 0.8)]
        )
    ]
    for a, b in itertools.combinations(results, 2):
        assert (a - b).abs().max() > 1e-2


def test_text_encoder_lora_left_on_in_the_base_branch_would_be_wrong(
    pipeline, hand_written, tiny
) -> None:
    """What a guider that toggles the denoiser alone computes: far off if encoders are tuned."""

    class DenoiserOnly(AutoLoRAGuidance):
        def set_base_inputs(self, inputs) -> None:
            pass

    wrong = run(pipeline, DenoiserOnly(1.5, 5.0))
    error = (wrong - hand_written.latents(1.5, 5.0, 5.0, 0.0, 1.0)).abs().max()
    tunes_encoders = any(name.startswith("text_encoder") for name in tiny.changes)
    assert error > 1e-2 if tunes_encoders else error <= TOLERANCE


@pytest.mark.parametrize("w", [1.0, 5.0])
def test_gamma_one_is_bitwise_lora_with_cfg(pipeline, w) -> None:
    assert torch.equal(
        run(pipeline, AutoLoRAGuidance(1.0, w, 3.0)),
        run(pipeline, ClassifierFreeGuidance(guidance_scale=w)),
    )


@pytest.mark.parametrize("w", [1.0, 5.0])
def test_gamma_zero_is_bitwise_the_base_model_with_cfg(pipeline, tiny, w) -> None:
    ours = run(pipeline, AutoLoRAGuidance(0.0, 3.0, w))
    stock = ModularPipeline.from_pretrained(str(tiny.pipeline), workflow="text2image")
    stock.load_components(dtype=torch.float32)
    stock.update_components(guider=ClassifierFreeGuidance(guidance_scale=w))
    theirs = stock(
        prompt=PROMPTS,
        negative_prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        width=SIZE[0],
        height=SIZE[1],
        output="latents",
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("start", "stop"), INTERVALS)
@pytest.mark.parametrize(("gamma", "w1", "w2"), SCALES)
def test_passes_made_are_those_of_the_plan(pipeline, gamma, w1, w2, start, stop) -> None:
    rule = method("autolora")
    parameters = rule.parameters(
        autolora_scale=gamma, base_guidance_scale=w1, guidance_scale=w2, start=start, stop=stop
    )
    sample = pipeline.sample(
        PROMPTS, SEEDS, rule.build(parameters), num_inference_steps=STEPS, size=SIZE
    )
    assert sample.nfe == rule.nfe(parameters, STEPS)


@pytest.mark.parametrize("name", ["lora", "cfg"])
@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_passes_of_the_stock_methods_are_those_of_the_plan(pipeline, name, w) -> None:
    rule = method(name)
    parameters = rule.parameters().with_model_defaults(w)
    sample = pipeline.sample(
        PROMPTS, SEEDS, rule.build(parameters), num_inference_steps=STEPS, size=SIZE
    )
    assert sample.nfe == rule.nfe(parameters, STEPS)
