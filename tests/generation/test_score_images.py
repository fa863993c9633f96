"""Images made elsewhere are scored like our own, and every one of them is reported."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from command import run_command
from conftest import ROOT
from diffusers import StableDiffusionXLPipeline
from image_files import save
from PIL import Image
from typer.testing import CliRunner

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval.cli import app
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.config.stage_inputs import cell_record
from autolora_eval.pipeline.run_pipeline import run, score_images
from autolora_eval.runs.folder import RunFolder

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def _no_report_but_where_it_is_tested(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("report") is None:
        request.getfixturevalue("no_report")


PROMPTS = ["a red heart on a blue background", "a blue house on a black background"]
SEEDS = range(3)
MINIATURES = ROOT / "autolora_eval" / "shipped" / "miniature"
BENCHMARK: dict[str, Any] = {
    "name": "mine",
    "prompts": PROMPTS,
    "seeds": {"start": 0, "count": len(SEEDS)},
    "device": "cpu",
    "models": {
        "M": {
            "pipeline": "miniature:sdxl",
            "lora": {"path": "miniature:pixel_art_lora"},
            "num_inference_steps": 6,
            "guidance_scale": 3.0,
        }
    },
    "methods": {"CFG": {"guider": "cfg"}},
    "features": {"model": "miniature:dinov2"},
    "judge": {
        "backend": "transformers",
        "model": "miniature:judge",
        "rubric": "prompts/rubrics/pixel_art.yaml",
        "max_tokens": 32,
    },
}


# A benchmark of small images whose model is not here.
SMALL: dict[str, Any] = {
    "prompts": ["a cat", "a dog"],
    "seeds": {"start": 0, "count": 2},
    "models": {
        "M": {
            "pipeline": "somebody/something-that-is-not-here",
            "lora": {"path": "absent.safetensors", "obtain": "Ask them."},
            "width": 8,
            "height": 8,
        }
    },
    "judge": None,
}


def write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(BENCHMARK | changes), encoding="utf-8")
    return path


def small(path: Path, **changes: object) -> Path:
    return write(path, **(SMALL | changes))


@pytest.fixture(scope="module")
def plain_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of diffusers' own pipeline, without this package."""
    folder = tmp_path_factory.mktemp("plain")
    pipe = StableDiffusionXLPipeline.from_pretrained(MINIATURES / "sdxl", dtype=torch.float32)
    pipe.load_lora_weights(MINIATURES / "pixel_art_lora")
    pipe.set_progress_bar_config(disable=True)
    options = {"negative_prompt": "", "num_inference_steps": 6, "guidance_scale": 3.0}
    for prompt in PROMPTS:
        (folder / prompt).mkdir()
        for seed in SEEDS:
            noise = torch.Generator().manual_seed(seed)
            image = pipe(prompt, generator=noise, height=64, width=64, **options).images[0]
            image.save(folder / prompt / f"{seed}.png")
    return folder


def test_the_folder_of_a_plain_pipeline_scores_like_our_own_run(plain_images, tmp_path):
    """Both make one image per batch, so pixels agree to rounding."""
    ours = run(write(tmp_path / "mine.yaml", batch_size=1), tmp_path / "ours")
    theirs = score_images(plain_images, tmp_path / "mine.yaml", tmp_path / "theirs", name="CFG")
    for a, b in zip(ours.scores["file"], theirs.scores["file"], strict=True):
        left = np.asarray(Image.open(tmp_path / "ours" / a), dtype=int)
        right = np.asarray(Image.open(tmp_path / "theirs" / b), dtype=int)
        assert np.abs(left - right).max() <= 1
    ours_row, theirs_row = ours.table.iloc[0], theirs.table.iloc[0]
    assert theirs_row["diversity"] == pytest.approx(ours_row["diversity"], abs=1e-3)
    assert (theirs_row["pc"], theirs_row["sa"]) == (ours_row["pc"], ours_row["sa"])


@pytest.fixture
def odd_set(plain_images: Path, tmp_path: Path) -> Path:
    """A set with one image of each issue."""
    folder = tmp_path / "set"
    shutil.copytree(plain_images, folder)
    first, second = (folder / prompt for prompt in PROMPTS)
    (first / "0.png").unlink()
    (first / "1.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64)).save(second / "0.png")
    Image.open(second / "1.png").resize((32, 32)).save(second / "1.png")
    shutil.copy(first / "2.png", second / "2.png")
    shutil.copy(first / "2.png", second / "77.png")
    return folder


def test_every_image_is_measured_or_reported(odd_set, tmp_path):
    benchmark = write(tmp_path / "mine.yaml", methods={"Theirs": {"images": "set", "nfe": 12}})
    found = run(benchmark, tmp_path / "out")
    issues = pd.read_csv(found.folder.image_set("M--Theirs"))
    assert issues[["issue", "prompt", "seed"]].values.tolist() == [
        ["missing", PROMPTS[0], 0],
        ["unusable", PROMPTS[0], 1],
        ["extra", PROMPTS[1], 77],
        ["duplicate", PROMPTS[1], 2],
        ["wrong_size", PROMPTS[1], 1],
        ["constant", PROMPTS[1], 0],
    ]
    record = found.manifest.image_sets["M--Theirs"]
    assert record.model_dump(exclude={"import_key"}) == {
        **{"read_as": "tree of images", "images": 6, "matched": 5, "beyond_limits": 0},
        **{"seeds_by_order": False, "settings_key": found.manifest.cells[0].settings_key},
        **{"missing": 1, "unusable": 1, "extra": 1},
        **{"duplicate": 1, "wrong_size": 1, "constant": 1, "converted": 0},
    }
    row = found.table.iloc[0]
    assert (row["n_images"], row["n_missing"], row["n_unscored"], row["nfe"]) == (6, 2, 2, 12)
    reasons = found.scores.set_index(["prompt", "seed"])["image_error"].dropna().to_dict()
    assert reasons == {(PROMPTS[0], 0): "not_in_the_set", (PROMPTS[0], 1): "corrupt_image"}


def test_a_set_of_corrupt_images_fails_before_a_model_is_loaded(tmp_path):
    (tmp_path / "set" / PROMPTS[0]).mkdir(parents=True)
    (tmp_path / "set" / PROMPTS[0] / "0.png").write_bytes(b"no image")
    methods = {"CFG": {"guider": "cfg"}, "Theirs": {"images": "set"}}
    with pytest.raises(AutoLoRAEvalError, match=r"of the images of .* none can be opened"):
        run(write(tmp_path / "mine.yaml", methods=methods), tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.png")) == []


def test_pipeline_and_lora_of_the_benchmark_are_not_needed(images, mine, tmp_path):
    found = score_images(images, mine, tmp_path / "out", name="LoRA+CFG")
    assert found.table["method"].tolist() == ["LoRA+CFG"]  # it may have the name of a method
    assert found.manifest.benchmark.name == "mine-LoRA-CFG"
    assert found.table["n_missing"].tolist() == [0]
    assert found.table["diversity"].notna().all()


def test_the_file_of_the_lora_may_be_missing(plain_images, tmp_path):
    model = {**BENCHMARK["models"]["M"], "lora": {"path": "not_here.safetensors"}}
    benchmark = write(tmp_path / "mine.yaml", models={"M": model}, judge=None)
    found = score_images(plain_images, benchmark, tmp_path / "out")
    assert found.table["n_missing"].tolist() == [0]
    assert run(tmp_path / "out").table["n_missing"].tolist() == [0]
    plan = run_command("plan", tmp_path / "out").text
    assert "not_here.safetensors (not found)" in plan
    assert "To do" not in plan
    assert "GPU memory" not in plan
    with pytest.raises(UsageError, match=r"no such LoRA: 'not_here\.safetensors'"):
        load_benchmark(benchmark)


def test_the_written_benchmark_keeps_all_that_decides_the_scores(
    plain_images, tmp_path, monkeypatch
):
    found = score_images(plain_images, write(tmp_path / "mine.yaml"), tmp_path / "out")
    monkeypatch.chdir("/")
    again = make_plan(load_benchmark(found.folder.path / "benchmark.yaml"))
    ours = make_plan(load_benchmark(tmp_path / "mine.yaml"))
    assert again.jobs == ours.jobs
    assert again.benchmark.features == ours.benchmark.features
    assert again.benchmark.rubric == ours.benchmark.rubric
    assert [cell.method.kind for cell in again.cells] == ["images"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"guider": "cfg", "images": "lora"}, "a method cannot have both"),
        ({"images": "nowhere"}, "methods.Theirs.images: no images at 'nowhere'"),
    ],
)
def test_a_set_that_cannot_be_is_refused_in_the_benchmark_file(
    problem, benchmark_data, method, message
):
    benchmark_data["methods"]["Theirs"] = method
    assert message in problem(benchmark_data)


def test_an_image_set_is_one_cell_of_a_sweep(planned, benchmark_data, workplace):
    Image.new("RGB", (2, 2)).save(workplace / "lora" / "3.png")
    benchmark_data["methods"]["Theirs"] = {"images": "lora"}
    plan = planned(sweep={"lora_scale": [0.5, 1.0]})
    theirs = [cell for cell in plan.cells if cell.method.name == "Theirs"]
    assert [(cell.point, cell.columns["lora_scale"]) for cell in theirs] == [({}, None)]


def test_the_plan_says_how_a_set_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in range(1, len(SEEDS) + 1):
        save(tmp_path / "set" / PROMPTS[1] / f"{n}.png", n)
    save(tmp_path / "set" / "grid.png", 0)
    write(tmp_path / "mine.yaml", methods={"Theirs": {"images": "set"}})
    done = CliRunner().invoke(app, ["plan", "mine.yaml"])
    assert done.exit_code == 0, done.output
    n = len(SEEDS)
    assert f"Theirs: {n + 1} images (tree of images), {n} used by the benchmark\n" in done.output
    assert f"  {n} missing (in the benchmark, but not in the set)\n" in done.output
    assert "  1 extra (not in the benchmark; not scored)\n" in done.output
    assert "  seeds not known: numbered in order" in done.output


@pytest.mark.report
def test_the_command_scores_a_set(odd_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark = write(tmp_path / "mine.yaml")
    asked = ["score", str(benchmark), "--images", str(odd_set), "--name", "A private one"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "reports" / "mine-A-private-one" / "report.pdf").is_file()


@pytest.mark.report
def test_tables_and_report_contain_no_path_of_this_machine(plain_images, tmp_path):
    """Only the manifest keeps the path."""
    home = tmp_path / "home" / "alice" / "pictures"
    shutil.copytree(plain_images, home)
    prompts = home.with_name("prompts.txt")
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    benchmark = write(tmp_path / "mine.yaml", judge=None, prompts=str(prompts))
    found = score_images(home, benchmark, tmp_path / "out")
    assert found.table["images"].tolist() == ["pictures"]
    for name in ("table.csv", "table.md", "table.tex", "report.html"):
        assert "alice" not in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert "alice" in str(found.manifest.benchmark.content["methods"])


def test_two_sets_with_one_folder_name_are_two_methods(planned, benchmark_data, workplace):
    for place in ("one", "two"):
        (workplace / place / "pictures").mkdir(parents=True)
        benchmark_data["methods"][place] = {"images": str(workplace / place / "pictures")}
    plan = planned()
    theirs = [cell for cell in plan.cells if cell.method.kind == "images"]
    assert [cell.columns["images"] for cell in theirs] == ["pictures", "pictures"]
    keys = {cell_record(cell, plan).plan_key for cell in theirs}
    assert len(keys) == 2


def test_scoring_a_set_overwrites_no_other_file(plain_images, tmp_path):
    benchmark = write(tmp_path / "here" / "benchmark.yaml", judge=None)
    before = benchmark.read_bytes()
    with pytest.raises(UsageError, match=r"benchmark\.yaml' .*Choose another --output"):
        score_images(plain_images, benchmark, tmp_path / "here")
    assert benchmark.read_bytes() == before
    score_images(plain_images, benchmark, tmp_path / "out")
    shutil.copytree(plain_images, tmp_path / "others")
    with pytest.raises(UsageError, match=r"holds the scores of other images.*--name or --output"):
        score_images(tmp_path / "others", benchmark, tmp_path / "out")
    assert len(score_images(plain_images, benchmark, tmp_path / "out").table) == 1
    run_folder = tmp_path / "a run"
    run_folder.mkdir()
    shutil.copy(tmp_path / "out" / "manifest.json", run_folder)
    with pytest.raises(UsageError, match=r"'.*a run' holds another run.*--output"):
        score_images(plain_images, benchmark, run_folder)


def test_a_set_and_its_run_folder_must_not_contain_each_other(plain_images, tmp_path):
    """The second run would read the copies and figures of the first."""
    benchmark = write(tmp_path / "mine.yaml", judge=None)
    for output in (plain_images / "out", plain_images):
        with pytest.raises(UsageError, match="are inside one another"):
            score_images(plain_images, benchmark, output)
    assert not (plain_images / "out").exists()
    out = tmp_path / "out"
    shutil.copytree(plain_images, out / "images")
    with pytest.raises(UsageError, match="are inside one another"):
        score_images(out / "images", benchmark, out)


# ---- A refused command leaves a finished run unchanged and creates no folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, (prompt, seed) in enumerate((p, s) for p in ("a cat", "a dog") for s in (0, 1)):
        save(tmp_path / "set" / prompt / f"{seed}.png", number)
    return tmp_path / "set"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return small(tmp_path / "mine.yaml")


def state(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_refused_command_leaves_a_finished_run_unchanged(images, mine, tmp_path):
    out = tmp_path / "out"
    score_images(images, mine, out)
    before = state(out)
    other = small(tmp_path / "other.yaml", name="other", prompts=["a cow"])
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
    run(small(tmp_path / "own.yaml", methods=methods), tmp_path / "out")
    before = state(tmp_path / "out")
    small(tmp_path / "own.yaml", methods=methods, prompts=["a cow"])
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
    other = small(tmp_path / "other.yaml", **changes)
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


def test_a_refused_command_creates_no_folders(images, mine, tmp_path):
    other = small(tmp_path / "other.yaml", prompts=["a cow"])
    for benchmark, name in ((other, "Images"), (mine, "x" * 500)):
        with pytest.raises(UsageError):
            score_images(images, benchmark, tmp_path / "a" / "b" / "c", name=name)
    assert not (tmp_path / "a").exists()
