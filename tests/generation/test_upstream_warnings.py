"""What diffusers, transformers and peft warn of reaches the user once, if it may matter."""

import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel
from transformers.utils import logging as transformers_logging

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import forget_warnings, quiet_libraries
from autolora_eval.generation.diffusion_pipeline import LoraPipeline

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def _another_run() -> None:
    forget_warnings()


def changed(
    one_lora: TinyModel, tmp_path: Path, part: str, lost: str = "", more: str = ""
) -> TinyModel:
    """The tiny SDXL with another set of weights in a component."""
    folder = shutil.copytree(one_lora.pipeline, tmp_path / "sdxl")
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    lacking = {name: value for name, value in weights.items() if not (lost and lost in name)}
    save_file(lacking | ({more: torch.zeros(1)} if more else {}), file, {"format": "pt"})
    return TinyModel(folder, one_lora.lora, one_lora.changes)


def test_warnings_of_libraries_are_shown_once(one_lora, tmp_path, capsys):
    tiny = changed(one_lora, tmp_path, "text_encoder", more="adapter.weight")
    for _ in range(2):
        with quiet_libraries():
            LoraPipeline.load(tiny.resolved(1.0), torch.device("cpu"), torch.float16)
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning of")]
    assert len(found) == 2
    assert found[0].startswith("warning of transformers: CLIPTextModel LOAD REPORT from:")
    assert "adapter.weight | UNEXPECTED" in found[0]
    assert "dtype=torch.float16` cannot run with `cpu` device" in found[1]


@pytest.mark.parametrize(
    ("part", "weight"), [("text_encoder_2", "final_layer_norm.weight"), ("unet", "conv_out.bias")]
)
def test_weights_that_are_missing_are_not_drawn_at_random(one_lora, tmp_path, part, weight):
    tiny = changed(one_lora, tmp_path, part, lost=weight)
    with pytest.raises(AutoLoRAEvalError) as raised, quiet_libraries():
        tiny.load()
    message = str(raised.value)
    assert message.startswith(f"'{tiny.pipeline}': its files lack weights, which would be drawn at")
    assert message.partition("random: ")[2].partition(". Download")[0].endswith(weight)


def test_only_warnings_that_matter_are_shown_and_errors_stay(capsys):
    library = logging.getLogger("peft.tuners.lora")
    with quiet_libraries():
        for text in ("the input was truncated: 'in blue'", "a new version is available"):
            for _ in range(2):
                library.warning(text)
        warnings.warn_explicit("keys missing", UserWarning, "/lib/peft/utils/x.py", 1)
        warnings.warn_explicit("keys missing", FutureWarning, "/lib/peft/utils/x.py", 2)
        library.error("out of order")
    assert capsys.readouterr().err.splitlines() == [
        "warning of peft: the input was truncated: 'in blue'",
        "warning of peft: keys missing",
        "out of order",
    ]


def test_warnings_of_other_code_are_shown_as_ever():
    with pytest.warns(UserWarning, match="of mine"), quiet_libraries():
        warnings.warn("something of mine is missing", UserWarning, stacklevel=1)


def test_bars_that_were_off_stay_off():
    diffusers_logging.disable_progress_bar()
    try:
        with quiet_libraries():
            assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.is_progress_bar_enabled()
        assert not diffusers_logging.is_progress_bar_enabled()
    finally:
        diffusers_logging.enable_progress_bar()
