"""A tiny random SDXL with LoRAs, made once; runs without a report.

Libraries are imported by the fixtures: the tests that load no model need none.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autolora_eval.runs.folder import RunFolder

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel
    from tiny_models import TinyModel
    from transformers import CLIPTextModel

_NUMBERS = itertools.count()  # no two modules have the same name


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random SDXL."""
    from tiny_models import make_sdxl

    return make_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session", params=["diffusers", "kohya with text encoders"])
def tiny(request: pytest.FixtureRequest, sdxl: Path) -> TinyModel:
    """The tiny SDXL with a LoRA on its UNet, and with a kohya LoRA that tunes the encoders too."""
    from tiny_models import TinyModel, make_lora

    kohya = request.param.startswith("kohya")
    file = sdxl.parent / f"{request.param.replace(' ', '_')}.safetensors"
    return TinyModel(sdxl, file, make_lora(sdxl, file, kohya=kohya, text_encoders=kohya))


@pytest.fixture(scope="session")
def one_lora(sdxl: Path) -> TinyModel:
    """The tiny SDXL with a LoRA on its UNet."""
    from tiny_models import TinyModel, make_lora

    file = sdxl.parent / "style.safetensors"
    return TinyModel(sdxl, file, make_lora(sdxl, file, kohya=False, text_encoders=False))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny SD3 with a LoRA on its transformer."""
    from hand_written import SD3, load
    from tiny_flow_models import make_sd3
    from tiny_models import UNET, TinyModel, write_lora

    folder = make_sd3(tmp_path_factory.mktemp("sd3") / "pipeline")
    file = folder.parent / "lora.safetensors"
    return TinyModel(folder, file, write_lora(load(SD3, folder), file, {"transformer": UNET}))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The run folder of a test."""
    return RunFolder(tmp_path / "run")


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file beside the benchmark with the `CODE` of the test's module."""
    file = tmp_path / f"{request.module.__name__.split('.')[-1]}_{next(_NUMBERS)}.py"
    file.write_text(request.module.CODE)
    return file


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    """A UNet with SDXL's blocks, layers and names, a few channels wide."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        use_linear_projection=True,
    )


@pytest.fixture(scope="session")
def transformer() -> SD3Transformer2DModel:
    import torch
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=3,
        dual_attention_layers=(1,),  # as in SD3.5 Medium
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )


@pytest.fixture(scope="session")
def text_encoder() -> CLIPTextModel:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=99, num_hidden_layers=2, **sizes))
