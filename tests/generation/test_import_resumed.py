"""An import that was cut short, or whose set changed, is finished and accounted for anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._pipeline import RunPipeline
from autolora_eval._progress import Progress
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.generation import image_import as imported
from autolora_eval.generation.image_sets.records import Entry
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images

Write = Callable[[object], Path]
CELL = "A--Theirs"


@pytest.fixture
def place(workplace: Path) -> Path:
    """Images of two prompts and two seeds, one of them missing."""
    for number, (prompt, seed) in enumerate((("a dog", 3), ("a dog", 4), ("a cat", 3))):
        file = workplace / "set" / prompt / f"{seed}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
    return workplace / "set"


@pytest.fixture
def file(write_benchmark: Write, benchmark_data: dict[str, Any], place: Path) -> Path:
    methods = {"Theirs": {"images": str(place)}}
    prompts = ["a cat", "a dog"]
    return write_benchmark(
        benchmark_data | {"methods": methods, "baseline": "Theirs", "prompts": prompts}
    )


def generate(file: Path, out: Path, limit_seeds: int | None = None) -> dict[str, Any]:
    RunPipeline.start(file, out, None, limit_seeds).generate()
    told: dict[str, Any] = RunFolder(out).read_manifest()["image_sets"][CELL]
    return told


def test_a_run_killed_after_the_import_still_tells_of_it(
    file: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(imported, "write_account", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(file, tmp_path / "out")
    assert generate(file, tmp_path / "out")["missing"] == 1
    shutil.copy(place / "a dog" / "3.png", place / "a cat" / "4.png")
    with monkeypatch.context() as patched:
        patched.setattr(imported, "write_account", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(file, tmp_path / "out")
    told = generate(file, tmp_path / "out")
    assert (told["missing"], told["duplicate"]) == (0, 1)


def test_the_account_stands_before_a_guider_begins(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows may take hours, and fail."""

    def fail(*_: object) -> None:
        raise AutoLoRAEvalError("no memory")

    monkeypatch.setattr("autolora_eval.generation.stage._sample", fail)
    with pytest.raises(AutoLoRAEvalError, match="no memory"):
        generate(file, tmp_path / "out")
    assert RunFolder(tmp_path / "out").read_manifest()["image_sets"][CELL]["images"] == 3


def test_a_method_that_is_gone_leaves_no_account(
    file: Path, write_benchmark: Write, benchmark_data: dict[str, Any], tmp_path: Path, place: Path
) -> None:
    generate(file, tmp_path / "out")
    methods = {"Others": {"images": str(place)}}
    other = write_benchmark(
        benchmark_data | {"methods": methods, "baseline": "Others", "prompts": ["a dog"]}
    )
    RunPipeline.start(other, tmp_path / "out").generate()
    assert list(RunFolder(tmp_path / "out").read_manifest()["image_sets"]) == ["A--Others"]


def test_images_beyond_a_limit_are_no_extra_ones(file: Path, tmp_path: Path) -> None:
    told = generate(file, tmp_path / "out", limit_seeds=1)
    assert (told["matched"], told["beyond_limits"], told["extra"], told["missing"]) == (2, 1, 0, 0)


def test_each_file_is_hashed_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set may be many gigabytes."""
    hashed: list[str] = []
    sha256 = Entry.sha256
    monkeypatch.setattr(Entry, "sha256", lambda self: hashed.append(self.name) or sha256(self))
    generate(file, tmp_path / "out")
    assert sorted(hashed) == ["a cat/3.png", "a dog/3.png", "a dog/4.png"]


def test_a_set_that_changes_while_it_is_copied_is_told(
    file: Path, place: Path, tmp_path: Path
) -> None:
    plan = make_plan(load_benchmark(file))
    found = imported.ImportedCell.find(plan.cells[0], plan)
    dataset = imported.ImageDataset.open(RunFolder(tmp_path), plan.cells[0], found.settings_key)

    def fill() -> None:
        with Progress().task("", 1) as advance:
            found.fill(dataset, list(plan.jobs), advance)

    shutil.copy(place / "a dog" / "3.png", place / "a cat" / "3.png")
    with pytest.raises(AutoLoRAEvalError, match=r"'a cat/3\.png' .*another content.*run it again"):
        fill()
    shutil.rmtree(place)
    with pytest.raises(AutoLoRAEvalError, match=r"'a cat/3\.png' of .*changed.*No such file"):
        fill()


def test_an_empty_file_and_one_that_a_listing_only_names_are_told_apart(
    place: Path, file: Path, tmp_path: Path
) -> None:
    (place / "empty.png").write_bytes(b"")
    rows = [
        {"path": "a dog/3.png", "prompt": "a dog", "seed": 3},
        {"path": "empty.png", "prompt": "a dog", "seed": 4},
        {"path": "nowhere.png", "prompt": "a cat", "seed": 3},
    ]
    listing = place / "metadata.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert generate(file, tmp_path / "out")["unusable"] == 2
    account = RunFolder(tmp_path / "out").image_set(CELL).read_text(encoding="utf-8").splitlines()
    assert [row for row in account if row.startswith("unusable")] == [
        "unusable,a cat,3,nowhere.png,missing_file",
        "unusable,a dog,4,empty.png,corrupt_image",
    ]


def test_one_image_more_and_one_replaced_leave_the_others_as_they_are(
    file: Path, place: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "out")
    generate(file, run.path)
    first = {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")}
    kept = next(path for path in first if path.match("a-cat*/3.png"))
    shutil.copy(place / "a cat" / "3.png", place / "a cat" / "4.png")
    shutil.copy(place / "a cat" / "3.png", place / "a dog" / "4.png")
    told = generate(file, run.path)
    assert (told["matched"], told["missing"], told["duplicate"]) == (4, 0, 2)
    now = {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")}
    unchanged = {path for path, inode in now.items() if first.get(path) == inode}
    assert kept in unchanged
    assert {path.relative_to(run.images(CELL)).name for path in unchanged} == {"3.png"}
    assert len(unchanged) == 2
    # The image that was replaced is the only one put aside.
    assert [path.name for path in (run.path / "stale_images").rglob("*.png")] == ["4.png"]
    plan = make_plan(load_benchmark(file))
    cells = cell_images(plan, plan.cells[0], run)
    assert all(image.sha256 is not None for image in cells)
    assert len(cells) == 4


def test_what_changes_beside_the_images_themselves_is_told(
    file: Path, place: Path, write_benchmark: Write, tmp_path: Path
) -> None:
    """An image more that nobody asks for, another name, another size of the model's."""
    run = RunFolder(tmp_path / "out")
    generate(file, run.path)
    shutil.copy(place / "a dog" / "3.png", place / "a dog" / "99.png")
    assert generate(file, run.path)["extra"] == 1
    (place / "a dog" / "3.png").rename(place / "a dog" / "seed_3.png")
    assert generate(file, run.path)["extra"] == 1
    rows = run.metadata(CELL).read_text(encoding="utf-8")
    assert "a dog/seed_3.png" in rows
    assert "a dog/3.png" not in rows
    before = {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")}
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    data["models"]["A"] |= {"width": 8, "height": 8}
    assert generate(write_benchmark(data), run.path)["wrong_size"] == 0
    assert {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")} == before
