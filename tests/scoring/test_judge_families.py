"""Which packages the processors of current families need, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from rubrics import shipped

from autolora_eval._errors import MissingDependencyError
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.doctor import examine
from autolora_eval.scoring.judges.preprocessor import load_preprocessor, needed_packages
from autolora_eval.sources.model_source import Source

TORCHVISION, BOTH = ("torchvision",), ("torchvision", "num2words")
MODELS = {
    "Qwen/Qwen2-VL-7B-Instruct": ({"model_type": "qwen2_vl"}, TORCHVISION),
    "Qwen/Qwen2.5-VL-7B-Instruct": ({"model_type": "qwen2_5_vl"}, TORCHVISION),
    "Qwen/Qwen3-VL-8B-Instruct": ({"model_type": "qwen3_vl"}, TORCHVISION),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": ({"model_type": "llava_onevision"}, TORCHVISION),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": ({"model_type": "smolvlm"}, BOTH),
    "OpenGVLab/InternVL3-8B-hf": ({"model_type": "internvl"}, TORCHVISION),
    "mistral-community/pixtral-12b": (
        {"model_type": "llava", "vision_config": {"model_type": "pixtral"}},
        TORCHVISION,
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": ({"model_type": "mistral3"}, TORCHVISION),
    "llava-hf/llava-1.5-7b-hf": ({"model_type": "llava", "vision_config": None}, ()),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": ({"model_type": "mllama"}, ()),
}


@pytest.mark.parametrize("name", MODELS)
def test_needed_packages_by_configuration_and_by_name(name: str, tmp_path: Path) -> None:
    config, packages = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert needed_packages(Source("judge", "folder", str(tmp_path))) == packages
    assert needed_packages(Source(name, "hub", name)) == packages


@pytest.mark.skipif(importlib.util.find_spec("num2words") is not None, reason="it is installed")
def test_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch) -> None:
    """By the run, before the processor is loaded, and by the doctor."""
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in BOTH else found(name)
    )
    name = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    judge = JudgeConfig(rubric="r", model=name, backend="transformers")
    source = Source(name, "hub", name)
    with pytest.raises(MissingDependencyError, match=r"'torchvision' .*autolora-eval\[judges\]"):
        load_preprocessor(judge, source, shipped("pixel_art"))
    own = examine("mine", judge, source).backends[0]
    assert not own.runs
    needed = [each for each in own.requirements if each.step.endswith("[judges]'")]
    assert [each.fact for each in needed] == ["torchvision, num2words not installed"]
