"""Pictures of someone else: their formats, their size, and the bytes that their record names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from image_files import encoded
from PIL import Image
from scored_run import judge_plan, picture, replace_image, tables, write_features

from autolora_eval.config.plan import Plan
from autolora_eval.generation.image_sets import read_image_set
from autolora_eval.generation.image_validation import validate_image
from autolora_eval.runs import images
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import ImageError, open_image, read_picture, reduced


def test_a_picture_whose_bytes_are_not_those_of_its_record_is_not_scored(plan, folder) -> None:
    cell, file = plan.cells[0].id, plan.jobs[0].file
    (folder.images(cell) / file).write_bytes(encoded(picture(("another", 0, 0))))
    write_features(plan, folder, lambda place: np.ones(3))
    tables(plan, folder)
    scores = pd.read_parquet(folder.scores).set_index(["cell", "image_id"])
    row = scores.loc[(cell, file)]
    assert (row["image_error"], row["unscored_reason"]) == ("changed_image", "changed_image")
    assert np.isnan(row["pc"])
    assert scores["pc"].isna().sum() == 1


def test_the_judge_is_not_asked_about_a_changed_picture(plan: Plan, folder: RunFolder) -> None:
    for cell in plan.cells:
        for job in plan.jobs:
            (folder.images(cell.id) / job.file).write_bytes(b"another")

    def unasked(requests):
        assert list(requests) == []
        return iter(())

    judge = SimpleNamespace(identity=lambda: {"model": "someone"}, facts=dict, replies=unasked)
    assert judge_plan(plan, folder, judge).unscored == len(plan.cells) * len(plan.jobs)


def test_a_replaced_picture_with_its_record_is_scored(plan: Plan, folder: RunFolder) -> None:
    replace_image(folder, plan.cells[0].id, plan.jobs[0].file, encoded(picture(("another", 0, 0))))
    manifest = folder.read_manifest()
    found = images.cell_images(manifest, manifest.cells[0], folder)
    assert [image.problem for image in found] == [None] * len(plan.jobs)


def test_a_format_that_starts_programs_is_not_opened(tmp_path: Path) -> None:
    data = encoded(picture(("a", 0, 0)), "EPS")
    (tmp_path / "0.png").write_bytes(data)
    with pytest.raises(ImageError, match="corrupt_image"):
        open_image(tmp_path / "0.png")
    assert validate_image(data).problem == "corrupt_image"
    (tmp_path / "a cat").mkdir()
    (tmp_path / "a cat" / "0.eps").write_bytes(data)
    picture(("a", 0, 0)).save(tmp_path / "a cat" / "1.png")
    names = [record.name for record in read_image_set(tmp_path).records]
    assert "a cat/0.eps" not in names
    assert "a cat/1.png" in names


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_path_that_is_not_a_regular_file_is_missing_and_does_not_block(tmp_path, kind) -> None:
    path = tmp_path / "0.png"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ImageError, match="missing_image"):
        open_image(path)


def test_a_file_of_too_many_bytes_is_neither_hashed_nor_opened(plan, folder, monkeypatch) -> None:
    manifest = folder.read_manifest()
    path = images.cell_images(manifest, manifest.cells[0], folder)[0].path
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="too_large"):
        open_image(path)
    found = images.cell_images(manifest, manifest.cells[0], folder)[0]
    assert found.sha256 is None
    assert str(found.problem).startswith("too_large (")


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.new("1", (20_000, 6_000)).save(path)
    for use in (open_image, lambda path: read_picture(path, 10**6)):
        with pytest.raises(ImageError, match=r"too_large \(20000×6000\)"):
            use(path)


def test_a_picture_is_reduced_before_it_waits_in_a_batch() -> None:
    large = Image.new("RGB", (5000, 4000), (10, 20, 30))
    assert reduced(large).size == (1667, 1334)
    assert reduced(large).getpixel((9, 9)) == (10, 20, 30)
    usual = Image.new("RGB", (2048, 2048))
    assert reduced(usual) is usual


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
@pytest.mark.e2e
def test_ten_thousand_pixels_squared_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.new("RGB", (10_000, 10_000), (9, 9, 9)).save(path, compress_level=1)
    code = """
import sys
from pathlib import Path
from autolora_eval.generation.image_validation import validate_image, decode_rgb
from autolora_eval.runs.images import open_image, reduced
data = Path(sys.argv[1]).read_bytes()
assert validate_image(data).colour == (9, 9, 9)
decode_rgb(data)
batch = [reduced(open_image(Path(sys.argv[1]))) for _ in range(4)]
# Not ru_maxrss, which a process inherits from its parent.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1_000_000, "kB"
