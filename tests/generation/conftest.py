"""A tiny random SDXL with LoRAs, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import TinyModel, make_lora, make_sdxl


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random SDXL."""
    return make_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session", params=["diffusers", "kohya with text encoders"])
def tiny(request: pytest.FixtureRequest, sdxl: Path) -> TinyModel:
    """The tiny SDXL with a LoRA on its UNet, and with a kohya LoRA that tunes the encoders too."""
    kohya = request.param.startswith("kohya")
    file = sdxl.parent / f"{request.param.replace(' ', '_')}.safetensors"
    return TinyModel(sdxl, file, make_lora(sdxl, file, kohya=kohya, text_encoders=kohya))
