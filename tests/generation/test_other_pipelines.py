"""Qwen-Image and Z-Image through the product's own path, against loops written by hand.

No line of the product knows of them: their modular pipelines take a guider, and that is all.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import yaml
from diffusers import ModularPipeline
from diffusers.guiders import ClassifierFreeGuidance
from hand_written import merge
from hand_written_flow import HandWritten, QwenImage, ZImage
from tiny_flow_models import make_lora, make_qwen_image, make_z_image
from tiny_models import SIZE, STEPS, TinyModel

from autolora_eval._files import read_jsonl
from autolora_eval._progress import Progress
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.config.preflight import missing
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.stage import generate
from autolora_eval.guidance.autolora import AutoLoRAGuidance
from autolora_eval.guidance.method import method, methods
from autolora_eval.runs.folder import RunFolder

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
]
INTERVALS = [(0.0, 1.0), (0.2, 0.8)]
PIPELINES = {"Qwen-Image": (make_qwen_image, QwenImage), "Z-Image": (make_z_image, ZImage)}


@pytest.fixture(scope="module", params=PIPELINES)
def by_hand(request: pytest.FixtureRequest) -> type[HandWritten]:
    return PIPELINES[request.param][1]


@pytest.fixture(scope="module")
def tiny(by_hand: type[HandWritten], tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    make = next(make for make, found in PIPELINES.values() if found is by_hand)
    folder = make(tmp_path_factory.mktemp("model") / "pipeline")
    file = folder.parent / "lora.safetensors"
    return TinyModel(folder, file, make_lora(by_hand.pipeline, folder, file))


@pytest.fixture(scope="module")
def hand_written(by_hand: type[HandWritten], tiny: TinyModel) -> HandWritten:
    base, tuned = (by_hand.pipeline.from_pretrained(tiny.pipeline) for _ in range(2))
    merged = merge(tuned, tiny.changes, SCALE)
    return by_hand(base, merged, STEPS, SIZE, tuple(PROMPTS), tuple(SEEDS))


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
    assert ours.shape == theirs.shape
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
        prompt=list(PROMPTS),
        negative_prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        width=SIZE[0],
        height=SIZE[1],
        output="latents",
    )
    assert torch.equal(run(pipeline, AutoLoRAGuidance(0.0, 3.0, 5.0)), theirs)


@pytest.mark.parametrize("name", list(methods()))
@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_every_method_makes_pictures_in_the_passes_of_the_plan(pipeline, name, w) -> None:
    rule = method(name)
    parameters = rule.parameters().with_model_defaults(w)
    sample = run(pipeline, rule.build(parameters), output="images")
    assert sample.nfe == rule.nfe(parameters, STEPS)
    assert [image.size for image in sample.images] == [SIZE] * len(PROMPTS)


def test_a_benchmark_file_that_names_one_makes_its_images(tiny, tmp_path) -> None:
    """From YAML to image datasets, the four methods of the paper, noise and passes as planned."""
    model = {
        "pipeline": str(tiny.pipeline),
        "lora": {"path": str(tiny.lora)},
        "num_inference_steps": 3,
        "width": SIZE[0],
        "height": SIZE[1],
    }
    paper = {
        "LoRA": {"guider": "lora"},
        "AutoLoRA": {"guider": "autolora", "guidance_scale": 1.0},
        "LoRA+CFG": {"guider": "cfg"},
        "AutoLoRA+CFG": {"guider": "autolora"},
    }
    content = {
        "name": "tiny",
        "prompts": PROMPTS,
        "seeds": {"start": 3, "count": 2},
        "models": {"T": model},
        "methods": paper,
        "features": {"model": "miniature:dinov2"},
        "batch_size": 2,
    }
    file = tmp_path / "benchmark.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    plan, folder = make_plan(load_benchmark(file)), RunFolder(tmp_path / "run")
    assert missing(plan, folder.path) == []
    assert generate(plan, folder, Progress()).made == 4 * 4
    pictures = set()
    for cell, passes in zip(plan.cells, (1, 2, 2, 4), strict=True):
        rows = read_jsonl(folder.metadata(cell.id))
        assert [(row["prompt"], row["seed"]) for row in rows] == [
            (prompt, seed) for prompt in PROMPTS for seed in (3, 4)
        ]
        assert {row["nfe"] for row in rows} == {cell.nfe} == {3 * passes}
        assert {(row["width"], row["height"]) for row in rows} == {SIZE}
        pictures |= {row["sha256"] for row in rows}
    assert len(pictures) == 4 * 4, "no method, prompt or seed gives another's picture"


def test_initial_noise_is_bitwise_the_same_for_every_method_and_batch(
    pipeline, hand_written
) -> None:
    """The scheduler's first sample, whatever the layout in which the transformer gets it."""
    seen: list[torch.Tensor] = []
    step = pipeline.pipe.scheduler.step

    def noted(velocity, t, sample, **options):
        seen.append(sample)
        return step(velocity, t, sample, **options)

    pipeline.pipe.scheduler.step = noted
    noise = []
    try:
        for rule in methods().values():
            for seeds in ([7, 11], [11, 7, 3]):
                seen.clear()
                guider = rule.build(rule.parameters().with_model_defaults(4.0))
                prompts = ["x"] * len(seeds)
                pipeline.sample(prompts, seeds, guider, num_inference_steps=STEPS, size=SIZE)
                noise.append(seen[0][seeds.index(11)])
    finally:
        del pipeline.pipe.scheduler.step
    assert len(noise) == 2 * len(methods())
    assert all(torch.equal(noise[0], other) for other in noise)
    drawn = hand_written.noise()[SEEDS.index(11)]
    assert torch.equal(noise[0].flatten().sort().values, drawn.flatten().sort().values)


def test_another_null_prompt_makes_other_pictures(pipeline) -> None:
    """So "" truly reaches the transformer."""
    first, second = (AutoLoRAGuidance(1.5, 5.0) for _ in range(2))
    other = run(pipeline, second, null_prompt="dogs")
    assert (run(pipeline, first) - other).abs().max() > 1e-3
