"""A model in a benchmark: LoRAs, parts, scheduler, clip_skip and negative prompt."""

import re
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, save_json, save_lora
from safetensors.numpy import save_file

from autolora_eval._errors import UsageError
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.model_section import scheduler_problems
from autolora_eval.config.schema import Scheduler
from autolora_eval.config.stage_inputs import cell_record
from autolora_eval.config.starter import write_starter

TWO = [{"path": "lora", "scale": 0.8}, {"path": "other.safetensors", "scale": 0.5}]


@pytest.fixture(autouse=True)
def _another_lora(workplace) -> None:
    save_lora(workplace / "other.safetensors")


def test_a_sweep_multiplies_the_scales_of_several_loras(plan_of, with_model):
    swept = with_model(lora=TWO) | {"sweep": {"lora_scale": [0.5, 1.0]}}
    cells = plan_of(swept).cells
    assert [(c.columns["lora_scale"], c.model.spec.lora_scales) for c in cells[::2]] == [
        (0.5, (0.4, 0.25)),
        (1.0, (0.8, 0.5)),
    ]
    in_base = with_model(lora=[TWO[0] | {"part_of_base": True}, TWO[1]])
    in_base["sweep"] = {"lora_scale": [0.3]}
    (cell, _) = plan_of(in_base).cells
    assert cell.columns["lora_scale"] == 0.3
    assert [lora.scale for lora in cell.model.spec.loras] == [0.8, 0.3]


def test_the_order_and_every_scale_are_part_of_the_settings(plan_of, with_model):
    lists = [TWO, TWO[::-1], TWO[:1], [TWO[0], TWO[1] | {"part_of_base": True}]]
    lists += [[TWO[0], TWO[1] | {"scale": 0.6}]]
    keys = set()
    for loras in lists:
        plan = plan_of(with_model(lora=loras))
        keys.add(cell_record(plan.cells[0], plan).plan_key)
    assert len(keys) == len(lists)


def test_a_problem_of_one_lora_is_named_by_its_place(problem, with_model):
    wrong = with_model(lora=[TWO[0], {"path": "absent.safetensors"}])
    assert "models.A.lora.1: no such LoRA: 'absent.safetensors'." in problem(wrong)
    wrong = with_model(lora=[TWO[0], TWO[1] | {"scle": 1.0}])
    assert problem(wrong).endswith("models.A.lora.1.scle: unknown key. Did you mean 'scale'?")


def test_without_a_lora_methods_that_compare_with_the_base_model_are_refused(
    plan_of, load, problem, with_model
):
    advice = "Add a LoRA, or remove the method."
    assert problem(with_model(lora=None)).endswith(
        "methods.AutoLoRA: on 'A': 'autolora' compares the model with and without its LoRA, and "
        f"this model has none. {advice}"
    )
    assert problem(with_model(lora=[TWO[0] | {"part_of_base": True}])).endswith(
        f"and this model has none beside those that are part of the base model. {advice}"
    )
    plain = with_model(lora=None) | {"methods": {"CFG": {"guider": "cfg"}}}
    (cell,) = plan_of(plain).cells
    assert cell.columns["lora_scale"] is None
    del plain["models"]["A"]["lora"]
    assert load(plain).models["A"].loras == ()
    assert problem(plain | {"sweep": {"lora_scale": [0.5]}}).endswith(
        "sweep.lora_scale: has no effect: no model has a LoRA whose scale can change."
    )


def test_a_model_without_a_lora_has_one_cell_in_a_sweep_of_lora_scales(plan_of, with_model):
    data = with_model(lora=TWO) | {"methods": {"CFG": {"guider": "cfg"}}}
    data["sweep"] = {"lora_scale": [0.5, 1.0]}
    data["models"]["Plain"] = {"pipeline": "sdxl"}
    found = [cell.id for cell in plan_of(data).cells]
    assert found == ["A--CFG--lora_scale=0.5", "A--CFG--lora_scale=1", "Plain--CFG"]


def test_a_lora_of_another_base_model_is_refused_by_the_plan(problem, with_model, workplace):
    save_lora(workplace / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    assert problem(with_model()).endswith(
        f"models.A.lora: 1 of the 1 layers that '{workplace}/lora/style.safetensors' tunes of the "
        "denoiser are not in this pipeline, such as 'unet.mid_block.attentions.0.proj_in.lora_A."
        "weight'. Was the LoRA trained on another base model?"
    )


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("layers.9.mlp.fc1", "1 of the 1 layers that '{}' tunes of the text_encoder are not in"),
        ("token_embedding", "1 of the 1 layers that '{}' tunes of the text_encoder are not in"),
        (
            "layers.0.mlp.fc1",
            "'{}': the layer of 'text_encoder.layers.0.mlp.fc1.lora_A.weight' has 4 inputs and 4 "
            "outputs, but 8 inputs and 16 outputs in this pipeline. Was the LoRA trained on",
        ),
    ],
)
def test_a_text_encoder_of_another_base_model_is_refused_by_the_plan(
    problem, with_model, workplace, layer, says
):
    encoder = workplace / "sdxl" / "text_encoder"
    save_json(encoder / "config.json", {})
    names = {"text_model.layers.0.mlp.fc1": (16, 8), "text_model.token_embedding": (4, 4)}
    weights = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in names.items()}
    save_file(weights, encoder / "model.safetensors")
    file, matrix = workplace / "lora.safetensors", np.ones((4, 4), np.float32)
    save_file({f"text_encoder.{layer}.lora_{half}.weight": matrix for half in "AB"}, file)
    assert f"models.A.lora: {says.format(file)}" in problem(with_model(lora={"path": str(file)}))


def test_a_size_that_a_transformer_has_no_patches_for_is_refused(
    problem, load, with_model, workplace
):
    save_json(workplace / "sdxl" / "transformer" / "config.json", {"patch_size": 4})
    assert load(with_model(width=32, height=48)).models["A"].size == (32, 48)
    assert problem(with_model(width=32, height=40)).endswith(
        "models.A.width: expected width and height as multiples of 16, which the transformer of "
        "'sdxl' needs (got 32 × 40)."
    )
    patches = {"patch_size": 4, "pos_embed_max_size": 3}
    save_json(workplace / "sdxl" / "transformer" / "config.json", patches)
    assert "as multiples of 16, at most 48, which" in problem(with_model(width=64, height=48))


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(
    problem, load, with_model, workplace
):
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "x"]}
    save_json(workplace / "sdxl" / "model_index.json", index)
    assert problem(with_model(variant="fp16")).endswith(
        "models.A.variant: 'sdxl' has no variant 'fp16' of unet. Remove 'variant'."
    )
    plain = workplace / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert problem(with_model()).endswith(
        "models.A.variant: 'sdxl' has no weights without a variant of unet. Set one that it "
        "has: fp16."
    )
    assert load(with_model(variant="fp16"))


def test_a_vae_of_another_kind_is_refused(problem, load, with_model, workplace):
    own = {"latent_channels": 4, "block_out_channels": [1, 1, 1, 1]}
    save_json(workplace / "sdxl" / "vae" / "config.json", own)
    save_json(workplace / "other" / "config.json", own | {"latent_channels": 16})
    assert problem(with_model(vae="other")).endswith(
        "models.A.vae: 'other' has latents of 16 channels at 1/8 of the size, but the denoiser of "
        "'sdxl' takes 4 channels at 1/8 of the size."
    )
    save_json(workplace / "other" / "config.json", own)
    assert load(with_model(vae="other")).models["A"].vae.path == workplace / "other"


def test_only_sd3_has_a_third_text_encoder_to_leave_out(problem, with_model):
    assert problem(with_model(text_encoder_3=None)).endswith(
        "models.A.text_encoder_3: 'sdxl' is a StableDiffusionXLPipeline, which has none. Remove "
        "this key."
    )


def test_what_a_single_file_needs(problem, load, with_model, workplace, monkeypatch):
    save_lora(workplace / "sdxl.safetensors")
    assert problem(with_model(pipeline="sdxl.safetensors")).endswith(
        "models.A.pipeline_config: missing; 'sdxl.safetensors' is a single file without tokenizers "
        "and configurations. Name a pipeline folder or hub id that has them, such as "
        "'stabilityai/stable-diffusion-xl-base-1.0'."
    )
    assert "models.A.pipeline_config: it belongs to a single file" in problem(
        with_model(pipeline_config="sdxl")
    )
    assert "'sdxl.ckpt' is a pickle" in problem(
        with_model(pipeline="sdxl.ckpt", pipeline_config="sdxl")
    )
    single = with_model(pipeline="sdxl.safetensors", pipeline_config="sdxl")
    assert problem(single).endswith(
        "models.A.pipeline: 'sdxl.safetensors' has no unet, vae, text_encoder, text_encoder_2 of a "
        "StableDiffusionXLPipeline. Use a checkpoint of the whole pipeline."
    )
    names = ["model.diffusion_model.input_blocks.0", "first_stage_model.a"]
    names += [f"conditioner.embedders.{n}.a" for n in (0, 1)]
    save_file({name: np.ones(1, np.float32) for name in names}, workplace / "sdxl.safetensors")
    model = load(single).models["A"]
    found = (model.pipeline.kind, model.layout.path, model.size)
    assert found == ("file", workplace / "sdxl", (32, 32))
    monkeypatch.setenv("AUTOLORA_EVAL_MODEL", str(workplace / "sdxl.safetensors"))
    named = with_model(pipeline="${AUTOLORA_EVAL_MODEL}", pipeline_config="sdxl")
    assert load(named).models["A"].pipeline.kind == "file"
    save_json(workplace / "sdxl" / "model_index.json", {"_class_name": "ZImagePipeline"})
    assert problem(single).endswith(
        "'sdxl.safetensors' cannot be loaded as a ZImagePipeline: of single files only "
        "StableDiffusionXLPipeline and StableDiffusion3Pipeline work. Use a folder in diffusers' "
        "layout."
    )


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (
            {"text_encoder_3": ["transformers", "T5EncoderModel"]},
            {"text_encoder_3": None},
            "which 'text_encoder_3: null' leaves out. Remove that key, or choose another LoRA.",
        ),
        (
            {},
            {},
            "which 'sdxl' does not have. Was the LoRA trained on another base model? Its header "
            "says 'sd_v3'.",
        ),
    ],
)
def test_a_lora_that_tunes_a_text_encoder_that_is_not_there_is_refused(
    problem, with_model, workplace, index, changes, message
):
    whole = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "x"]}
    save_json(workplace / "sdxl" / "model_index.json", whole | index)
    layer, matrix = "text_encoder_3.block.0.q", np.ones((4, 4), np.float32)
    halves = {f"{layer}.lora_{half}.weight": matrix for half in "AB"}
    save_file(halves, workplace / "lora.safetensors", {"ss_base_model_version": "sd_v3"})
    lora = {"path": "lora.safetensors"}
    assert problem(with_model(lora=lora, **changes)).endswith(
        f"models.A.lora: '{workplace / 'lora.safetensors'}' tunes text_encoder_3 "
        f"('text_encoder_3.block.0.q.lora_A.weight'), {message}"
    )


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


PICKY = """
from diffusers.guiders import ClassifierFreeGuidance

class Whole(ClassifierFreeGuidance):
    def __init__(self, guidance_scale: int = 7):
        super().__init__(guidance_scale)

class Strong(ClassifierFreeGuidance):
    def __init__(self, guidance_scale: float = 7.0):
        super().__init__(guidance_scale)
        if guidance_scale < 6:
            raise ValueError("too weak")
"""


@pytest.mark.model
def test_a_model_scale_that_a_guider_does_not_accept_is_refused_before_the_run(
    plan_of, with_model, workplace, monkeypatch
):
    monkeypatch.setattr("sys.path", list(sys.path))
    (workplace / "picky_for_test.py").write_text(PICKY)
    given = with_model(guidance_scale=2.5)
    given["methods"] = {name: {"guider": f"picky_for_test.{name}"} for name in ("Whole", "Strong")}
    given["baseline"] = "Whole"
    with pytest.raises(UsageError) as caught:
        plan_of(given)
    shown = str(caught.value).splitlines()
    at = "the guidance_scale of 'A', 2.5, does not fit:"
    assert shown[0].endswith(f"{at} expected a valid integer. Set the method's own guidance_scale.")
    assert f"methods.Strong: {at} Strong refuses these values: too weak." in shown[1]
    for method in given["methods"].values():
        method["guidance_scale"] = 6
    assert [cell.columns["guidance_scale"] for cell in plan_of(given).cells] == [6, 6.0]
