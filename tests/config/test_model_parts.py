"""The parts of a model in a benchmark: several LoRAs or none, and what is refused by the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save_json, save_lora
from safetensors.numpy import save_file

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.config.stage_inputs import cell_record

Write = Callable[[object], Path]
Problem = Callable[[object], str]
Change = Callable[..., dict[str, Any]]
TWO = [{"path": "lora", "scale": 0.8}, {"path": "other.safetensors", "scale": 0.5}]


@pytest.fixture
def with_loras(benchmark_data: dict[str, Any], workplace: Path) -> Callable[..., dict[str, Any]]:
    """A function that returns a benchmark whose model has these LoRAs."""
    save_lora(workplace / "other.safetensors")

    def changed(loras: object, **changes: object) -> dict[str, Any]:
        model = {**benchmark_data["models"]["A"], "lora": loras}
        return {**benchmark_data, "models": {"A": model}, **changes}

    return changed


def test_a_sweep_multiplies_the_scales_of_several_loras(
    write_benchmark: Write, with_loras: Change
) -> None:
    swept = with_loras(TWO, sweep={"lora_scale": [0.5, 1.0]})
    cells = make_plan(load_benchmark(write_benchmark(swept))).cells
    assert [(c.columns["lora_scale"], c.model.spec.lora_scales) for c in cells[::2]] == [
        (0.5, (0.4, 0.25)),
        (1.0, (0.8, 0.5)),
    ]
    in_base = with_loras([TWO[0] | {"part_of_base": True}, TWO[1]], sweep={"lora_scale": [0.3]})
    (cell, _) = make_plan(load_benchmark(write_benchmark(in_base))).cells
    assert (cell.columns["lora_scale"], [lora.scale for lora in cell.model.spec.loras]) == (
        0.3,
        [0.8, 0.3],
    )


def test_the_order_and_every_scale_are_part_of_what_is_asked_for(
    write_benchmark: Write, with_loras: Change
) -> None:
    lists = [TWO, TWO[::-1], TWO[:1], [TWO[0], TWO[1] | {"part_of_base": True}]]
    lists += [[TWO[0], TWO[1] | {"scale": 0.6}]]
    keys = set()
    for loras in lists:
        plan = make_plan(load_benchmark(write_benchmark(with_loras(loras))))
        keys.add(cell_record(plan.cells[0], plan).plan_key)
    assert len(keys) == len(lists)


def test_a_problem_of_one_lora_is_named_by_its_place(problem: Problem, with_loras: Change) -> None:
    wrong = with_loras([TWO[0], {"path": "absent.safetensors"}])
    assert "models.A.lora.1: no such LoRA: 'absent.safetensors'." in problem(wrong)
    wrong = with_loras([TWO[0], TWO[1] | {"scle": 1.0}])
    assert problem(wrong).endswith("models.A.lora.1.scle: unknown key. Did you mean 'scale'?")


def test_without_a_lora_methods_that_compare_with_the_base_model_are_refused(
    write_benchmark: Write, problem: Problem, with_loras: Change
) -> None:
    advice = "State one as 'lora', or remove the method."
    assert problem(with_loras(None)).endswith(
        "methods.AutoLoRA: on 'A': 'autolora' compares the model with and without its LoRA, and "
        f"this model has none. {advice}"
    )
    assert problem(with_loras([TWO[0] | {"part_of_base": True}])).endswith(
        f"and this model has none beside those that are part of the base model. {advice}"
    )
    plain = with_loras(None, methods={"CFG": {"guider": "cfg"}})
    (cell,) = make_plan(load_benchmark(write_benchmark(plain))).cells
    assert cell.columns["lora_scale"] is None
    del plain["models"]["A"]["lora"]
    assert load_benchmark(write_benchmark(plain)).models["A"].loras == ()
    assert problem(plain | {"sweep": {"lora_scale": [0.5]}}).endswith(
        "sweep.lora_scale: has no effect: no model has a LoRA whose scale can change."
    )


def test_a_model_without_a_lora_has_one_cell_in_a_sweep_of_lora_scales(
    write_benchmark: Write, with_loras: Change
) -> None:
    data = with_loras(TWO, methods={"CFG": {"guider": "cfg"}}, sweep={"lora_scale": [0.5, 1.0]})
    data["models"]["Plain"] = {"pipeline": "sdxl"}
    cells = make_plan(load_benchmark(write_benchmark(data))).cells
    assert [cell.id for cell in cells] == [
        "A--CFG--lora_scale=0.5",
        "A--CFG--lora_scale=1",
        "Plain--CFG",
    ]


# Variant, VAE, a text encoder left out, a single file


@pytest.fixture
def changed(benchmark_data: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function that returns a benchmark whose model has these keys."""

    def change(**keys: object) -> dict[str, Any]:
        return {**benchmark_data, "models": {"A": benchmark_data["models"]["A"] | keys}}

    return change


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(
    problem: Problem,
    write_benchmark: Write,
    changed: Change,
    workplace: Path,
) -> None:
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "x"]}
    save_json(workplace / "sdxl" / "model_index.json", index)
    assert problem(changed(variant="fp16")).endswith(
        "models.A.variant: 'sdxl' has no variant 'fp16' of unet. Remove 'variant'."
    )
    plain = workplace / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert problem(changed()).endswith(
        "models.A.variant: 'sdxl' has no weights without a variant of unet. State one that it "
        "has: fp16."
    )
    assert load_benchmark(write_benchmark(changed(variant="fp16")))


def test_a_vae_of_another_kind_is_refused(
    problem: Problem,
    write_benchmark: Write,
    changed: Change,
    workplace: Path,
) -> None:
    own = {"latent_channels": 4, "block_out_channels": [1, 1, 1, 1]}
    save_json(workplace / "sdxl" / "vae" / "config.json", own)
    save_json(workplace / "other" / "config.json", own | {"latent_channels": 16})
    assert problem(changed(vae="other")).endswith(
        "models.A.vae: 'other' has latents of 16 channels at 1/8 of the size, but the denoiser of "
        "'sdxl' takes 4 channels at 1/8 of the size."
    )
    save_json(workplace / "other" / "config.json", own)
    model = load_benchmark(write_benchmark(changed(vae="other"))).models["A"]
    assert model.vae is not None
    assert model.vae.path == workplace / "other"


def test_only_sd3_has_a_third_text_encoder_to_leave_out(problem: Problem, changed: Change) -> None:
    assert problem(changed(text_encoder_3=None)).endswith(
        "models.A.text_encoder_3: 'sdxl' is a StableDiffusionXLPipeline, which has none. Remove "
        "this key."
    )


def test_what_a_single_file_needs(
    problem: Problem,
    write_benchmark: Write,
    changed: Change,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_lora(workplace / "sdxl.safetensors")
    assert problem(changed(pipeline="sdxl.safetensors")).endswith(
        "models.A.pipeline_config: missing; 'sdxl.safetensors' is a single file without tokenizers "
        "and configurations. Name a pipeline folder or hub id that has them, such as "
        "'stabilityai/stable-diffusion-xl-base-1.0'."
    )
    assert "models.A.pipeline_config: it belongs to a single file" in problem(
        changed(pipeline_config="sdxl")
    )
    assert "'sdxl.ckpt' is a pickle" in problem(
        changed(pipeline="sdxl.ckpt", pipeline_config="sdxl")
    )
    single = changed(pipeline="sdxl.safetensors", pipeline_config="sdxl")
    assert problem(single).endswith(
        "models.A.pipeline: 'sdxl.safetensors' has no unet, vae, text_encoder, text_encoder_2 of a "
        "StableDiffusionXLPipeline. Use a checkpoint of the whole pipeline."
    )
    names = ["model.diffusion_model.input_blocks.0", "first_stage_model.a"]
    names += [f"conditioner.embedders.{n}.a" for n in (0, 1)]
    save_file({name: np.ones(1, np.float32) for name in names}, workplace / "sdxl.safetensors")
    model = load_benchmark(write_benchmark(single)).models["A"]
    assert (model.pipeline.kind, model.layout.path, model.size) == (
        "file",
        workplace / "sdxl",
        (32, 32),
    )
    monkeypatch.setenv("AUTOLORA_EVAL_MODEL", str(workplace / "sdxl.safetensors"))
    named = changed(pipeline="${AUTOLORA_EVAL_MODEL}", pipeline_config="sdxl")
    assert load_benchmark(write_benchmark(named)).models["A"].pipeline.kind == "file"
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
        ({}, {}, "which 'sdxl' does not have. Was it trained on another model?"),
    ],
)
def test_a_lora_that_tunes_a_text_encoder_that_is_not_there_is_refused(
    problem: Problem, changed: Change, workplace: Path, index, changes, message
) -> None:
    whole = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "x"]}
    save_json(workplace / "sdxl" / "model_index.json", whole | index)
    layer, matrix = "text_encoder_3.block.0.q", np.ones((4, 4), np.float32)
    halves = {f"{layer}.lora_{half}.weight": matrix for half in "AB"}
    save_file(halves, workplace / "lora.safetensors")
    lora = {"path": "lora.safetensors"}
    assert problem(changed(lora=lora, **changes)).endswith(
        f"models.A.lora: '{workplace / 'lora.safetensors'}' tunes text_encoder_3 "
        f"('text_encoder_3.block.0.q.lora_A.weight'), {message}"
    )
