"""A refused `score --images` leaves a finished run unchanged and creates no folder."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_files import save

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval.pipeline.run_pipeline import run, score_images
from autolora_eval.runs.folder import RunFolder

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("no_report")]
MODEL = {
    "pipeline": "somebody/something-that-is-not-here",
    "lora": {"path": "absent.safetensors", "obtain": "Ask them."},
    "width": 8,
    "height": 8,
}
BENCHMARK: dict[str, Any] = {
    "name": "mine",
    "prompts": ["a cat", "a dog"],
    "seeds": {"start": 0, "count": 2},
    "device": "cpu",
    "models": {"M": MODEL},
    "methods": {"CFG": {"guider": "cfg"}},
    "features": {"model": "miniature:dinov2"},
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(BENCHMARK | changes), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, (prompt, seed) in enumerate((p, s) for p in ("a cat", "a dog") for s in (0, 1)):
        save(tmp_path / "set" / prompt / f"{seed}.png", number)
    return tmp_path / "set"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write(tmp_path / "mine.yaml")


def state(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_refused_command_leaves_a_finished_run_unchanged(images, mine, tmp_path):
    out = tmp_path / "out"
    score_images(images, mine, out)
    before = state(out)
    other = write(tmp_path / "other.yaml", name="other", prompts=["a cow"])
    with pytest.raises(UsageError):
        score_images(images, other, out)
    assert state(out) == before
    (images / "a cat" / "0.png").unlink()
    (images / "a cat" / "1.png").unlink()
    with pytest.raises(UsageError, match="Raise the limits"):
        score_images(images, mine, out, limit_prompts=1)
    assert state(out) == before


def test_a_set_that_does_not_match_leaves_a_run_unchanged(images, tmp_path):
    methods = {"Theirs": {"images": str(images)}}
    run(write(tmp_path / "own.yaml", methods=methods), tmp_path / "out")
    before = state(tmp_path / "out")
    write(tmp_path / "own.yaml", methods=methods, prompts=["a cow"])
    with pytest.raises(UsageError, match="none of the 4 images"):
        run(tmp_path / "own.yaml", tmp_path / "out")
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "other"}, "name"),
        ({"prompts": ["a dog", "a cat"]}, "prompts"),
        ({"features": {"model": "miniature:dinov2", "dtype": "bfloat16"}}, "features"),
    ],
)
def test_scores_of_another_benchmark_are_not_overwritten(images, mine, tmp_path, changes, what):
    out = tmp_path / "out"
    score_images(images, mine, out)
    before = state(out)
    other = write(tmp_path / "other.yaml", **changes)
    message = rf"holds the scores of 'mine-Images'.*\({what}\).*Choose another --output"
    with pytest.raises(UsageError, match=message):
        score_images(images, other, out)
    assert state(out) == before


def test_a_set_of_corrupt_images_is_refused_and_reported_and_claims_no_folder(
    images, mine, tmp_path
):
    for prompt in ("a cat", "a dog"):
        (tmp_path / "broken" / prompt).mkdir(parents=True)
        for seed in (0, 1):
            (tmp_path / "broken" / prompt / f"{seed}.png").write_bytes(b"no image")
    with pytest.raises(AutoLoRAEvalError) as raised:
        score_images(tmp_path / "broken", mine, tmp_path / "out")
    assert "opened: a cat/0.png (corrupt_image), a cat/1.png (corrupt_image)" in str(raised.value)
    assert "and 1 more" in str(raised.value)
    report = RunFolder(tmp_path / "out").image_set("M--Images").read_text(encoding="utf-8")
    assert report.count("unusable") == 4
    assert len(score_images(images, mine, tmp_path / "out").table) == 1


def test_an_output_that_is_a_file_is_refused(images, mine, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match=r"file' is a file, not a run folder"):
            score_images(images, mine, output)


def test_a_refused_command_creates_no_folders(images, tmp_path):
    other = write(tmp_path / "other.yaml", prompts=["a cow"])
    with pytest.raises(UsageError):
        score_images(images, other, tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
