"""Predictions in one denoiser pass are those of separate passes, but for rounding."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import ROOT
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from guider_parameters import acting_throughout
from peft.tuners.lora.layer import Conv2d as PeftConv2d
from peft.tuners.lora.layer import Linear
from tiny_models import SIZE

from autolora_eval.config.inputs import ResolvedModel
from autolora_eval.config.load import load_benchmark
from autolora_eval.generation import diffusion_pipeline
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.autolora import LeanClassifierFreeGuidance as LeanCFG
from autolora_eval.guidance.denoiser_state import AdapterSwitch, adapter_layers, can_mix
from autolora_eval.guidance.diffusers_defects import SD3
from autolora_eval.guidance.method_registry import GUIDERS

pytestmark = pytest.mark.model

STEPS, PROMPTS, SEEDS = 2, ["a red apple", "a blue cup on a table"], [7, 11]
# Of the largest latent. float32 has 6e-8; sums over channels and two steps add up.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["SDXL", "SD3"])
def model(request: pytest.FixtureRequest) -> ResolvedModel:
    file = ROOT / "benchmarks" / "pixel_art_miniature.yaml"
    return load_benchmark(file).models[f"{request.param} miniature"]


@pytest.fixture(scope="module")
def pipeline(model: ResolvedModel) -> LoraPipeline:
    return LoraPipeline.load(model, torch.device("cpu"), torch.float32)


@pytest.fixture
def passes(pipeline: LoraPipeline) -> Iterator[list[int]]:
    """The rows of each pass through the first layer of the denoiser."""
    seen: list[int] = []
    first = getattr(pipeline.denoiser, "conv_in", None) or pipeline.denoiser.pos_embed
    handle = first.register_forward_hook(lambda layer, given, made: seen.append(len(made)))
    yield seen
    handle.remove()


def latents(
    pipeline: LoraPipeline, guider: Any, batching: str = "conditions", size: tuple = (64, 64)
) -> torch.Tensor:
    pipeline.guidance_batching = batching
    options = {"num_inference_steps": STEPS, "size": size, "output": "latents"}
    return pipeline.sample(PROMPTS, SEEDS, guider, **options)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def built_in(name: str) -> Callable[[], Any]:
    method = GUIDERS.built_in()[name]
    return lambda: method.build(method.parameters().with_model_defaults(3.0))


MAKERS = {
    **{name: built_in(name) for name in GUIDERS.built_in()},
    "AutoLoRA, two scales": lambda: AutoLoRAGuidance(1.5, 3.0, 6.0),
    "AutoLoRA without CFG": lambda: AutoLoRAGuidance(1.5, 1.0),
    "APG": lambda: AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
    "TCFG": lambda: TangentialClassifierFreeGuidance(3.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_latents_are_those_of_separate_passes(pipeline, name):
    expected = latents(pipeline, MAKERS[name](), "separate")
    for batching in ("conditions", "all"):
        assert off(latents(pipeline, MAKERS[name](), batching), expected) <= TOLERANCE
    assert all(not layer.disable_adapters for layer in adapter_layers(pipeline.denoiser))


def test_a_step_makes_as_many_passes_as_the_key_says(pipeline, passes):
    wanted = {"separate": [2, 2, 2, 2], "conditions": [4, 4], "all": [8]}
    for batching, rows in wanted.items():
        passes.clear()
        latents(pipeline, AutoLoRAGuidance(1.5, 3.0), batching)
        assert passes == rows * STEPS
    passes.clear()
    pipeline.guidance_batching = "all"
    sample = pipeline.sample(
        PROMPTS, SEEDS, AutoLoRAGuidance(1.5, 3.0), num_inference_steps=STEPS, size=(64, 64)
    )
    assert (passes, sample.nfe) == ([8] * STEPS, 4 * STEPS)


def test_a_prediction_without_effect_takes_no_rows(pipeline, passes):
    for guider, rows in {
        AutoLoRAGuidance(1.0, 3.0): [4, 4],
        AutoLoRAGuidance(0.0, 1.0): [2, 2],
        AutoLoRAGuidance(1.5, 1.0, 0.0): [4, 4],
        AutoLoRAGuidance(1.5, 3.0, stop=0.5): [8, 4],
        ClassifierFreeGuidance(1.0): [2, 2],
        LeanCFG(0.0): [2, 2],
        ClassifierFreeGuidance(3.0, stop=0.5): [4, 2],
    }.items():
        passes.clear()
        latents(pipeline, guider, "all")
        assert passes == rows
    null = [latents(pipeline, kind(0.0), "separate") for kind in (LeanCFG, ClassifierFreeGuidance)]
    assert torch.equal(*null)


def test_a_guider_that_prepares_the_denoiser_keeps_its_own_passes(pipeline, passes):
    class Own(ClassifierFreeGuidance):
        def prepare_models(self, denoiser: torch.nn.Module) -> None:
            super().prepare_models(denoiser)

    latents(pipeline, Own(3.0))
    assert passes == [2, 2] * STEPS


def test_rows_of_changed_adapters_are_not_mixed(pipeline, monkeypatch):
    layer = adapter_layers(pipeline.denoiser)[0]
    assert can_mix(pipeline.denoiser)
    monkeypatch.setitem(layer.lora_variant, layer.active_adapters[0], object())  # as DoRA
    assert not can_mix(pipeline.denoiser)


def test_a_batch_whose_rows_a_layer_takes_apart_is_refused(pipeline):
    layer = next(one for one in adapter_layers(pipeline.denoiser) if isinstance(one, Linear))
    with AdapterSwitch(pipeline.denoiser).on_from(1, 2), pytest.raises(ValueError, match="3 rows"):
        layer(torch.zeros(3, layer.in_features))


@torch.no_grad()
def test_loras_are_added_as_peft_adds_them(pipeline):
    for layer in adapter_layers(pipeline.denoiser):
        a = layer.lora_A[layer.active_adapters[0]].weight
        shape = (3, a.shape[1], 8, 8) if a.dim() == 4 else (3, 5, a.shape[1])
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        expected = (PeftConv2d if a.dim() == 4 else Linear).forward(layer, x)
        assert off(layer(x), expected) <= 1e-5
        with AdapterSwitch(layer).on_from(2, 3):
            assert torch.equal(layer(x)[:2], layer.base_layer(x)[:2])
            assert off(layer(x)[2:], expected[2:]) <= 1e-5


def test_a_failed_pass_leaves_the_lora_on_and_the_denoiser_as_it_was(pipeline):
    def fail(*_: object) -> None:
        raise RuntimeError("no pass")

    before = latents(pipeline, AutoLoRAGuidance(1.5, 3.0))
    for batching in ("conditions", "all"):
        handle = pipeline.denoiser.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="no pass"):
            latents(pipeline, AutoLoRAGuidance(1.5, 3.0), batching)
        handle.remove()
        assert torch.equal(latents(pipeline, AutoLoRAGuidance(1.5, 3.0)), before)


def test_a_channels_last_denoiser_makes_the_same_latents(model, pipeline):
    spec = model.spec.model_copy(update={"channels_last": True})
    faster = LoraPipeline.load(replace(model, spec=spec), torch.device("cpu"), torch.float32)
    convolution = next(m for m in faster.pipe.vae.modules() if isinstance(m, torch.nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    expected = latents(pipeline, AutoLoRAGuidance(1.5, 3.0))
    assert off(latents(faster, AutoLoRAGuidance(1.5, 3.0)), expected) <= TOLERANCE


def test_a_compiled_denoiser_is_compiled_for_every_scale_and_model(tiny_sd3, monkeypatch):
    ran: list[object] = []

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(graph)
            return graph.forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    monkeypatch.setattr(diffusion_pipeline, "GRAPHS", 3)  # of one model; two have 6
    plain = tiny_sd3.load()
    for _ in range(2):
        faster = tiny_sd3.load(compile=True)
        for scale in (0.5, 1.0):
            ran.clear()
            made = []
            for pipeline in (plain, faster):
                pipeline.set_lora_scales((scale,))
                made.append(latents(pipeline, AutoLoRAGuidance(1.5, 3.0), "separate", SIZE))
            assert len(ran) == 4 * STEPS
            assert off(*made) <= TOLERANCE
    ran.clear()
    latents(faster, SkipLayerGuidance(**acting_throughout("SkipLayerGuidance", SD3)), size=SIZE)
    assert not ran
