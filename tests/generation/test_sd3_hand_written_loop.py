"""AutoLoRA guidance on SD3 against a loop written by hand: two models, four predictions.

Nothing of the product stands in the loop: neither guider nor adapter nor modular pipeline.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ModularPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.guiders import ClassifierFreeGuidance
from hand_written import merge
from hand_written_sd3 import HandWritten, load
from safetensors.torch import save_file
from tiny_models import SIZE, STEPS, TOKENS, TinyModel, _tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.method import method, methods

SCALE = 0.8
TOLERANCE = 1e-4
PROMPTS = ["a red cat", "two dogs"]
SEEDS = [7, 11]
SCALES = [
    (1.5, 1.0, 1.0),
    (1.5, 5.0, 5.0),
    (1.5, 3.0, 6.0),
    (0.5, 4.0, 2.0),
    (0.0, 4.0, 2.0),
    (1.0, 2.0, 4.0),
    (1.5, 0.0, 3.0),
]
INTERVALS = [(0.0, 1.0), (0.2, 0.8)]


def make_sd3(folder: Path, seed: int = 0, t5: bool = True) -> Path:
    """Save a random SD3 pipeline, with or without T5, and return its folder."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(folder.parent / f"{folder.name}-vocabulary")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "projection_dim": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    t5_tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    t5_config = T5Config(
        vocab_size=len(t5_tokenizer), d_model=80, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=80,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=8,
            shift_factor=0.1,
            scaling_factor=0.8,
        ),
        text_encoder=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text, hidden_act="gelu")),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5_config) if t5 else None,
        tokenizer_3=t5_tokenizer if t5 else None,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_lora(
    pipeline: Path, file: Path, *, text_encoders: bool, rank: int = 4
) -> dict[str, torch.Tensor]:
    """Save a random LoRA on the attention of a tiny SD3, and return W' − W by layer."""
    pipe = load(pipeline)
    generator = torch.Generator().manual_seed(1)
    joint = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    parts = {"transformer": (pipe.transformer, joint)}
    if text_encoders:
        projections = ("q_proj", "k_proj", "v_proj", "out_proj")
        parts["text_encoder"] = (pipe.text_encoder, projections)
        parts["text_encoder_2"] = (pipe.text_encoder_2, projections)
    tensors, changes = {}, {}
    for component, (module, names) in parts.items():
        for name, layer in module.named_modules():
            if name.endswith(names) and isinstance(layer, torch.nn.Linear):
                a = torch.randn(rank, layer.in_features, generator=generator) * 0.15
                b = torch.randn(layer.out_features, rank, generator=generator) * 0.15
                changes[f"{component}.{name}"] = b @ a
                tensors[f"{component}.{name}.lora_A.weight"] = a
                tensors[f"{component}.{name}.lora_B.weight"] = b
    save_file(tensors, file)
    return changes


@pytest.fixture(
    scope="module",
    params=["LoRA on the transformer", "LoRA on the text encoders too", "without T5"],
)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = make_sd3(tmp_path_factory.mktemp("sd3") / "sd3", t5=request.param != "without T5")
    file = folder.parent / "lora.safetensors"
    return TinyModel(folder, file, make_lora(folder, file, text_encoders="too" in request.param))


@pytest.fixture(scope="module")
def hand_written(tiny: TinyModel) -> HandWritten:
    base, tuned = (load(tiny.pipeline) for _ in range(2))
    merged = merge(tuned, tiny.changes, SCALE)
    return HandWritten(base, merged, STEPS, SIZE, tuple(PROMPTS), tuple(SEEDS))


@pytest.fixture(scope="module")
def pipeline(tiny: TinyModel) -> LoraPipeline:
    return LoraPipeline.load(tiny.resolved(SCALE), torch.device("cpu"), torch.float32)


def run(pipeline: LoraPipeline, guider, **changes) -> torch.Tensor:
    options = {"num_inference_steps": STEPS, "size": SIZE, "output": "latents"} | changes
    return pipeline.sample(PROMPTS, SEEDS, guider, **options)


@pytest.mark.parametrize(("start", "stop"), INTERVALS)
@pytest.mark.parametrize(("gamma", "w1", "w2"), SCALES)
def test_latents_equal_the_hand_written_loop(
    pipeline, hand_written, gamma, w1, w2, start, stop
) -> None:
    ours = run(pipeline, AutoLoRAGuidance(gamma, w2, w1, start=start, stop=stop))
    theirs = hand_written.latents(gamma, w1, w2, start, stop)
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_the_branches_differ_by_far_more_than_the_tolerance(hand_written) -> None:
    """Else the test above could pass with the branches mixed up."""
    results = [
        hand_written.latents(*scales, *interval)
        for scales, interval in itertools.product(
            [(1.5, 3.0, 6.0), (1.5, 6.0, 3.0), (0.5, 3.0, 6.0)], INTERVALS
        )
    ]
    for a, b in itertools.combinations(results, 2):
        assert (a - b).abs().max() > 1e-2


def test_text_encoder_lora_left_on_in_the_base_branch_would_be_wrong(
    pipeline, hand_written, tiny
) -> None:
    """What a guider that toggles the transformer alone computes: far off if encoders are tuned."""

    class DenoiserOnly(AutoLoRAGuidance):
        def set_base_inputs(self, inputs) -> None:
            pass

    wrong = run(pipeline, DenoiserOnly(1.5, 5.0))
    error = (wrong - hand_written.latents(1.5, 5.0, 5.0)).abs().max()
    tunes_encoders = any(name.startswith("text_encoder") for name in tiny.changes)
    assert error > 1e-2 if tunes_encoders else error <= TOLERANCE


def test_gamma_one_is_bitwise_lora_with_cfg(pipeline) -> None:
    assert torch.equal(
        run(pipeline, AutoLoRAGuidance(1.0, 5.0, 3.0)),
        run(pipeline, ClassifierFreeGuidance(guidance_scale=5.0)),
    )


def test_gamma_zero_is_bitwise_the_base_model_with_cfg(pipeline, tiny) -> None:
    stock = ModularPipeline.from_pretrained(str(tiny.pipeline), workflow="text2image")
    stock.load_components(dtype=torch.float32)
    stock.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0))
    theirs = stock(
        prompt=PROMPTS,
        negative_prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        width=SIZE[0],
        height=SIZE[1],
        output="latents",
    )
    assert torch.equal(run(pipeline, AutoLoRAGuidance(0.0, 3.0, 5.0)), theirs)


@pytest.mark.parametrize(("gamma", "w1", "w2"), SCALES)
def test_passes_made_are_those_of_the_plan(pipeline, gamma, w1, w2) -> None:
    rule = method("autolora")
    parameters = rule.parameters(autolora_scale=gamma, base_guidance_scale=w1, guidance_scale=w2)
    sample = run(pipeline, rule.build(parameters), output="images")
    assert sample.nfe == rule.nfe(parameters, STEPS)


def test_diffusers_alone_guides_nothing_without_a_null_prompt(tiny) -> None:
    """Why the null prompt is always passed: SD3's blocks leave CFG out in silence without it."""
    stock = ModularPipeline.from_pretrained(str(tiny.pipeline), workflow="text2image")
    stock.load_components(dtype=torch.float32)

    def sampled(scale: float, **options) -> torch.Tensor:
        stock.update_components(guider=ClassifierFreeGuidance(guidance_scale=scale))
        generator = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        sizes = {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": STEPS}
        return stock(prompt=PROMPTS, generator=generator, output="latents", **sizes, **options)

    assert torch.equal(sampled(5.0), sampled(1.0))
    assert (sampled(5.0, negative_prompt=["", ""]) - sampled(1.0)).abs().max() > 1e-2


@pytest.mark.parametrize("name", list(methods()))
def test_no_method_can_leave_the_null_prompt_out(pipeline, monkeypatch, name) -> None:
    """Whatever the guider, the blocks get "" for every prompt, though nobody asked for it."""
    seen = []
    blocks = type(pipeline.pipe).__call__

    def noted(self, *args, **kwargs):
        seen.append(kwargs["negative_prompt"])
        return blocks(self, *args, **kwargs)

    monkeypatch.setattr(type(pipeline.pipe), "__call__", noted)
    rule = method(name)
    run(pipeline, rule.build(rule.parameters().with_model_defaults(4.0)))
    assert seen == [["", ""]]


def test_another_null_prompt_makes_other_pictures(pipeline) -> None:
    """So "" truly reaches the transformer and is no default of the blocks."""
    guider = AutoLoRAGuidance(1.5, 5.0)
    other = run(pipeline, AutoLoRAGuidance(1.5, 5.0), null_prompt="dogs")
    assert (run(pipeline, guider) - other).abs().max() > 1e-3
