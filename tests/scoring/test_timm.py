"""The extractor of timm's models, where timm is: in the environment that `make vllm` makes.

timm needs torchvision. The package index has no CPU build of it; that environment has both.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import other_environment
import pytest

from autolora_eval.generation.preflight import missing
from autolora_eval.sources.model_source import PICKLE_ADVICE

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the extractor and timm itself make of the same pictures, by model."""
    return other_environment.printed_by("timm_features.py", tmp_path_factory.mktemp("timm"))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_vectors_equal_timms_pooled_features_in_any_batch_and_on_any_device(made, name) -> None:
    """Without the classifier, and with timm's own transform of pictures of several sizes."""
    found = made[name]
    ours, theirs = np.asarray(found["ours"]), np.asarray(found["timm"])
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    assert np.abs(ours[0] - ours[1]).max() > 1e-3, "the model must tell the pictures apart"
    assert found["alone"] == found["ours"][:1]
    np.testing.assert_allclose(found["on_gpu"], ours, rtol=1e-4, atol=1e-5)


def test_weights_are_safetensors_and_preprocessing_is_recorded(made) -> None:
    found = made["vit_tiny_patch16_224"]
    assert found["files"] == ["config.json", "model.safetensors"]
    assert found["preprocessing"]["input_size"] == [3, 48, 48]
    assert found["preprocessing"]["interpolation"] == "bicubic"
    assert made["pickle"] == (
        "the extractor 'pickled' cannot be loaded by timm: it has no model.safetensors, and "
        f"{PICKLE_ADVICE}"
    )


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed here")
def test_missing_timm_is_reported_before_the_run(planned, tmp_path) -> None:
    plan = planned(features={"extractor": "timm", "model": "dino"})
    message = [text for text in missing(plan, tmp_path / "out", judged=False) if "timm" in text]
    assert len(message) == 1
    assert "pip install 'autolora-eval[timm]'" in message[0]
