"""Samplers get the model, noise and settings of guiders, and affect no other method."""

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run_command
from json_lines import read_jsonl
from PIL import Image
from report.readers import content_of, text_of
from tiny_models import SIZE, STEPS, TinyModel, tiny_plan

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.config.plan import Plan
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.generation.sampler_api import SampledImage, SamplerModel, SamplerPipeline
from autolora_eval.generation.sampler_backend import GIVE_UP_AFTER, UnusableImageError, check_image
from autolora_eval.generation.stage import GenerationResult, generate
from autolora_eval.guidance.method_registry import GUIDERS
from autolora_eval.pipeline import run_pipeline as stages
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.model

FEW = 2  # steps
CODE = """
import os
import random
import diffusers
import numpy as np
import torch
from PIL import Image

def settings(model):
    width, height = model.size
    return dict(width=width, height=height, num_inference_steps=model.num_inference_steps,
                guidance_scale=model.guidance_scale, clip_skip=model.clip_skip,
                negative_prompt=model.negative_prompt)

def stock(prompt, seed, model):
    return model.pipeline(prompt, latents=model.noise(seed), **settings(model)).images[0]

def vandal(prompt, seed, model):
    "Leaves its hook and its LoRA scale behind."
    model.denoiser.register_forward_hook(lambda module, args, out: (out[0] * 0,))
    model.modular.set_adapters("autolora_eval", 0.1)
    return stock(prompt, seed, model)

def vandal_after(prompt, seed, model):
    "Leaves a hook, another scheduler, no LoRA and another working folder behind."
    image = stock(prompt, seed, model)
    model.denoiser.register_forward_hook(lambda module, args, out: (out[0] * 0,))
    model.modular.set_adapters("autolora_eval", 0.1)
    scheduler = diffusers.DDIMScheduler.from_config(model.pipeline.scheduler.config)
    model.pipeline.scheduler = scheduler
    model.pipeline.unload_lora_weights()
    os.chdir("/")
    return image

def merging(prompt, seed, model):
    "Leaves the LoRA merged into the weights."
    model.denoiser.fuse_lora()
    return stock(prompt, seed, model)

def merged_away(prompt, seed, model):
    "Merges the LoRA, and unloads it: the weights stay as they are."
    model.denoiser.fuse_lora()
    image = stock(prompt, seed, model)
    model.pipeline.unload_lora_weights()
    return image

def hooks_after(prompt, seed, model):
    "Leaves hooks on the VAE and a text encoder, and another LoRA scale, behind."
    image = stock(prompt, seed, model)
    for network in (model.pipeline.vae.decoder, model.pipeline.text_encoder_2.text_projection):
        network.register_forward_hook(lambda module, args, out: out * 0.5)
    model.modular.set_adapters("autolora_eval", 0.1)
    return image

def keywords(*, prompt, seed, model):
    pass

def flat(prompt, seed, model, *, grey: int = 128):
    image = np.full((model.size[1], model.size[0], 3), grey, np.uint8)
    image[-1, -1] = 0
    return image

def safe(prompt, seed, model):
    "Has a safety checker for odd seeds."
    return flat(prompt, seed, model) * np.uint8(seed % 2 == 0)

def overflowing(prompt, seed, model):
    with torch.no_grad():
        model.pipeline.vae.decoder.conv_out.bias[0] = torch.nan
    return stock(prompt, seed, model)

def noisy(prompt, seed, model):
    drawn = np.random.randint(0, 85, (model.size[1], model.size[0], 3))
    drawn += int(85 * random.random()) + int(85 * torch.rand(1))
    return drawn.astype(np.uint8)

def leaver(prompt, seed, model):
    raise SystemExit(0)

def odd_only(prompt, seed, model):
    if seed % 2 == 0:
        raise RuntimeError("even\\nseeds are not liked")
    return flat(prompt, seed, model)

class Counting:
    made = 0

    def __init__(self, grey: int):
        Counting.made += 1
        self.grey, self.calls = grey, 0

    def __call__(self, prompt, seed, model):
        self.calls += 1
        return flat(prompt, seed, model, grey=self.grey + self.calls)
"""


@pytest.fixture
def plan_of(tmp_path: Path, one_lora: TinyModel, module: Path) -> Callable[..., Plan]:
    """A function from methods, their samplers named by function alone, to the plan of them."""

    def plan(methods: dict[str, dict[str, Any]], count: int = 2, **changes: Any) -> Plan:
        named = {
            name: one | ({"sampler": f"{module.stem}.{one['sampler']}"} if "sampler" in one else {})
            for name, one in methods.items()
        }
        lora = {"path": str(one_lora.lora), "scale": 0.7}
        keys = {"lora": lora, "guidance_scale": 4.0, "num_inference_steps": FEW}
        keys |= changes.pop("keys", {})
        seeds = {"start": 0, "count": count}
        return tiny_plan(tmp_path, one_lora, named, keys, seeds=seeds, **changes)

    return plan


def made(plan: Plan, folder: Path) -> tuple[GenerationResult, RunFolder]:
    run = RunFolder(folder)
    return generate(plan, run, Progress()), run


def pixels(run: RunFolder, plan: Plan, method_: str) -> np.ndarray[Any, Any]:
    (cell,) = (cell for cell in plan.cells if cell.method.name == method_)
    files = [run.images(cell.id) / job.file for job in plan.jobs]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


def test_the_standard_pipeline_as_a_sampler_is_the_guider_cfg(plan_of, tmp_path):
    """Base pipeline, LoRA, scheduler, noise: all that it is given is what the guiders have."""
    plan = plan_of(
        {"Stock": {"sampler": "stock"}, "CFG": {"guider": "cfg"}},
        keys={"scheduler": {"class": "UniPCMultistepScheduler"}, "clip_skip": 1},
        prompts=["a red cat", {"prompt": "two dogs", "negative_prompt": "cats"}],
    )
    _, run = made(plan, tmp_path / "run")
    assert np.abs(pixels(run, plan, "Stock") - pixels(run, plan, "CFG")).max() <= 2
    stock, cfg = (read_jsonl(run.metadata(cell.id)) for cell in plan.cells)
    # The standard pipeline makes both passes of a step in one call of two rows.
    assert [row["nfe"] for row in stock] == [row["nfe"] for row in cfg] == [2 * FEW] * 4
    assert [row["negative_prompt"] for row in (*stock, *cfg)] == ["", "", "cats", "cats"] * 2


def test_changes_of_a_sampler_reach_no_other_method_nor_its_own_next_image(plan_of, tmp_path):
    """LoRA, scheduler and hooks; a LoRA that is merged into the weights is not added again."""
    methods = {"Stock": {"sampler": "stock"}, "CFG": {"guider": "cfg"}}
    alone = plan_of(methods)
    _, clean = made(alone, tmp_path / "alone")
    changing = {"Vandal": "vandal", "Merging": "merging", "Away": "merged_away"}
    changing |= {"After": "vandal_after", "Hooks": "hooks_after"}
    all_ = plan_of({name: {"sampler": one} for name, one in changing.items()} | methods)
    _, run = made(all_, tmp_path / "all")
    stock = pixels(run, all_, "Stock")
    assert not np.array_equal(pixels(run, all_, "Vandal"), stock)
    for name in ("Merging", "Away"):
        assert np.abs(pixels(run, all_, name) - stock).max() <= 2
    for name in ("After", "Hooks"):
        assert np.array_equal(pixels(run, all_, name), stock)
    for name in ("Stock", "CFG"):
        assert np.array_equal(pixels(run, all_, name), pixels(clean, alone, name))
    for count in (1, 2):  # one by one as at once
        limited = plan_of({"After": {"sampler": "vandal_after"}}, count=count)
        _, resumed = made(limited, tmp_path / "one-by-one")
    assert np.array_equal(pixels(resumed, limited, "After"), stock)


def test_a_sampler_without_diffusers_loads_no_model(plan_of, tmp_path, monkeypatch):
    monkeypatch.setattr(LoraPipeline, "load", None)
    plan = plan_of({"Flat": {"sampler": "flat", "grey": 7}})
    done, run = made(plan, tmp_path / "run")
    assert (done.made, done.reused) == (2, 0)
    assert (pixels(run, plan, "Flat")[:, 0] == 7).all()
    assert [row["nfe"] for row in read_jsonl(run.metadata("T--Flat"))] == [None, None]
    again, _ = made(plan, tmp_path / "run")
    assert (again.made, again.reused) == (0, 2)
    other, _ = made(plan_of({"Flat": {"sampler": "flat", "grey": 8}}), tmp_path / "run")
    assert other.made == 2, "another parameter makes other images"


def test_global_generators_are_seeded_and_restored(plan_of, tmp_path):
    torch.manual_seed(1)
    state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    plan = plan_of({"Noisy": {"sampler": "noisy"}})
    _, run = made(plan, tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]
    first, second = pixels(run, plan, "Noisy")
    assert not np.array_equal(first, second)
    # Of an interrupted run the second image alone is missing.
    (run.images("T--Noisy") / plan.jobs[1].file).unlink()
    assert made(plan, tmp_path / "run")[0].made == 1
    assert np.array_equal(pixels(run, plan, "Noisy"), [first, second])


def test_generate_says_which_images_were_not_made(plan_of, tmp_path):
    plan = plan_of({"Odd": {"sampler": "odd_only"}}, count=4)
    done = run_command("generate", plan.benchmark.file, "--output", tmp_path / "run")
    failed = RunFolder(tmp_path / "run").failed_images(plan.cells[0].id)
    assert f"{plan.cells[0].id}: 2 images not made, see {failed}" in done.text
    assert (done.code, "RuntimeError: even seeds are not liked" in done.text) == (0, True)


@pytest.mark.usefixtures("no_report")
def test_a_failed_image_is_recorded_with_its_reason_and_the_run_continues(
    plan_of, tmp_path, module
):
    plan = plan_of({"Odd": {"sampler": "odd_only"}, "Flat": {"sampler": "flat"}}, count=4)
    run = stages.run(plan.benchmark.file, tmp_path / "run")
    table = run.table.set_index("method")
    assert table["n_missing"].tolist() == [2, 0]
    # Null is not zero: nothing was counted.
    assert table["nfe"].isna().all()
    odd = run.scores[run.scores["method"] == "Odd"].set_index("seed")["image_error"]
    assert odd[[1, 3]].isna().all()
    line = CODE.splitlines().index('        raise RuntimeError("even\\nseeds are not liked")') + 1
    assert odd[0].startswith("RuntimeError: even seeds are not liked (test_samplers_")
    assert odd[0].endswith(f".py, line {line})")
    assert "even seeds are not liked" in text_of(content_of(run.folder))
    module.write_text(CODE.replace("seed % 2 == 0", "False"))  # the author mends it
    del sys.modules[module.stem]
    mended = stages.run(plan.benchmark.file, tmp_path / "run")
    assert mended.table["n_missing"].tolist() == [0, 0]
    assert list((run.folder.path / "failed_images").glob("*")) == []


@pytest.mark.parametrize(("count", "tried"), [(2, 2), (GIVE_UP_AFTER + 4, GIVE_UP_AFTER)])
def test_a_sampler_without_a_single_image_fails_the_run_after_other_methods(
    plan_of, run, count, tried
):
    methods = {"Bad": {"sampler": "flat", "grey": -1}, "Flat": {"sampler": "flat"}}
    plan = plan_of(methods, count=count)
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan, run, Progress())
    message = str(caught.value)
    assert message.startswith("cell 'T--Bad': the sampler 'test_samplers_")
    assert f".flat' failed on all {tried} images. First failure: OverflowError:" in message
    assert isinstance(caught.value.__cause__.__cause__, OverflowError)
    assert len(read_jsonl(run.metadata("T--Flat"))) == count
    reasons = [row["reason"] for row in read_jsonl(run.failed_images("T--Bad"))]
    assert len(reasons) == count
    assert sum(reason.startswith("not tried after") for reason in reasons) == count - tried


def test_black_images_nan_and_an_end_of_python_are_failures(plan_of, run):
    samplers = {"Safe": "safe", "NaN": "overflowing", "Leaver": "leaver", "Flat": "flat"}
    plan = plan_of({name: {"sampler": sampler} for name, sampler in samplers.items()})
    with pytest.raises(AutoLoRAEvalError) as caught:
        generate(plan, run, Progress())
    nan, leaver, *_ = str(caught.value).splitlines()
    assert re.match(r"cell 'T--NaN': .* failed on all 2 images", nan)
    assert re.match(r"cell 'T--Leaver': .* all 2 images\. First failure: SystemExit", leaver)
    assert len(read_jsonl(run.metadata("T--Flat"))) == 2
    assert [row["seed"] for row in read_jsonl(run.metadata("T--Safe"))] == [0]
    safe, nan = (
        [row["reason"] for row in read_jsonl(run.failed_images(cell))]
        for cell in ("T--Safe", "T--NaN")
    )
    assert safe == [
        "the sampler returned a single colour, RGB 0 0 0 (a safety checker, or a VAE that "
        "overflows in float16)"
    ]
    assert all("invalid value encountered in cast" in reason for reason in nan)


def test_a_sampler_class_is_instantiated_once_per_cell(plan_of, tmp_path):
    plan = plan_of({"A": {"sampler": "Counting", "grey": 10}}, count=3)
    _, run = made(plan, tmp_path / "run")
    assert pixels(run, plan, "A")[:, 0, 0, 0].tolist() == [11, 12, 13]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"sampler": "Counting"}, "methods.A.grey: missing; this key is needed."),
        (
            {"sampler": "settings"},
            "takes (model) by position; its first three arguments must be (prompt, s",
        ),
        (
            {"sampler": "keywords"},
            "takes (nothing) by position; its first three arguments must be (prompt, s",
        ),
        ({"sampler": "flat", "gray": 1}, "methods.A.gray: unknown key. Did you mean 'grey'?"),
        ({"sampler": "flat", "grey": 1.5}, "expected a valid integer (got 1.5)"),
        ({"sampler": "flt"}, "Did you mean 'flat'?"),
        ({"sampler": "CODE"}, "has no 'CODE'."),
    ],
)
def test_parameters_of_a_sampler_are_checked_before_anything_runs(plan_of, method, message):
    with pytest.raises(AutoLoRAEvalError) as caught:
        plan_of({"A": method})
    assert message in str(caught.value)


PICTURE = Image.linear_gradient("L").resize(SIZE).convert("RGB")
ARRAY = np.asarray(PICTURE)


@pytest.mark.parametrize(
    ("result", "nfe"),
    [
        (PICTURE, None),
        (ARRAY, None),
        (PICTURE.convert("RGBA"), None),
        (PICTURE.convert("L"), None),
        (SampledImage(ARRAY, 12), 12),
        (SampledImage(PICTURE), None),
    ],
)
def test_valid_images_of_a_sampler_are_accepted(result, nfe):
    image, declared = check_image(result, SIZE)
    assert (image.mode, image.size, declared) == ("RGB", SIZE, nfe)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType: expected a PIL image or uint8 [H, W, 3]"),
        ([PICTURE], "returned list: expected"),
        (torch.zeros(3, *SIZE), "returned Tensor: expected"),
        (Image.new("RGB", (8, 16)), "returned an image of 8×16 pixels: expected 32×32"),
        (ARRAY[:16], "returned an image of 32×16 pixels: expected 32×32"),
        (ARRAY / 255, "returned an array of float64 [32, 32, 3]: expected uint8 [H, W, 3]"),
        (ARRAY * np.nan, "returned an array with NaN or infinite values"),
        (ARRAY[..., 0], "returned an array of uint8 [32, 32]: expected"),
        (ARRAY.transpose(2, 0, 1), "returned an array of uint8 [3, 32, 32]: expected"),
        (SampledImage(ARRAY, -1), "reported nfe=-1"),
        (SampledImage(ARRAY, True), "reported nfe=True"),
        (SampledImage(None), "returned NoneType"),
        (ARRAY * 0, "returned a single colour, RGB 0 0 0 (a safety checker, or a VAE that over"),
    ],
)
def test_unusable_images_of_a_sampler_are_refused(result, message):
    with pytest.raises(UnusableImageError) as caught:
        check_image(result, SIZE)
    assert message in str(caught.value)


def test_a_sampler_gets_the_noise_and_settings_of_every_method(one_lora):
    resolved = one_lora.resolved(0.7)
    shared = SamplerPipeline(resolved, torch.device("cpu"), torch.float32)
    model = SamplerModel(resolved, shared)
    # What needs no pipeline loads none.
    assert (model.lora_scales, model.num_inference_steps, model.size) == ((0.7,), STEPS, SIZE)
    assert (model.loras, model.base) == ((one_lora.lora,), str(one_lora.pipeline))
    assert shared.loaded is None
    seen: list[torch.Tensor] = []
    pipeline = one_lora.load(0.7)
    pipeline.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    guider = GUIDERS.find("cfg").build(GUIDERS.find("cfg").parameters(guidance_scale=4.0))
    pipeline.sample(["x"], [9], guider, num_inference_steps=STEPS, size=SIZE)
    sigma = pipeline.pipe.scheduler.init_noise_sigma
    expected = model.noise(9) * sigma / (sigma**2 + 1) ** 0.5
    assert torch.allclose(seen[0], expected, atol=1e-6)
    assert type(model.pipeline).__name__ == "StableDiffusionXLPipeline"
    assert model.pipeline.unet is model.denoiser is model.modular.unet
