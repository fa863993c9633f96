"""The extractor of timm's models, where timm is: in the environment that `make vllm` makes.

timm needs torchvision, of which the package index has no CPU build; that environment has both.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from typing import Any

import numpy as np
import other_environment
import pytest

from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.generation.preflight import missing
from autolora_eval.sources.model_source import PICKLE_ADVICE

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the extractor and timm itself make of the same pictures, by model."""
    other_environment.require()
    root = other_environment.ROOT
    script = root / "tests" / "timm_features.py"
    env = {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [other_environment.PYTHON, script, tmp_path_factory.mktemp("timm")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_vectors_equal_timms_pooled_features(made, name: str) -> None:
    """Without the classifier, and with timm's own transform of pictures of several sizes."""
    found = made[name]
    ours, theirs = np.asarray(found["ours"]), np.asarray(found["timm"])
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    assert np.abs(ours[0] - ours[1]).max() > 1e-3, "the model must tell the pictures apart"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_every_tensor_goes_to_a_pretended_gpu(made, name: str) -> None:
    found = made[name]
    np.testing.assert_allclose(found["on_gpu"], found["ours"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_vector_does_not_depend_on_the_number_of_images(made, name: str) -> None:
    found = made[name]
    assert found["alone"] == found["ours"][:1]


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
def test_missing_timm_is_reported_before_the_run(write_benchmark, benchmark_data, tmp_path) -> None:
    features = {"extractor": "timm", "model": "dino"}
    plan = make_plan(load_benchmark(write_benchmark(benchmark_data | {"features": features})))
    message = [text for text in missing(plan, tmp_path / "out", judged=False) if "timm" in text]
    assert len(message) == 1
    assert "pip install 'autolora-eval[timm]'" in message[0]
