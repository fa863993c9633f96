"""An image that shows nothing stops its cell: it is neither kept nor scored."""

import shutil

import pytest
import torch
from json_lines import read_jsonl
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel, tiny_plan

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.generation.stage import generate
from autolora_eval.sources.lookup import miniature_folder

pytestmark = pytest.mark.model

FLOAT32 = "Check its scales, the LoRA and the VAE."
FLOAT16 = (
    "The VAE may overflow in float16: take another, such as madebyollin/sdxl-vae-fp16-fix for "
    "SDXL, or 'dtype: bfloat16' or 'dtype: float32'."
)


@pytest.mark.parametrize(
    ("bias", "dtype", "problem", "advice"),
    [
        (-3.0, "float32", "has a single colour, RGB 0 0 0", FLOAT32),
        (torch.nan, "float16", "has NaN after decoding", FLOAT16),
    ],
)
def test_black_images_and_nan_stop_each_cell_with_advice(
    run, tmp_path, bias, dtype, problem, advice
):
    model = shutil.copytree(miniature_folder("sdxl"), tmp_path / "sdxl")
    vae = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(vae)
    weights["decoder.conv_out.weight"] *= 0
    weights["decoder.conv_out.bias"][:] = bias
    save_file(weights, vae)
    tiny = TinyModel(model, "miniature:pixel_art_lora", {})
    methods = {"LoRA": {"guider": "lora"}, "CFG": {"guider": "cfg"}}
    keys, seeds = {"num_inference_steps": 1}, {"start": 3, "count": 2}
    given = {"dtype": dtype, "device": "cpu", "prompts": ["a red heart"], "seeds": seeds}
    plan = tiny_plan(tmp_path, tiny, methods, keys, **given)
    with pytest.raises(AutoLoRAEvalError) as raised:
        generate(plan, run, Progress())
    *found, last = str(raised.value).split("\n")
    assert found == [
        f"cell 'T--{name}': the image of 'a red heart', seed 3, {problem}, and 1 more of its "
        "batch like it. failed_images/ lists each. The cell was stopped; images that were made "
        f"before are kept. {advice}"
        for name in ("LoRA", "CFG")
    ]
    assert last.startswith("Everything else finished.")
    assert not list(run.path.rglob("*.png"))
    for cell in plan.cells:
        rows = read_jsonl(run.failed_images(cell.id))
        assert [row["file_name"] for row in rows] == [job.file for job in plan.jobs]
        assert {row["reason"] for row in rows} == {f"the image {problem}"}
