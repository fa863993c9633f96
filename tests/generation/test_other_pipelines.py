"""A benchmark file with Qwen-Image or Z-Image makes its images, with no code for them here."""

import pytest
from hand_written import QwenImage, ZImage, load
from json_lines import read_jsonl
from tiny_flow_models import make_qwen_image, make_z_image
from tiny_models import SIZE, UNET, TinyModel, tiny_plan, write_lora

from autolora_eval._progress import Progress
from autolora_eval.generation.preflight import missing
from autolora_eval.generation.stage import generate

pytestmark = pytest.mark.model

PROMPTS = ["a red cat", "two dogs"]


@pytest.mark.parametrize(("kind", "make"), [(QwenImage, make_qwen_image), (ZImage, make_z_image)])
def test_a_benchmark_file_makes_the_images_of_the_papers_four_methods(kind, make, run, tmp_path):
    pipeline, lora = make(tmp_path / "pipeline"), tmp_path / "lora.safetensors"
    changes = write_lora(load(kind, pipeline), lora, {"transformer": UNET}, std=0.3)
    paper = {
        "LoRA": {"guider": "lora"},
        "AutoLoRA": {"guider": "autolora", "guidance_scale": 1.0},
        "LoRA+CFG": {"guider": "cfg"},
        "AutoLoRA+CFG": {"guider": "autolora"},
    }
    keys = {"num_inference_steps": 3, "width": SIZE[0], "height": SIZE[1]}
    seeds = {"start": 3, "count": 2}
    tiny = TinyModel(pipeline, lora, changes)
    plan = tiny_plan(tmp_path, tiny, paper, keys, prompts=PROMPTS, seeds=seeds)
    assert missing(plan, run.path) == []
    assert generate(plan, run, Progress()).made == 4 * 4
    images = set()
    for cell, n_predictions in zip(plan.cells, (1, 2, 2, 4), strict=True):
        rows = read_jsonl(run.metadata(cell.id))
        assert [(row["prompt"], row["seed"]) for row in rows] == [
            (prompt, seed) for prompt in PROMPTS for seed in (3, 4)
        ]
        assert {row["nfe"] for row in rows} == {cell.nfe} == {3 * n_predictions}
        assert {(row["width"], row["height"]) for row in rows} == {SIZE}
        images |= {row["sha256"] for row in rows}
    assert len(images) == 4 * 4, "every method, prompt and seed gives another image"
