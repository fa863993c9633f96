"""Fixtures: the miniature judge, an untrained judge, and requests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autolora_eval.scoring.judge import Request
from autolora_eval.scoring.rubric import Rubric
from autolora_eval.sources.lookup import miniatures

if TYPE_CHECKING:
    from autolora_eval.scoring.judges.transformers_judge import TransformersJudge


@pytest.fixture(scope="module")
def model() -> Path:
    """The miniature judge."""
    return miniatures()["judge"]


@pytest.fixture(scope="module")
def untrained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained judge whose logits are wider than its tokenizer."""
    import torch
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
def loaded(model: Path) -> TransformersJudge:
    from in_process import judge

    return judge(model)


@pytest.fixture
def requests(tmp_path: Path, rubric: Rubric) -> list[Request]:
    from in_process import PROMPTS, pictured

    return pictured(tmp_path, [rubric.question(prompt) for prompt in PROMPTS])
