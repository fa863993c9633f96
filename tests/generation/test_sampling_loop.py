"""Prompts are encoded once for all images of a model, and images are decoded one at a time."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import PipelineState
from tiny_models import SIZE, TinyModel, tiny_plan

from autolora_eval._progress import Progress
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.sampling_loop import global_seed
from autolora_eval.generation.stage import generate
from autolora_eval.guidance.denoiser_state import adapters_off

pytestmark = pytest.mark.model

PROMPTS = ["a red cat", "two dogs"]
NULL = ["", "blurry"]
CPU = torch.device("cpu")


@pytest.fixture
def pipeline(tiny: TinyModel) -> LoraPipeline:
    return tiny.load(0.8)


@pytest.mark.parametrize("lora", ["on", "off"])
def test_an_embedding_has_the_bits_of_the_pipelines_own_block(pipeline, lora):
    state = PipelineState()
    state.set("prompt", list(PROMPTS))
    state.set("negative_prompt", list(NULL))
    pipeline.pipe.update_components(guider=ClassifierFreeGuidance())
    switched = adapters_off(*pipeline.text_encoders) if lora == "off" else contextlib.nullcontext()
    with switched, torch.no_grad():
        pipeline.pipe.blocks.sub_blocks["text_encoder"](pipeline.pipe, state)
        made = pipeline.embeddings.batch(PROMPTS, NULL, lora)
    assert set(made) == {
        f"{sign}{pooled}prompt_embeds" for sign in ("", "negative_") for pooled in ("", "pooled_")
    }
    for name, value in made.items():
        assert torch.equal(value, state.get(name)), name


def test_a_change_of_embeddings_by_a_guider_does_not_reach_the_next_batch(pipeline):
    before = pipeline.encode(PROMPTS, NULL)
    kept = {name: value.clone() for name, value in before.items()}
    for value in before.values():
        value.zero_()
    after = pipeline.encode(PROMPTS, NULL)
    assert all(torch.equal(after[name], value) for name, value in kept.items())


def test_the_embedding_of_a_negative_prompt_is_kept_once(pipeline):
    made = pipeline.encode(["a cat", "a dog", "a bird"], [""] * 3)
    rows = pipeline.embeddings._rows.values()
    kept = {
        (storage := value.untyped_storage()).data_ptr(): storage.nbytes()
        for row in rows
        for value in row.values()
    }
    of_one_prompt = sum(value.nbytes for value in made.values()) // 3 // 2
    assert sum(kept.values()) == (3 + 1) * of_one_prompt


def test_a_run_encodes_each_prompt_once_for_all_methods(tiny, run, tmp_path, monkeypatch):
    calls: list[str] = []
    load = LoraPipeline.load

    def counted(*args) -> LoraPipeline:
        loaded = load(*args)
        loaded.pipe.text_encoder.register_forward_hook(lambda *_: calls.append("call"))
        return loaded

    monkeypatch.setattr(LoraPipeline, "load", counted)
    methods = {name: {"guider": name} for name in ("lora", "cfg", "autolora")}
    few = {"num_inference_steps": 1}
    plan = tiny_plan(tmp_path, tiny, methods, few, prompts=PROMPTS, seeds={"count": 3})
    generate(plan, run, Progress())
    branches = 2 if "text" in tiny.lora.name else 1  # the base branch has embeddings of its own
    assert len(calls) == 2 * len(plan.benchmark.prompts) * branches  # the prompt and ∅


def test_decoding_one_image_at_a_time_changes_no_image_by_more_than_a_grey_level(pipeline):
    def images() -> np.ndarray:
        guider = ClassifierFreeGuidance(guidance_scale=5.0)
        made = pipeline.sample(PROMPTS, [7, 11], guider, num_inference_steps=2, size=SIZE)
        return np.stack([np.asarray(image, dtype=np.int16) for image in made.images])

    sliced = images()
    pipeline.pipe.vae.disable_slicing()
    assert np.abs(sliced - images()).max() <= 1


def test_seeding_starts_cuda_on_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with two GPUs, whose run uses the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with global_seed(1):
            drawn = torch.rand(1)
    assert drawn == torch.rand(1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
