"""An import is finished after an interruption, and repeated if its set changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_files import save

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import Progress
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.generation import image_import
from autolora_eval.generation.dataset import ImageDataset
from autolora_eval.generation.image_import import ImageImport
from autolora_eval.generation.image_listing import ImageRecord
from autolora_eval.pipeline.run_pipeline import RunPipeline
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images

pytestmark = pytest.mark.model

Write = Callable[[object], Path]
CELL = "A--Theirs"


@pytest.fixture
def folder(workplace: Path) -> Path:
    """Images of two prompts and two seeds, one of them missing."""
    for number, (prompt, seed) in enumerate((("a dog", 3), ("a dog", 4), ("a cat", 3))):
        save(workplace / "set" / prompt / f"{seed}.png", number)
    return workplace / "set"


@pytest.fixture
def file(write_benchmark: Write, benchmark_data: dict[str, Any], folder: Path) -> Path:
    methods = {"Theirs": {"images": str(folder)}}
    prompts = ["a cat", "a dog"]
    return write_benchmark(
        benchmark_data | {"methods": methods, "baseline": "Theirs", "prompts": prompts}
    )


def generate(file: Path, run: RunFolder, limit_seeds: int | None = None) -> dict[str, Any]:
    RunPipeline(file, run.path, None, limit_seeds).generate()
    return run.read_manifest().image_sets[CELL].model_dump()


def test_a_run_killed_before_its_import_report_writes_it_when_resumed(
    file, folder, run, monkeypatch
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def killed() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(image_import, "write_issues", stop)
            with pytest.raises(KeyboardInterrupt):
                generate(file, run)

    killed()
    assert generate(file, run)["missing"] == 1
    shutil.copy(folder / "a dog" / "3.png", folder / "a cat" / "4.png")
    killed()
    report = generate(file, run)
    assert (report["missing"], report["duplicate"]) == (0, 1)


def test_the_import_report_is_in_the_manifest_before_other_images_are_made(
    write_benchmark, benchmark_data, run, folder, monkeypatch
):
    """They may take hours, and fail."""
    methods = {"Theirs": {"images": str(folder)}, "LoRA": {"guider": "lora"}}
    both = write_benchmark(benchmark_data | {"methods": methods, "baseline": "LoRA"})

    def fail(*_: object) -> None:
        raise AutoLoRAEvalError("no memory")

    monkeypatch.setattr("autolora_eval.generation.guider_backend.GuidedModel", fail)
    with pytest.raises(AutoLoRAEvalError, match="no memory"):
        generate(both, run)
    assert run.read_manifest().image_sets[CELL].images == 3


def test_a_removed_method_leaves_no_import_report(
    file, write_benchmark, benchmark_data, run, folder
):
    generate(file, run)
    methods = {"Others": {"images": str(folder)}}
    other = write_benchmark(
        benchmark_data | {"methods": methods, "baseline": "Others", "prompts": ["a dog"]}
    )
    RunPipeline(other, run.path).generate()
    assert list(run.read_manifest().image_sets) == ["A--Others"]


def test_images_beyond_a_limit_are_not_extra_images(file, run):
    report = generate(file, run, limit_seeds=1)
    expected = {"matched": 2, "beyond_limits": 1, "extra": 0, "missing": 0}
    assert {key: report[key] for key in expected} == expected


def test_each_file_is_hashed_once(file, run, monkeypatch):
    """A set may be many gigabytes."""
    hashed: list[str] = []
    sha256 = ImageRecord.sha256
    monkeypatch.setattr(
        ImageRecord, "sha256", lambda self: hashed.append(self.name) or sha256(self)
    )
    generate(file, run)
    assert sorted(hashed) == ["a cat/3.png", "a dog/3.png", "a dog/4.png"]


def test_a_set_that_changes_while_it_is_copied_is_refused(file, folder, run):
    plan = make_plan(load_benchmark(file))
    found = ImageImport.prepare(plan.cells[0], plan, run)
    dataset = ImageDataset.open(run, plan.cells[0], found.settings_key)

    def copy() -> None:
        with Progress().task("", 1) as advance:
            found.run(dataset, plan.jobs, advance)

    shutil.copy(folder / "a dog" / "3.png", folder / "a cat" / "3.png")
    changed = r"'a cat/3\.png' .*its content is different now.*run the same command again"
    with pytest.raises(AutoLoRAEvalError, match=changed):
        copy()
    shutil.rmtree(folder)
    with pytest.raises(AutoLoRAEvalError, match=r"'a cat/3\.png' of .*changed.*No such file"):
        copy()


def test_an_empty_file_and_a_missing_file_are_reported_separately(folder, file, run):
    (folder / "empty.png").write_bytes(b"")
    rows = [
        {"path": "a dog/3.png", "prompt": "a dog", "seed": 3},
        {"path": "empty.png", "prompt": "a dog", "seed": 4},
        {"path": "nowhere.png", "prompt": "a cat", "seed": 3},
    ]
    listing = folder / "metadata.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert generate(file, run)["unusable"] == 2
    report = run.image_set(CELL).read_text(encoding="utf-8").splitlines()
    assert [row for row in report if row.startswith("unusable")] == [
        "unusable,a cat,3,nowhere.png,missing_file",
        "unusable,a dog,4,empty.png,corrupt_image",
    ]


def test_an_added_and_a_replaced_image_leave_the_other_copies_untouched(file, folder, run):
    generate(file, run)
    first = {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")}
    kept = next(path for path in first if path.match("a-cat*/3.png"))
    shutil.copy(folder / "a cat" / "3.png", folder / "a cat" / "4.png")
    shutil.copy(folder / "a cat" / "3.png", folder / "a dog" / "4.png")
    report = generate(file, run)
    assert (report["matched"], report["missing"], report["duplicate"]) == (4, 0, 2)
    now = {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")}
    unchanged = {path for path, inode in now.items() if first.get(path) == inode}
    assert kept in unchanged
    assert {path.relative_to(run.images(CELL)).name for path in unchanged} == {"3.png"}
    assert len(unchanged) == 2
    # Only the replaced image is stale.
    assert [path.name for path in (run.path / "stale_images").rglob("*.png")] == ["4.png"]
    manifest = run.read_manifest()
    cells = cell_images(manifest, manifest.cells[0], run)
    assert all(image.sha256 is not None for image in cells)
    assert len(cells) == 4


def test_changes_beside_the_images_update_the_report_and_copy_nothing(
    file, folder, write_benchmark, run
):
    """An extra image, another file name, another size of the model."""
    generate(file, run)
    shutil.copy(folder / "a dog" / "3.png", folder / "a dog" / "99.png")
    assert generate(file, run)["extra"] == 1
    (folder / "a dog" / "3.png").rename(folder / "a dog" / "seed_3.png")
    assert generate(file, run)["extra"] == 1
    rows = run.metadata(CELL).read_text(encoding="utf-8")
    assert "a dog/seed_3.png" in rows
    assert "a dog/3.png" not in rows
    before = {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")}
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    data["models"]["A"] |= {"width": 8, "height": 8}
    assert generate(write_benchmark(data), run)["wrong_size"] == 0
    assert {path: path.stat().st_ino for path in run.images(CELL).rglob("*.png")} == before
