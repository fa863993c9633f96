"""Fixtures: the miniature judge, an untrained judge, and requests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from in_process import PROMPTS, judge, pictured

from autolora_eval._resources import miniatures, shipped_root
from autolora_eval.scoring.judges.config import Request
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge
from autolora_eval.scoring.rubric import Rubric, read_rubric


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature judge, or an untrained one of the same architecture."""
    if "judge" in miniatures():
        return miniatures()["judge"]
    from recipes import judge_model, judge_tokenizer

    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    tokenizer = judge_tokenizer.build()
    judge_model.export(judge_model.Judge(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def untrained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained judge whose logits are wider than its tokenizer."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("untrained") / "judge"
    shutil.copytree(model, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(model)
        config.text_config.vocab_size = 1100
        blank = AutoModelForImageTextToText.from_config(config)
    blank.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return read_rubric(shipped_root() / "prompts" / "rubrics" / "pixel_art.yaml")


@pytest.fixture(scope="module")
def loaded(model: Path) -> TransformersJudge:
    return judge(model)


@pytest.fixture
def requests(tmp_path: Path, rubric: Rubric) -> list[Request]:
    return pictured(tmp_path, [rubric.question(prompt) for prompt in PROMPTS])
