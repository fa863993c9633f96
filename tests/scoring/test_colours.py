"""The colour histogram: its cosine, its invariances, and its use in a benchmark."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scored_run import extract, write_images

from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import RunFolder
from autolora_eval.scoring.diversity import diversity
from autolora_eval.scoring.extractor import EXTRACTORS, Loading

pytestmark = pytest.mark.model

KIND = EXTRACTORS.find("colours")


def vectors(images: list[np.ndarray], bins: int = 8) -> np.ndarray:
    parameters = KIND.parameters.model_validate({"bins": bins})
    loading = Loading(None, parameters, torch.device("cpu"), torch.float32, 4)
    return KIND.load(loading)([Image.fromarray(image) for image in images])


def noise(seed: int, size: tuple[int, int] = (12, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_cosine_is_the_bhattacharyya_coefficient_of_the_colours() -> None:
    """Counted pixel by pixel, in boxes of 64 values a side."""
    images = [noise(0), noise(1)]
    counts: list[dict[tuple[int, ...], float]] = [{}, {}]
    for found, image in zip(counts, images, strict=True):
        for pixel in image.reshape(-1, 3).tolist():
            box = tuple(value // 64 for value in pixel)
            found[box] = found.get(box, 0.0) + 1.0 / (12 * 9)
    p, q = counts
    expected = sum((p[box] * q.get(box, 0.0)) ** 0.5 for box in p)
    a, b = vectors(images, bins=4)
    assert a @ b == pytest.approx(expected, rel=1e-5)
    assert (a @ a, b @ b) == pytest.approx((1.0, 1.0))


def test_position_of_colours_does_not_matter() -> None:
    image = noise(2)
    moved = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    first, flipped, mixed = vectors([image, image[::-1].copy(), moved])
    assert np.array_equal(first, flipped)
    assert np.array_equal(first, mixed)


def test_different_single_colours_are_orthogonal() -> None:
    plain = [np.full((4, 4, 3), colour, dtype=np.uint8) for colour in ((0, 0, 0), (255, 0, 9))]
    found = vectors(plain, bins=2)
    assert found.shape == (2, 8)
    assert [np.flatnonzero(row).tolist() for row in found] == [[0], [4]]
    assert diversity(found).value == 1.0


def test_benchmark_sets_the_number_of_bins(planned, tmp_path) -> None:
    plan = planned(features={"extractor": "colours", "bins": 4})
    write_images(plan, folder := RunFolder(tmp_path / "run"))
    message = extract(plan, folder)
    assert (message.model, message.dim, message.failed) == ("colours", 64, 0)
    assert message.parameters == {"bins": 4}
    features = read_features(folder.features(plan.cells[0].id))
    files = [folder.images(plan.cells[0].id) / id_ for id_ in features.ids]
    again = vectors([np.asarray(Image.open(file)) for file in files], bins=4)
    assert np.array_equal(features.matrix, again)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bin": 4}, "features.bin: unknown key. Did you mean 'bins'?"),
        ({"bins": 1}, "features.bins: Input should be greater than or equal to 2 (got 1)."),
        ({"model": "dino"}, "features.model: unknown key."),
    ],
)
def test_invalid_values_are_reported(problem, benchmark_data, given, message) -> None:
    assert message in problem(benchmark_data | {"features": {"extractor": "colours", **given}})
