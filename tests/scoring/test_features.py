"""Features: equal to the model's own in any batch; extracted once, and again if stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored_run
import torch
from image_files import encoded
from PIL import Image
from safetensors import safe_open
from scored_run import picture, replace_image, write_images
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, Dinov2Config, Dinov2Model

from autolora_eval._files import sha256_file
from autolora_eval.config.plan import Plan
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.extractor import EXTRACTORS, Loading
from autolora_eval.scoring.extractors.transformers import TransformersExtractor as Extractor
from autolora_eval.sources.model_source import Source

pytestmark = pytest.mark.model

SIZE = 28
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
N = 12  # 2 cells × 3 prompts × 2 seeds


def save_dinov2(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = Dinov2Model(Dinov2Config(**SMALL, image_size=SIZE, patch_size=14))
    for parameter in model.parameters():  # as made, layer scale hides all but the CLS token
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    processor = BitImageProcessor(size={"shortest_edge": SIZE}, crop_size=size)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("models") / "dinov2")


def load(folder: Path, batch_size: int = 4, dtype: torch.dtype = torch.float32) -> Extractor:
    source = Source(str(folder), "folder", str(folder))
    loading = Loading(source, None, torch.device("cpu"), dtype, batch_size)
    return EXTRACTORS.find("transformers").load(loading)


def pictures(count: int) -> list[Image.Image]:
    return [picture(("cell", n, 0), (40, 56)) for n in range(count)]


def direct(folder: Path, images: list[Image.Image], output: str = "pooler_output") -> np.ndarray:
    """An output of the model, by the library alone."""
    model = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        return np.asarray(model(**pixels)[output])


def test_a_vector_is_the_models_pooled_output_which_is_the_cls_token(dinov2: Path) -> None:
    images = pictures(3)
    found = load(dinov2)(images)
    assert (found.dtype, found.shape) == (np.float32, (3, SMALL["hidden_size"]))
    for output in direct(dinov2, images), direct(dinov2, images, "last_hidden_state")[:, 0]:
        assert np.abs(found - output).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-3, "the model must tell the pictures apart"


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_batch_size_order_and_neighbours_do_not_matter(batch_size: int, dinov2: Path) -> None:
    images = pictures(5)
    expected = direct(dinov2, images)
    extractor = load(dinov2, batch_size)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        for start in range(0, 5, batch_size):
            places = order[start : start + batch_size]
            found = extractor([images[place] for place in places])
            assert np.abs(found - expected[places]).max() < 1e-5


def test_a_short_batch_is_filled_up_so_that_its_bits_are_the_same(dinov2: Path) -> None:
    images = pictures(4)
    extractor = load(dinov2, 4)
    sizes: list[int] = []
    extractor.model.embeddings.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len([*args, *kwargs.values()][0])), with_kwargs=True
    )
    assert np.array_equal(extractor(images)[:1], extractor(images[:1]))
    assert sizes == [4, 4]


def test_half_precision_is_near_and_comes_as_float32(dinov2: Path) -> None:
    images = pictures(3)
    found = load(dinov2, dtype=torch.float16)(images)
    assert found.dtype == np.float32
    expected = direct(dinov2, images)
    scale = np.abs(expected).max()
    assert 0 < np.abs(found - expected).max() < 0.05 * scale


# The stage.


@pytest.fixture
def make(planned: Callable[..., Plan], dinov2: Path) -> Callable[..., Plan]:
    """A function that returns a plan with the tiny extractor, with changes to `features`."""
    own = {"model": str(dinov2), "batch_size": 4}
    return lambda **features: planned(features=own | features)


@pytest.fixture
def folder(make: Callable[..., Plan], tmp_path: Path) -> RunFolder:
    write_images(make(), folder := RunFolder(tmp_path / "run"))
    return folder


def extract(plan: Plan, folder: RunFolder) -> tuple[int, int, int]:
    done = scored_run.extract(plan, folder)
    return done.done, done.reused, done.failed


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object) -> None:
        raise AssertionError("the extractor was loaded")

    monkeypatch.setattr(Extractor, "__init__", load)


def test_rows_are_named_by_image(make, folder, dinov2) -> None:
    plan = make()
    assert extract(plan, folder) == (N, 0, 0)
    for cell in plan.cells:
        found = read_features(folder.features(cell.id))
        assert found.ids == [job.file for job in plan.jobs]
        paths = [folder.images(cell.id) / id_ for id_ in found.ids]
        assert found.sha256 == [sha256_file(path) for path in paths]
        expected = direct(dinov2, [Image.open(path).convert("RGB") for path in paths])
        assert np.abs(found.matrix - expected).max() < 1e-5
        with safe_open(folder.features(cell.id), framework="np") as file:
            assert json.loads(file.get_tensor("rows").tobytes())["image_ids"] == found.ids
            assert file.get_tensor("features").dtype == np.float32


def test_features_taken_again_are_the_same_bytes_and_preprocessing_is_recorded(
    make, folder
) -> None:
    done = scored_run.extract(plan := make(), folder)
    assert done.dim == SMALL["hidden_size"]
    assert done.preprocessing["processor"].startswith("BitImageProcessor")
    assert dict(done.preprocessing["crop_size"]) == {"height": SIZE, "width": SIZE}
    assert len(done.identity.sha256) == 64
    files = [folder.features(cell.id) for cell in plan.cells]
    first = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    extract(plan, folder)
    assert [path.read_bytes() for path in files] == first


def test_extractors_do_not_use_tf32(make, folder, monkeypatch) -> None:
    seen, call, before = set(), Extractor.__call__, torch.backends.cudnn.allow_tf32

    def noted(self: Extractor, images: list[Image.Image]) -> Any:
        seen.add(torch.backends.cudnn.allow_tf32)
        return call(self, images)

    monkeypatch.setattr(Extractor, "__call__", noted)
    extract(make(), folder)
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_second_run_does_nothing(make, folder, monkeypatch) -> None:
    plan = make()
    extract(plan, folder)
    before = [folder.features(cell.id).stat().st_mtime_ns for cell in plan.cells]
    no_model(monkeypatch)
    assert extract(plan, folder) == (0, N, 0)
    assert [folder.features(cell.id).stat().st_mtime_ns for cell in plan.cells] == before


def test_only_a_replaced_image_is_extracted_again(make, folder) -> None:
    plan = make()
    extract(plan, folder)
    cell, job = plan.cells[0].id, plan.jobs[2]
    before = read_features(folder.features(cell))
    replace_image(folder, cell, job.file, encoded(picture(("another", 0, 0))))
    assert extract(plan, folder) == (1, N - 1, 0)
    after = read_features(folder.features(cell))
    assert after.sha256[2] == sha256_file(folder.images(cell) / job.file)
    changed = [n for n in range(6) if not np.array_equal(before.matrix[n], after.matrix[n])]
    assert changed == [2]


def test_other_weights_precision_or_preprocessing_extract_all_again(make, folder, tmp_path) -> None:
    extract(make(), folder)
    other = save_dinov2(tmp_path / "other", seed=1)
    assert extract(make(model=str(other)), folder) == (N, 0, 0)
    assert extract(make(model=str(other), dtype="float16"), folder) == (N, 0, 0)
    file = other / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    assert extract(make(model=str(other), dtype="float16"), folder) == (N, 0, 0)


def test_the_same_extractor_elsewhere_is_the_same(make, folder, tmp_path, monkeypatch) -> None:
    extract(make(), folder)
    other = save_dinov2(tmp_path / "elsewhere")
    no_model(monkeypatch)
    assert extract(make(model=str(other)), folder) == (0, N, 0)


def test_a_corrupt_and_a_missing_image_are_listed_and_the_others_kept(
    make, folder, monkeypatch
) -> None:
    plan = make()
    cell = plan.cells[1].id
    files = [job.file for job in plan.jobs]
    replace_image(folder, cell, files[1], b"\x89PNG\r\n\x1a\n no more")
    (folder.images(cell) / files[4]).unlink()
    assert extract(plan, folder) == (N - 2, 0, 2)
    found = read_features(folder.features(cell))
    failed = {files[1]: "corrupt_image", files[4]: "missing_image"}
    assert found.failed == failed
    assert found.ids == [files[n] for n in (0, 2, 3, 5)]
    assert found.matrix.shape == (4, SMALL["hidden_size"])
    # They stay listed, and no model is loaded for what cannot be opened.
    no_model(monkeypatch)
    assert extract(plan, folder) == (0, N - 2, 2)
    assert read_features(folder.features(cell)).failed == failed


def test_a_cell_without_images_has_no_rows(make, folder, monkeypatch) -> None:
    plan = make()
    for cell in plan.cells:
        for job in plan.jobs:
            (folder.images(cell.id) / job.file).unlink()
    no_model(monkeypatch)
    assert extract(plan, folder) == (0, 0, N)
    assert len(read_features(folder.features(plan.cells[0].id)).matrix) == 0


def test_a_last_cell_without_images_hides_neither_length_nor_preprocessing(make, folder) -> None:
    """Also if all vectors were extracted before and the manifest does not say how."""
    plan = make()
    for job in plan.jobs:
        (folder.images(plan.cells[-1].id) / job.file).unlink()
    first = scored_run.extract(plan, folder)
    folder.update_manifest(features=None)
    again = scored_run.extract(plan, folder)
    assert first.dim == again.dim == SMALL["hidden_size"]
    assert first.preprocessing == again.preprocessing is not None


def test_a_torn_file_is_extracted_again(make, folder) -> None:
    plan = make()
    extract(plan, folder)
    path = folder.features(plan.cells[0].id)
    path.write_bytes(path.read_bytes()[:50])
    assert extract(plan, folder) == (N // 2, N // 2, 0)
    assert len(read_features(path).ids) == N // 2


def test_interrupted_and_gone_on_gives_the_same_rows(make, folder, monkeypatch) -> None:
    plan = make()
    extract(plan, folder)
    paths = [folder.features(cell.id) for cell in plan.cells]
    whole = [read_features(path) for path in paths]
    for path in paths:
        path.unlink()
    call, calls = Extractor.__call__, []

    def interrupted(self: Extractor, images: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, images)

    monkeypatch.setattr(Extractor, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(plan, folder)
    monkeypatch.undo()
    monkeypatch.chdir(folder.path.parent)
    assert extract(plan, folder) == (N // 2, N // 2, 0)
    for path, expected in zip(paths, whole, strict=True):
        found = read_features(path)
        assert (found.ids, found.sha256) == (expected.ids, expected.sha256)
        assert np.array_equal(found.matrix, expected.matrix)
