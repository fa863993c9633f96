"""A guider leaves no trace for the next one, whether it ran or failed.

Changes of weights are the subject of test_third_party_guiders.py.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers.guiders import (
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from diffusers.hooks import HookRegistry, LayerSkipConfig, ModelHook
from diffusers.models.attention_processor import AttnProcessor
from tiny_models import SIZE, TinyModel

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.denoiser_state import AdapterSwitch, restored

pytestmark = pytest.mark.model

LAYERS = {"indices": [0], "fqn": "mid_block.attentions.0.transformer_blocks"}
STEPS = 10  # the skip of PAG and SLG acts at the second of ten steps, and at none of five


class _FailedError(Exception):
    pass


class _Doubling(ModelHook):
    def post_forward(self, module, output):
        return tuple(2 * part for part in output) if isinstance(output, tuple) else 2 * output


class Leaving(ClassifierFreeGuidance):
    """Changes the denoiser once and never undoes it; its clean-up fails."""

    def __init__(self, damage: Callable[[torch.nn.Module], object]) -> None:
        super().__init__(4.0)
        self.damage = damage

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        super().prepare_models(denoiser)
        self.damage(denoiser)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        raise _FailedError


def _hook_of_diffusers(denoiser):
    registry = HookRegistry.check_if_exists_or_initialize(denoiser.conv_in)
    registry.register_hook(_Doubling(), "left")


def _forward_of_a_layer(denoiser):
    original = denoiser.conv_in.forward
    denoiser.conv_in.forward = lambda x: 2 * original(x)


def _attention_processors(denoiser):
    class Doubled(AttnProcessor):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    denoiser.set_attn_processor(Doubled())


def _layer_taken_out(denoiser):
    denoiser.mid_block.attentions[0].transformer_blocks = torch.nn.ModuleList()


DAMAGES = {
    "hook of torch": lambda net: net.conv_in.register_forward_hook(lambda m, i, out: 2 * out),
    "pre-hook of torch": lambda net: net.register_forward_pre_hook(lambda m, i: (2 * i[0], *i[1:])),
    "hook of diffusers": _hook_of_diffusers,
    "forward of a layer": _forward_of_a_layer,
    "attention processors": _attention_processors,
    "layer taken out": _layer_taken_out,
    "another weight": lambda net: setattr(
        net.conv_in, "weight", torch.nn.Parameter(2 * net.conv_in.weight)
    ),
    "LoRA off": lambda net: AdapterSwitch(net).set(enabled=False),
    "LoRA at another scale": lambda net: [
        layer.scaling.update(dict.fromkeys(layer.scaling, 5.0))
        for layer in net.modules()
        if hasattr(layer, "lora_A")
    ],
    "FreeU": lambda net: net.enable_freeu(s1=0.5, s2=0.2, b1=1.5, b2=1.6),
    "training mode": lambda net: net.train(),
}


@pytest.fixture(scope="module")
def pipeline(one_lora: TinyModel) -> LoraPipeline:
    return one_lora.load()


def latents(pipeline: LoraPipeline, guider, steps: int = 2) -> torch.Tensor:
    return pipeline.sample(
        ["x"], [1], guider, num_inference_steps=steps, size=SIZE, output="latents"
    )


@pytest.fixture(scope="module")
def before(pipeline: LoraPipeline) -> torch.Tensor:
    """The latents of CFG on an undamaged pipeline."""
    return latents(pipeline, ClassifierFreeGuidance(4.0))


def is_altered(pipeline: LoraPipeline, before: torch.Tensor) -> bool:
    try:
        return not torch.equal(latents(pipeline, ClassifierFreeGuidance(4.0)), before)
    except (TypeError, IndexError):
        return True


@pytest.mark.parametrize("damage", DAMAGES)
def test_changes_by_a_failing_guider_are_undone(pipeline, before, damage):
    with restored(pipeline.denoiser):  # the change has an effect, except for training mode
        DAMAGES[damage](pipeline.denoiser)
        assert is_altered(pipeline, before) == (damage != "training mode")
    with pytest.raises(_FailedError):
        latents(pipeline, Leaving(DAMAGES[damage]))
    assert not is_altered(pipeline, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoLoRAGuidance(1.5, 4.0),
        lambda: AutoGuidance(4.0, auto_guidance_config=LayerSkipConfig(**LAYERS)),
        lambda: SkipLayerGuidance(4.0, skip_layer_config=LayerSkipConfig(**LAYERS)),
        lambda: PerturbedAttentionGuidance(
            4.0, perturbed_guidance_config=LayerSkipConfig(**LAYERS)
        ),
    ],
    ids=["AutoLoRA", "AutoGuidance", "SkipLayer", "PerturbedAttention"],
)
def test_a_failing_denoiser_call_leaves_no_hook_of_the_guider(pipeline, before, make):
    """diffusers' pipelines do not clean up when a denoiser call fails: the hooks would stay."""
    calls = []

    def fail_in_the_last_pass_of_step_one(module, inputs) -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise _FailedError

    announced = []
    guider = make()
    for step in (0, 1):
        guider.set_state(step, STEPS, torch.tensor(1.0))
        announced.append(guider.num_conditions)
    fails_at = sum(announced)
    handle = pipeline.denoiser.register_forward_pre_hook(fail_in_the_last_pass_of_step_one)
    with pytest.raises(_FailedError):
        latents(pipeline, make(), STEPS)
    handle.remove()
    assert torch.equal(latents(pipeline, ClassifierFreeGuidance(4.0)), before)


def test_images_do_not_depend_on_the_order_of_guiders(pipeline):
    makers = [
        lambda: AutoLoRAGuidance(1.5, 4.0),
        lambda: ClassifierFreeGuidance(4.0),
        lambda: AutoGuidance(4.0, auto_guidance_config=LayerSkipConfig(**LAYERS)),
        lambda: AutoLoRAGuidance(0.0, 4.0),
    ]
    first = [latents(pipeline, make()) for make in makers]
    again = [latents(pipeline, make()) for make in reversed(makers)]
    assert all(map(torch.equal, first, reversed(again)))
    assert not torch.equal(first[0], first[1])
