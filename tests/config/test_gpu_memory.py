"""The estimate of GPU memory: SDXL's numbers, from headers and configurations alone."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import save_json

from autolora_eval.config.gpu_memory import (
    GIB,
    RESERVE,
    ModelMemory,
    choose_guidance_batching,
    model_memory,
)
from autolora_eval.config.inputs import ResolvedLora, ResolvedModel
from autolora_eval.config.lora_file import LoraFile, LoraLayer, Part
from autolora_eval.config.schema import GuidanceBatching, Lora, Model
from autolora_eval.sources.model_source import Source

PARAMETERS = {
    "unet": 2_567_463_684,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "vae": 83_653_863,
}
UNET = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
}
VAE = {"block_out_channels": [128, 256, 512, 512], "force_upcast": True}


def save_header(file: Path, **parameters: int) -> None:
    """Write a `.safetensors` file of float16 tensors, whose values take no place on the disk."""
    header, end = {}, 0
    for name, n in parameters.items():
        offsets = [end, end := end + 2 * n]
        header[name] = {"dtype": "F16", "shape": [n], "data_offsets": offsets}
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)


@pytest.fixture
def sdxl(tmp_path) -> ResolvedModel:
    """SDXL's configurations, and headers with as many parameters."""
    folder = tmp_path / "sdxl"
    save_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    save_json(folder / "unet" / "config.json", UNET)
    save_json(folder / "vae" / "config.json", VAE)
    for name, parameters in PARAMETERS.items():
        save_header(folder / name / "model.safetensors", weight=parameters)
    spec = Model(pipeline="sdxl", lora=Lora(path="lora"))
    source = Source("sdxl", "folder", str(folder))
    lora = Source("lora", "file", str(folder / "lora.safetensors"))
    return ResolvedModel("SDXL", spec, source, (ResolvedLora(lora),), (1024, 1024))


def estimate(model: ResolvedModel, dtype: str = "auto") -> ModelMemory:
    memory = model_memory(model, dtype)
    assert memory is not None
    return memory


def test_sdxl_takes_what_was_counted_on_its_real_architecture(sdxl):
    memory = estimate(sdxl)
    assert memory.dtype == "float16"
    assert memory.denoiser == 2 * PARAMETERS["unet"]
    assert sum(memory.encoders) == 2 * (123_060_480 + 694_659_840)
    # Counted tensor by tensor: 5049.88 values for each of 128 × 128 places, 3.0 GiB in float32.
    assert memory.pass_per_image == pytest.approx(5049.88 * 128 * 128 * 2, rel=0.01)
    assert memory.decoding == 3 * GIB
    assert memory.vae == 4 * PARAMETERS["vae"]
    assert estimate(sdxl, "bfloat16").decoding == 1.5 * GIB


def test_memory_grows_with_pixels_and_batch_and_one_image_is_decoded_at_a_time(sdxl):
    large, small = estimate(sdxl), estimate(replace(sdxl, size=(512, 512)))
    assert large.pass_per_image == pytest.approx(4 * small.pass_per_image, rel=1e-6)
    assert large.decoding == 4 * small.decoding
    one, eight = large.stages(1), large.stages(8)
    assert eight["denoising"] - one["denoising"] == 7 * large.pass_per_image
    assert eight["decoding"] - one["decoding"] < 0.2 * GIB


def test_the_text_encoders_of_samplers_stay_on_the_card(sdxl):
    guider = estimate(sdxl)
    sampler = replace(guider, encoders_stay=True)
    more = {name: n - guider.stages(1)[name] for name, n in sampler.stages(1).items()}
    encoders = sum(guider.encoders)
    assert more == {"encoding": 0, "denoising": encoders, "decoding": encoders}
    assert sampler.stages(1, "model") == guider.stages(1, "model")


def test_the_largest_batch_fits_its_card_and_the_next_one_does_not(sdxl):
    memory = estimate(sdxl)
    for offload in ("none", "model"):
        for card in (12 * GIB, 24 * GIB):
            batch = memory.largest_batch(card, offload)
            assert memory.peak(batch, offload) <= card - RESERVE < memory.peak(batch + 1, offload)
    assert memory.largest_batch(8 * GIB) == 0
    assert memory.largest_batch(8 * GIB, "model") > 8


def test_predictions_share_a_pass_where_that_fits_the_card(sdxl):
    memory = estimate(sdxl)
    grown = memory.batched("all").stages(8)["denoising"] - memory.stages(8)["denoising"]
    assert grown == 3 * 8 * memory.pass_per_image
    assert memory.batched("separate") == memory == memory.batched("auto")
    fits = memory.batched("conditions").peak(8) + RESERVE

    def chosen(card: int, asked: GuidanceBatching = "auto") -> str:
        return choose_guidance_batching(asked, sdxl, "auto", 8, card)

    assert [chosen(card) for card in (0, fits, fits - 1)] == ["conditions"] * 2 + ["separate"]
    assert chosen(fits - 1, "all") == "all"


def test_base_and_lora_rows_share_a_pass_in_a_small_batch_on_a_cpu(sdxl):
    def chosen(batch_size: int, side: int) -> str:
        model = replace(sdxl, size=(side, side))
        return choose_guidance_batching("auto", model, "float32", batch_size, 0)

    found = {(n, side): chosen(n, side) for n in (1, 4, 16, 17) for side in (64, 128, 256)}
    assert {key for key, batching in found.items() if batching == "all"} == {
        *((1, 64), (4, 64), (16, 64), (1, 128), (4, 128), (1, 256))
    }


def test_only_dora_on_the_feed_forward_layers_widens_the_pass(sdxl):
    """Counted on the real UNet: 5054 values for each place with LoRA, 10274 with DoRA."""
    source = sdxl.loras[0].source
    save_header(source.path, weight=1000)

    def tuned(*parts: Part) -> ModelMemory:
        keys = dict.fromkeys(parts, "")
        layer = LoraLayer("denoiser", "mid_block.attentions.0.ff.net.0.proj", keys, 4, 4.0)
        lora = ResolvedLora(source, LoraFile(source.path, (layer,)))
        return estimate(replace(sdxl, loras=(lora,)))

    lora, dora = tuned("A", "B"), tuned("A", "B", "magnitude")
    assert lora.denoiser == dora.denoiser == 2 * (PARAMETERS["unet"] + 1000)
    assert lora.pass_per_image == estimate(sdxl).pass_per_image
    assert dora.pass_per_image == pytest.approx(10274 * 128 * 128 * 2, rel=0.1)


def test_the_weights_of_the_variant_count_where_a_folder_has_both(sdxl):
    save_header(sdxl.pipeline.path / "unet" / "model.fp16.safetensors", weight=1000)
    assert estimate(sdxl).denoiser == 2 * PARAMETERS["unet"]
    variant = replace(sdxl, spec=sdxl.spec.model_copy(update={"variant": "fp16"}))
    assert estimate(variant).denoiser == 2000


def test_a_single_file_takes_what_its_folder_does(sdxl, tmp_path):
    starts = {
        "unet": "model.diffusion_model.out.",
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
        "vae": "first_stage_model.",
    }
    file = tmp_path / "sdxl.safetensors"
    save_header(file, **{f"{starts[name]}weight": n for name, n in PARAMETERS.items()})
    pipeline = Source("sdxl.safetensors", "file", str(file))
    assert estimate(replace(sdxl, pipeline=pipeline, config=sdxl.pipeline)) == estimate(sdxl)


def test_another_vae_counts_in_place_of_the_pipelines_own(sdxl, tmp_path):
    save_json(tmp_path / "vae" / "config.json", {"block_out_channels": [32, 64, 64, 64]})
    save_header(tmp_path / "vae" / "model.safetensors", weight=1000)
    vae = Source("vae", "folder", str(tmp_path / "vae"))
    other, own = estimate(replace(sdxl, vae=vae)), estimate(sdxl)
    assert other.vae == 4000
    assert other.decoding == own.decoding * 64 / 256
    assert replace(other, vae=own.vae, decoding=own.decoding) == own


def test_a_text_encoder_left_out_takes_nothing(sdxl):
    save_header(sdxl.pipeline.path / "text_encoder_3" / "model.safetensors", weight=1000)
    without = replace(sdxl, spec=sdxl.spec.model_copy(update={"text_encoder_3": None}))
    assert sum(estimate(sdxl).encoders) - sum(estimate(without).encoders) == 2000


def test_the_plan_says_what_fits(sdxl):
    lines = estimate(sdxl).describe(8)
    assert lines[0].startswith("about 8.3 GiB at batch_size 8 in float16 (encoding ")
    assert lines[1].startswith("largest batch_size: none on 8 GB, ")
    assert lines[2].startswith("with offload: ")


def test_nothing_is_estimated_of_weights_that_are_not_here(sdxl):
    (sdxl.pipeline.path / "unet" / "model.safetensors").unlink()
    assert model_memory(sdxl, "auto") is None


def test_nothing_is_estimated_of_configurations_that_say_something_else(sdxl):
    (sdxl.pipeline.path / "unet" / "config.json").write_text("{")
    assert model_memory(sdxl, "auto") is None
    save_json(sdxl.pipeline.path / "unet" / "config.json", {"block_out_channels": 4})
    assert model_memory(sdxl, "auto") is None
