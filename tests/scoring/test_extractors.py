"""Kinds of extractors: model families, third-party classes, keys and errors."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import scored_run
import torch
from packages import write_package
from PIL import Image
from pretended_gpu import pretended_gpu
from scored_run import picture, write_images
from transformers import (
    AutoModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    DINOv3ViTConfig,
    SiglipConfig,
    SiglipImageProcessor,
    ViTConfig,
    ViTModel,
)

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import content_hash
from autolora_eval.config.plan import Plan
from autolora_eval.config.starter import json_schema
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.records import FeaturesRecord
from autolora_eval.scoring.extractor import EXTRACTORS, ExtractorKind, Loading
from autolora_eval.scoring.extractors.transformers import TransformersExtractor
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model

SIZE = 28
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def pictures(count: int) -> list[Image.Image]:
    return [picture(("cell", n, 0), (40, 56)) for n in range(count)]


def by_kind(folder: Path, images: list[Image.Image], device: str = "cpu") -> np.ndarray:
    """Load a model folder by the shipped kind and take the images' features."""
    source = Source(str(folder), "folder", str(folder))
    kind = EXTRACTORS.find("transformers")
    loading = Loading(source, kind.parameters(), torch.device(device), torch.float32, 4)
    return kind.load(loading)(images)


# The families of models; DINOv2 has tests of its own in test_features.py.


def first_token(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixels).last_hidden_state[:, 0]


def pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return getattr(model, "vision_model", model)(pixel_values=pixels).pooler_output


def projected(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(pooled(model, pixels))


SIDES = {"height": SIZE, "width": SIZE}
CROPPED = {"size": {"shortest_edge": SIZE}, "crop_size": SIDES}
VISION = SMALL | {"image_size": SIZE, "patch_size": 14}
CLIP_TEXT = SMALL | {"vocab_size": 10}
SIGLIP_TEXT = CLIP_TEXT | {"max_position_embeddings": 8, "projection_size": 16}
# Configuration, processor, and what the vector of a picture is.
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "DINOv3": (DINOv3ViTConfig(**VISION), BitImageProcessor(**CROPPED), first_token),
    "CLIP": (
        CLIPConfig(vision_config=VISION, text_config=CLIP_TEXT, projection_dim=12),
        CLIPImageProcessor(**CROPPED),
        projected,
    ),
    "CLIP's vision tower alone": (
        CLIPVisionConfig(**VISION),
        CLIPImageProcessor(**CROPPED),
        pooled,
    ),
    "SigLIP": (
        SiglipConfig(vision_config=VISION, text_config=SIGLIP_TEXT),
        SiglipImageProcessor(size=SIDES),
        pooled,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_gives_its_image_embedding_on_any_device(name: str, tmp_path: Path) -> None:
    config, processor, embedding = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pixels = processor(images=pictures(2), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = embedding(model, pixels).numpy()
    found = by_kind(tmp_path, pictures(2))
    assert np.abs(found - expected).max() < 1e-5
    with pretended_gpu():
        assert np.abs(by_kind(tmp_path, pictures(2), "cuda:0") - expected).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-4, "the model must tell the pictures apart"


def test_a_model_without_pooler_gives_its_first_token() -> None:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**VISION), add_pooling_layer=False).eval()
    processor = CLIPImageProcessor(**CROPPED)
    pixels = processor(images=pictures(2), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = first_token(model, pixels).numpy()
    found = TransformersExtractor(model, processor, 4)(pictures(2))
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed here")
def test_missing_timm_error_says_what_to_install(tmp_path: Path) -> None:
    config = {"model_type": "timm_wrapper", "architecture": "resnet18", "num_classes": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AutoLoRAEvalError, match=r"cannot be loaded.*autolora-eval\[timm\]"):
        by_kind(tmp_path, pictures(1))


@pytest.mark.parametrize("kind", EXTRACTORS.built_in().values(), ids=lambda kind: kind.name)
def test_every_shipped_kind_is_documented(kind: ExtractorKind) -> None:
    assert "" not in (kind.summary, kind.source)


# Third-party classes.

OWN = '''
"""A third-party extractor."""

import numpy as np


class MeanColour:
    """The mean colour of each image."""

    def __init__(self, power: float = 1.0, device=None):
        self.power, self.device = power, device

    def __call__(self, images):
        assert str(self.device) == "cpu"
        return np.stack([{vector} for image in images])

    def preprocessing(self):
        return {{"power": self.power}}
'''
GROWING = "np.ones(1 + len(vars(self).setdefault('seen', []).append(1) or self.seen))"
VECTOR = "(np.asarray(image, dtype=float).mean((0, 1)) + 1) ** self.power"
Make = Callable[..., Plan]


@pytest.fixture
def make(planned: Make) -> Make:
    """A function that returns the plan of a benchmark with this section `features`."""
    return lambda **features: planned(features=features)


def write(workplace: Path, module: str, vector: str = VECTOR) -> str:
    (workplace / f"{module}.py").write_text(OWN.format(vector=vector))
    sys.modules.pop(module, None)
    return f"{module}.MeanColour"


def extract(plan: Plan, folder: RunFolder) -> FeaturesRecord:
    write_images(plan, folder)
    return scored_run.extract(plan, folder)


def test_class_beside_the_benchmark_extracts_features(make, workplace, tmp_path) -> None:
    path = write(workplace, "colours_a")
    plan, folder = make(extractor=path, power=2.0, batch_size=4), RunFolder(tmp_path / "run")
    message = extract(plan, folder)
    assert (message.model, message.dim, message.failed) == (path, 3, 0)
    assert message.preprocessing == {"power": 2.0}
    cell = plan.cells[0]
    found = read_features(folder.features(cell.id))
    first = picture((cell.id, 0, 3))
    assert found.matrix[0] == pytest.approx((np.asarray(first).mean((0, 1)) + 1) ** 2, rel=1e-5)
    assert extract(plan, folder).done == 0


def key(plan: Plan, folder: RunFolder) -> str:
    return str(extract(plan, folder).key)


def test_parameters_and_code_are_part_of_the_key(make, workplace, tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    path = write(workplace, "colours_b")
    keys = [key(make(extractor=path), folder), key(make(extractor=path, power=2.0), folder)]
    assert key(make(extractor=path, power=1.0), folder) == keys[0], "the default, written out"
    write(workplace, "colours_b", VECTOR + " + 0.5")
    keys.append(key(make(extractor=path), folder))
    keys.append(key(make(extractor=write(workplace, "colours_c")), folder))
    assert len(set(keys)) == 4


def test_key_of_the_default_kind_has_model_precision_and_batch_size(make: Make) -> None:
    """So features of runs that were made before there were kinds stay good."""
    from autolora_eval.scoring.features import extractor_key
    from autolora_eval.sources.identity import identity

    plan = make(model="miniature:dinov2", batch_size=4)
    source = plan.benchmark.features
    assert source is not None
    what = {"identity": identity(source), "dtype": "float32"}
    assert plan.benchmark.extractor.to_json() == {}
    parts = {key: value for key, value in what["identity"].items() if key != "name"}
    expected = content_hash({"identity": parts, "dtype": "float32", "batch_size": 4})
    assert extractor_key(what, 4) == expected


def test_bfloat16_tensor_is_accepted(make: Make, workplace: Path, tmp_path: Path) -> None:
    path = write(workplace, "colours_bf16")
    file = workplace / "colours_bf16.py"
    text = file.read_text().replace("return np.stack", "return bf16")
    convert = "\n\nimport torch\nbf16 = lambda rows: torch.tensor(np.stack(rows)).bfloat16()\n"
    file.write_text(text + convert)
    assert extract(make(extractor=path), RunFolder(tmp_path / "run")).dim == 3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("{'mean': np.ones(3)}", "cannot be recorded: Object of type ndarray is not JSON"),
        ("{'mean': np.nan}", "cannot be recorded: Out of range float values"),
        ("'resize'", "cannot be recorded: dictionary update sequence"),
        ("1 / 0", "fails: ZeroDivisionError"),
    ],
)
def test_preprocessing_is_checked_before_extraction(
    make, workplace, tmp_path, returned, message
) -> None:
    path = write(workplace, f"colours_pre{len(returned)}", "exit(1)")
    file = workplace / f"{path.split('.')[0]}.py"
    file.write_text(file.read_text().replace('return {"power": self.power}', f"return {returned}"))
    with pytest.raises(AutoLoRAEvalError, match=rf"preprocessing\(\) of .*'{path}' {message}"):
        extract(make(extractor=path), RunFolder(tmp_path / "run"))


def test_package_registers_an_extractor_by_entry_point(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = "[autolora_eval.extractors]\nmean_colour = colours_d:MeanColour\n"
    write_package(tmp_path, "mean-colour", entry, colours_d=OWN.format(vector=VECTOR))
    kind = EXTRACTORS.find("mean_colour")
    assert kind.code["distribution"] == "mean-colour 1.0"
    assert not kind.needs_model
    with pytest.raises(UsageError, match=r"unknown extractor 'mean_color'\. Did you mean 'mean_c"):
        EXTRACTORS.find("mean_color")


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ("np.ones((2, 2))", r"returned an array of shape \[4, 2, 2\] for 4 images: expected"),
        ("1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("exit(0)", "fails: SystemExit: 0"),
        (GROWING, "returned vectors of 3 numbers, and of 2 before"),
    ],
)
def test_wrong_results_are_errors(make, workplace, tmp_path, vector, message) -> None:
    path = write(workplace, f"colours_e{len(vector)}", vector)
    plan = make(extractor=path, batch_size=1 if vector == GROWING else 4)
    with pytest.raises(AutoLoRAEvalError, match=rf"the extractor '{path}' {message}"):
        extract(plan, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("raise SystemExit(0)", "cannot be created: SystemExit: 0"),
        ("return lambda images: exit(0)", "fails: SystemExit: 0"),
    ],
)
def test_system_exit_in_a_third_party_kind_is_an_error(
    tmp_path, monkeypatch, declared, message
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"kind_{len(declared)}"
    (tmp_path / f"{module}.py").write_text(
        "from autolora_eval.scoring.extractor import ExtractorKind\n"
        f"def load(loading):\n    {declared}\n"
        "KIND = ExtractorKind(name='k', summary='', source='', needs_model=False, load=load)\n"
    )
    kind = EXTRACTORS.find(f"{module}.KIND")
    loading = Loading(None, kind.parameters(), torch.device("cpu"), torch.float32, 4)
    with pytest.raises(AutoLoRAEvalError, match=rf"'{module}\.KIND' {message}"):
        kind.load(loading)(pictures(1))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"modle": "dino"}, "features.modle: unknown key. Did you mean 'model'?"),
        ({"extractor": "transformer"}, "extractor 'transformer'. Did you mean 'transformers'?"),
        ({"extractor": "math.sqrt"}, "'math.sqrt' is not an extractor; expected a class whose"),
        ({"extractor": "PATH", "powr": 2.0}, "features.powr: unknown key. Did you mean 'power'?"),
        ({"extractor": "PATH", "model": "dino"}, "features.model: unknown key."),
        ({"extractor": "PATH", "power": "much"}, "features.power: expected a valid number"),
    ],
)
def test_invalid_features_section_is_rejected_at_load(
    problem, benchmark_data, workplace, features, message
) -> None:
    path = write(workplace, "colours_f")
    given = {key: path if value == "PATH" else value for key, value in features.items()}
    assert message in problem(benchmark_data | {"features": given})


def test_json_schema_restricts_the_keys_of_built_in_kinds(benchmark_data) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())

    def accepts(**features: Any) -> bool:
        return validator.is_valid(benchmark_data | {"features": features})

    assert accepts(model="dino")
    assert accepts(extractor="transformers", model="dino", dtype="float16")
    assert accepts(extractor="my_package.MyExtractor", strength=2)
    assert not accepts(modle="dino")
    assert not accepts(extractor="transformers", strength=2)
