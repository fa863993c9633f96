"""Small copies of images: their sizes, their pixels, and the guard of the run folder."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora_eval.report.grids import load_thumbnails, make_thumbnail, open_run_image


@pytest.mark.parametrize("name", ["../secret.png", "{folder}/secret.png", "link.png"])
def test_an_image_outside_the_run_folder_is_not_opened(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    file = name.format(folder=tmp_path)
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_run_image(run, file)
    thumbnail = load_thumbnails(run, [file])[file]
    assert (thumbnail.data, thumbnail.image, thumbnail.uri) == (b"", None, "")
    assert "leads out of its folder" in thumbnail.problem


@pytest.mark.parametrize(
    ("size", "expected", "enlarged", "suffix"),
    [
        ((64, 64), (64, 64), (256, 256), ".png"),
        ((100, 50), (100, 50), (200, 100), ".png"),
        ((256, 100), (256, 100), (256, 100), ".png"),
        ((257, 257), (129, 129), (129, 129), ".jpg"),
        ((1024, 512), (256, 128), (256, 128), ".jpg"),
        ((1, 3000), (1, 250), (1, 250), ".jpg"),
    ],
)
def test_thumbnails_are_at_most_256_pixels(
    size: tuple[int, int], expected: tuple[int, int], enlarged: tuple[int, int], suffix: str
) -> None:
    for enlarge, expected_size in ((False, expected), (True, enlarged)):
        thumbnail = make_thumbnail(Image.new("RGBA", size, (200, 30, 40, 255)), enlarge=enlarge)
        with Image.open(io.BytesIO(thumbnail.data)) as image:
            assert (image.size, image.mode, thumbnail.suffix) == (expected_size, "RGB", suffix)


def test_pixel_art_keeps_its_pixels() -> None:
    art = np.random.default_rng(0).integers(0, 2, (32, 32, 1), dtype=np.uint8) * 255
    blocks = art.repeat(3, 2).repeat(32, 0).repeat(32, 1)
    with Image.open(io.BytesIO(make_thumbnail(Image.fromarray(blocks)).data)) as image:
        # 1024 pixels become 256: a block of 32 becomes one of 8. JPEG adds at most a few levels.
        found = np.asarray(image).astype(int)
    expected = art.repeat(3, 2).repeat(8, 0).repeat(8, 1).astype(int)
    assert np.abs(found - expected).max() <= 8
