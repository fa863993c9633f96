"""Tiny models of eight current families, with their real processors and chat templates.

They run where torchvision and num2words are: in the environment that `make vllm` makes.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import other_environment
import pytest
from rubrics import shipped

from autolora_eval.scoring.constraint import reply_pattern

pytestmark = pytest.mark.vllm

FAMILIES = ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "LLaVA-OneVision")
FAMILIES += ("SmolVLM", "InternVL", "Pixtral", "Mistral3")


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the judge in this process makes of each family, in another process."""
    folder = tmp_path_factory.mktemp("families")
    return other_environment.printed_by("judge_families.py", folder, *FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reply_follows_the_rubric(family, examined) -> None:
    assert len(examined[family]["together"]) == 4
    for text in examined[family]["together"]:
        assert re.fullmatch(reply_pattern(shipped("prompt_only")), text), text


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_of_a_batch_equal_those_of_single_questions(family, examined) -> None:
    """In float32, and so do the probabilities: prompts and pictures have several sizes."""
    found = examined[family]
    assert found["together"] == found["alone"]
    together, alone = found["probabilities"]
    for batched, single in zip(together, alone, strict=True):
        for these, those in zip(batched, single, strict=True):
            assert np.abs(np.subtract(these, those)).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_another_picture_changes_the_probabilities(family: str, examined: dict[str, Any]) -> None:
    """Those of the first token that is free, after the same question and the same reply so far."""
    one, other = (
        next(values for values in reply if len(values) > 1)
        for (reply,) in examined[family]["other picture"]
    )
    assert np.abs(np.subtract(one, other)).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_prompt_do_nothing(family: str, examined: dict[str, Any]) -> None:
    plain, hostile = examined[family]["special tokens"]
    assert plain == hostile
    assert len(set(plain)) > 1  # those of the template and the image are there
