"""A model's scheduler, clip_skip and negative prompt in a benchmark file."""

import re

import pytest
import yaml
from conftest import ROOT, save_json

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.model_section import scheduler_problems
from autolora_eval.config.schema import Scheduler
from autolora_eval.config.stage_inputs import cell_record
from autolora_eval.config.starter import write_starter

KARRAS = {"class": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}


def test_every_scheduler_of_the_documentation_is_one_of_diffusers():
    page = (ROOT / "docs" / "how_to" / "benchmark.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| `(\{class: .*\})` \|$", page, re.MULTILINE)
    assert len(rows) == 13
    for row in rows:
        assert not list(scheduler_problems(Scheduler.model_validate(yaml.safe_load(row))))


NO_CLASS = "no scheduler '{}'. Name a class, such as DPMSolverMultistepScheduler for DPM++ 2M."


@pytest.mark.parametrize(
    ("keys", "key", "says"),
    [
        ({"class": "DPMSolverMultistep"}, "class", "Did you mean 'DPMSolverMultistepScheduler'?"),
        ({"class": "DPM++ 2M Karras"}, "class", NO_CLASS.format("DPM++ 2M Karras")),
        ({"use_karras_sigmas": True}, "class", NO_CLASS.format("")),
        ({**KARRAS, "use_karras_sigma": True}, "use_karras_sigma", "mean 'use_karras_sigmas'?"),
        (
            {**KARRAS, "solver_order": "two"},
            "solver_order",
            "expected a valid integer (got 'two').",
        ),
    ],
)
def test_what_diffusers_does_not_have_is_refused(problem, with_model, keys, key, says):
    line = problem(with_model(scheduler=keys))
    assert f": models.A.scheduler.{key}: " in line
    assert line.endswith(says)


def test_a_clip_skip_without_effect_or_beyond_the_layers_is_refused(problem, with_model, workplace):
    data = with_model(clip_skip=2)
    save_json(workplace / "sdxl" / "text_encoder" / "config.json", {"num_hidden_layers": 2})
    expected = "the text_encoder of 'sdxl' has 2 layers: expected at most 1 (got 2)."
    assert problem(data).endswith(f": models.A.clip_skip: {expected}")
    save_json(workplace / "sdxl" / "model_index.json", {"_class_name": "QwenImagePipeline"})
    expected = "'sdxl' is a QwenImagePipeline, which takes no clip_skip. Remove clip_skip."
    assert problem(data).endswith(f": models.A.clip_skip: {expected}")


@pytest.mark.parametrize(
    ("given", "own", "nfe"),
    [
        (None, "EulerDiscreteScheduler", 20),
        (None, "HeunDiscreteScheduler", 38),
        ({"class": "HeunDiscreteScheduler"}, "EulerDiscreteScheduler", 38),
        (KARRAS, "HeunDiscreteScheduler", 20),
        ({"class": "PNDMScheduler", "skip_prk_steps": True}, "EulerDiscreteScheduler", 22),
    ],
)
def test_the_planned_nfe_counts_the_predictions_of_the_scheduler(
    plan_of, with_model, workplace, given, own, nfe
):
    """10 steps of CFG, with the scheduler of the benchmark or else of the pipeline's folder."""
    save_json(workplace / "sdxl" / "scheduler" / "scheduler_config.json", {"_class_name": own})
    plan = plan_of(with_model(scheduler=given))
    assert plan.cells[0].nfe == nfe


def test_each_sampling_key_makes_other_images(plan_of, with_model, image_key):
    keys = set()
    changes: list[dict[str, object]] = [
        {},
        {"scheduler": {"class": "UniPCMultistepScheduler"}},
        {"scheduler": KARRAS},
        {"clip_skip": 1},
        {"negative_prompt": "blurry"},
        {"compile": True},
        {"channels_last": True},
    ]
    for change in changes:
        plan = plan_of(with_model(**change))
        cell = plan.cells[0]
        keys.add((cell_record(cell, plan).plan_key, image_key(cell, {"loras": [{}]})))
    assert len({plan_key for plan_key, _ in keys}) == len({key for _, key in keys}) == len(changes)


def test_guidance_batching_decides_the_images_of_guiders(planned, image_key):
    plan_keys, keys = set(), set()
    for batching in ("separate", "conditions", "all"):
        plan = planned(guidance_batching=batching)
        plan_keys.add(cell_record(plan.cells[0], plan).plan_key)
        keys.add(image_key(plan.cells[0], {"loras": [{}]}, batching=batching))
    assert len(plan_keys) == len(keys) == 3


@pytest.mark.parametrize(
    ("pipeline", "lora"), [("sdxl", "pixel_art_lora"), ("sd3", "sd3_pixel_art_lora")]
)
def test_the_keys_that_a_first_benchmark_proposes_are_valid(tmp_path, pipeline, lora):
    file = tmp_path / "mine.yaml"
    write_starter(file, f"miniature:{pipeline}", f"miniature:{lora}", ["a cat"], None)
    text = re.sub(r"# (scheduler:|clip_skip:)", r"\1", file.read_text(encoding="utf-8"))
    file.write_text(text, encoding="utf-8")
    model = load_benchmark(file).spec.models["Mine"]
    assert model.scheduler.options
    assert model.clip_skip == 1
