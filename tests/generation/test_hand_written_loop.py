"""AutoLoRA guidance equals a loop written by hand, on every pipeline that the docs name."""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.guiders import ClassifierFreeGuidance
from hand_written import SD3, SDXL, HandWritten, QwenImage, ZImage, load, merge
from tiny_flow_models import make_qwen_image, make_sd3, make_z_image
from tiny_models import ENCODER, SIZE, STEPS, UNET, TinyModel, make_sdxl, write_lora

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.method_registry import GUIDERS

pytestmark = pytest.mark.model

SCALE = 0.8
TOLERANCE = 1e-4
PROMPTS = ["a red cat", "two dogs"]
SEEDS = [7, 11]
ALL, MIDDLE, LATE, EARLY = (0.0, 1.0), (0.2, 0.8), (0.4, 1.0), (0.0, 0.5)
# γ, w1, w2 and the interval. γ acts within the interval and is 1 outside of it, step by step, so
# each scale and each interval need not meet every other.
CASES = [
    (1.5, 3.0, 6.0, ALL),
    (1.5, 3.0, 6.0, MIDDLE),
    (0.0, 4.0, 2.0, ALL),
    (0.0, 4.0, 2.0, EARLY),
    (0.5, 4.0, 2.0, LATE),
    (1.5, 1.0, 1.0, ALL),
    (1.0, 2.0, 4.0, MIDDLE),
]
SDXL_CASES = [
    *CASES,
    (1.5, 5.0, 5.0, EARLY),
    (2.0, 1.0, 5.0, MIDDLE),
    (1.75, 5.0, 1.0, ALL),
    (1.5, 0.0, 3.0, ALL),
    *((1.0, 3.0, 0.0, ALL), (0.0, 0.0, 3.0, ALL)),  # the null prompt alone
]
TRANSFORMER = (*UNET, "add_q_proj", "add_k_proj", "add_v_proj")
ENCODERS = {"text_encoder": ENCODER, "text_encoder_2": ENCODER}
STRONG = {"std": 0.3}


@dataclass(frozen=True)
class Kind:
    """A pipeline: its loop by hand, how it is made, what the LoRA tunes, and its cases."""

    loop: type[HandWritten]
    make: object
    tuned: dict[str, tuple[str, ...]]
    cases: list
    lora: dict = field(default_factory=dict)
    make_options: dict = field(default_factory=dict)


PIPELINES = {
    "SDXL": Kind(SDXL, make_sdxl, {"unet": UNET}, SDXL_CASES),
    "SD3": Kind(SD3, make_sd3, {"transformer": TRANSFORMER}, CASES),
    "Qwen-Image": Kind(QwenImage, make_qwen_image, {"transformer": TRANSFORMER}, CASES, STRONG),
    "Z-Image": Kind(ZImage, make_z_image, {"transformer": UNET}, CASES, STRONG),
}
KINDS = PIPELINES | {
    "SDXL, kohya, text encoders": Kind(
        SDXL, make_sdxl, {"unet": UNET, **ENCODERS}, CASES[:3], {"kohya": True}
    ),
    "SD3, text encoders": Kind(SD3, make_sd3, {"transformer": TRANSFORMER, **ENCODERS}, CASES[:3]),
    "SD3 without T5": Kind(
        SD3, make_sd3, {"transformer": TRANSFORMER}, CASES[:2], make_options={"t5": False}
    ),
}
ENCODERS_ALONE = {"SDXL, text encoders alone": Kind(SDXL, make_sdxl, ENCODERS, CASES[:3])}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return (KINDS | ENCODERS_ALONE)[request.param]


@pytest.fixture(scope="module")
def tiny(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = kind.make(tmp_path_factory.mktemp("model") / "pipeline", **kind.make_options)
    file = folder.parent / "lora.safetensors"
    changes = write_lora(load(kind.loop, folder), file, kind.tuned, **kind.lora)
    return TinyModel(folder, file, changes)


@pytest.fixture(scope="module")
def by_hand(kind: Kind, tiny: TinyModel) -> HandWritten:
    base, tuned = (load(kind.loop, tiny.pipeline) for _ in range(2))
    merged = merge(tuned, tiny.changes, SCALE)
    return kind.loop(base, merged, STEPS, SIZE, tuple(PROMPTS), tuple(SEEDS))


@pytest.fixture(scope="module")
def pipeline(tiny: TinyModel) -> LoraPipeline:
    return tiny.load(SCALE)


def latents(pipeline: LoraPipeline, guider, **changes) -> torch.Tensor:
    options = {"num_inference_steps": STEPS, "size": SIZE, "output": "latents"} | changes
    return pipeline.sample(PROMPTS, SEEDS, guider, **options)


def stock_latents(tiny: TinyModel, w: float, **options) -> torch.Tensor:
    """Latents of diffusers' own CFG on the pipeline without a LoRA."""
    stock = ModularPipeline.from_pretrained(str(tiny.pipeline), workflow="text2image")
    stock.load_components(dtype=torch.float32)
    stock.update_components(guider=ClassifierFreeGuidance(guidance_scale=w))
    return stock(
        prompt=list(PROMPTS),
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        width=SIZE[0],
        height=SIZE[1],
        output="latents",
        **options,
    )


@pytest.mark.parametrize("kind", KINDS | ENCODERS_ALONE, indirect=True)
def test_latents_equal_the_loop_and_the_nfe_is_the_planned_one(kind, pipeline, by_hand):
    autolora = GUIDERS.find("autolora")
    calls: list[object] = []
    handle = pipeline.denoiser.register_forward_hook(lambda *_: calls.append(None))
    for gamma, w1, w2, (start, stop) in kind.cases:
        parameters = autolora.parameters(
            autolora_scale=gamma, base_guidance_scale=w1, guidance_scale=w2, start=start, stop=stop
        )
        calls.clear()
        ours = latents(pipeline, autolora.build(parameters))
        assert len(calls) == autolora.nfe(parameters, STEPS)
        theirs = by_hand.latents(gamma, w1, w2, start, stop)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= TOLERANCE, (gamma, w1, w2, start, stop)
    handle.remove()


@pytest.mark.parametrize("kind", PIPELINES, indirect=True)
def test_confused_branches_would_differ_by_far_more_than_the_tolerance(by_hand):
    scales = [(1.5, 3.0, 6.0), (1.5, 6.0, 3.0), (0.5, 3.0, 6.0)]
    results = [by_hand.latents(*w, *interval) for w in scales for interval in (ALL, MIDDLE)]
    for a, b in itertools.combinations(results, 2):
        assert (a - b).abs().max() > 1e-2


def test_a_base_branch_with_the_embeddings_of_tuned_encoders_would_be_wrong(
    pipeline, by_hand, tiny
):
    """A guider that switches off the LoRA of the denoiser alone is wrong if encoders are tuned."""

    class DenoiserOnly(AutoLoRAGuidance):
        def set_base_inputs(self, inputs) -> None:
            pass

    wrong = latents(pipeline, DenoiserOnly(1.5, 5.0))
    error = (wrong - by_hand.latents(1.5, 5.0, 5.0, 0.0, 1.0)).abs().max()
    tunes_encoders = any(name.startswith("text_encoder") for name in tiny.changes)
    assert error > 1e-2 if tunes_encoders else error <= TOLERANCE


def test_gamma_one_is_bitwise_lora_with_cfg(pipeline):
    for w in (1.0, 5.0):
        ours = latents(pipeline, AutoLoRAGuidance(1.0, w, 3.0))
        assert torch.equal(ours, latents(pipeline, ClassifierFreeGuidance(guidance_scale=w)))


def test_gamma_zero_is_bitwise_the_base_model_with_cfg(pipeline, tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "guidance_batching", "separate")
    for w in (1.0, 5.0):
        ours = latents(pipeline, AutoLoRAGuidance(0.0, 3.0, w))
        assert torch.equal(ours, stock_latents(tiny, w, negative_prompt=["", ""]))


@pytest.mark.parametrize("kind", PIPELINES, indirect=True)
def test_every_method_makes_images_with_the_planned_nfe(kind, pipeline):
    for one, w in itertools.product(GUIDERS.built_in().values(), (0.0, 4.0)):
        parameters = one.parameters().with_model_defaults(w)
        sample = latents(pipeline, one.build(parameters), output="images")
        assert sample.nfe == one.nfe(parameters, STEPS)
        assert [image.size for image in sample.images] == [SIZE] * len(PROMPTS)


@pytest.mark.parametrize("kind", PIPELINES, indirect=True)
def test_initial_noise_is_bitwise_equal_for_every_method_and_batch(pipeline, by_hand):
    """The first sample of the scheduler, in the layout of the pipeline."""
    seen: list[torch.Tensor] = []
    step = pipeline.pipe.scheduler.step

    def noted(prediction, t, sample, **options):
        seen.append(sample)
        return step(prediction, t, sample, **options)

    pipeline.pipe.scheduler.step = noted
    noise = []
    try:
        for one, seeds in itertools.product(GUIDERS.built_in().values(), ([7, 11], [11, 7, 3])):
            seen.clear()
            guider = one.build(one.parameters().with_model_defaults(4.0))
            options = {"num_inference_steps": 2, "size": SIZE, "output": "latents"}
            pipeline.sample(["x"] * len(seeds), seeds, guider, **options)
            noise.append(seen[0][seeds.index(11)])
    finally:
        del pipeline.pipe.scheduler.step
    assert all(torch.equal(noise[0], other) for other in noise)
    drawn = by_hand.noise()[SEEDS.index(11)]
    assert torch.allclose(noise[0].flatten().sort().values, drawn.flatten().sort().values)


def test_each_negative_prompt_reaches_the_denoiser(pipeline, monkeypatch):
    seen = []
    blocks = type(pipeline.pipe).__call__

    def noted(self, *args, **kwargs):
        seen.append(list(kwargs["negative_prompt"]))  # Z-Image changes its list
        return blocks(self, *args, **kwargs)

    monkeypatch.setattr(type(pipeline.pipe), "__call__", noted)
    ours = latents(pipeline, AutoLoRAGuidance(1.5, 5.0))
    other = latents(pipeline, AutoLoRAGuidance(1.5, 5.0), negative_prompts=["", "dogs"])
    assert seen == [["", ""], ["", "dogs"]]
    assert torch.allclose(ours[0], other[0], atol=1e-5)
    assert (ours[1] - other[1]).abs().max() > 1e-3


def test_sd3_without_a_null_prompt_is_not_guided_by_diffusers(kind, tiny):
    """The reason why the null prompt is always passed."""
    if kind.loop is SD3:
        unguided = stock_latents(tiny, 1.0)
        assert torch.equal(stock_latents(tiny, 5.0), unguided)
        assert (stock_latents(tiny, 5.0, negative_prompt=["", ""]) - unguided).abs().max() > 1e-2
