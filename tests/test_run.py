"""From a benchmark to its report, with a tiny SDXL: whole, interrupted, in stages, and again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml
from command import run_command
from json_lines import read_jsonl
from PIL import Image
from pypdf import PdfReader
from tiny_models import make_lora, make_sdxl

import autolora_eval
from autolora_eval import _display as display
from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import sha256_bytes, sha256_file, write_jsonl
from autolora_eval.config.plan import REPORT_BYTES
from autolora_eval.generation.diffusion_pipeline import LoraPipeline
from autolora_eval.pipeline.run_pipeline import RunPipeline
from autolora_eval.report import write_report
from autolora_eval.runs.feature_file import read_features
from autolora_eval.runs.folder import Run, RunFolder
from autolora_eval.scoring.extractors.transformers import TransformersExtractor as Extractor

pytestmark = pytest.mark.e2e

PROMPTS = ["a red cat", "two dogs"]
SEEDS = [3, 4, 5]
CELLS = ["T--LoRA", "T--AutoLoRA"]
STEPS = 3


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark without a judge: 2 prompts × 3 seeds × 2 methods."""
    folder = tmp_path_factory.mktemp("benchmark")
    pipeline = make_sdxl(folder / "sdxl")
    make_lora(pipeline, folder / "style.safetensors", kohya=False, text_encoders=False)
    content = {
        "name": "tiny",
        "prompts": PROMPTS,
        "seeds": {"start": SEEDS[0], "count": len(SEEDS)},
        "models": {
            "T": {
                "pipeline": "sdxl",
                "lora": {"path": "style.safetensors"},
                "num_inference_steps": STEPS,
            }
        },
        "methods": {
            "LoRA": {"guider": "lora"},
            "AutoLoRA": {"guider": "autolora", "autolora_scale": 1.5, "guidance_scale": 1.0},
        },
        "features": {"model": "miniature:dinov2", "batch_size": 4},
        "batch_size": 2,
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def first(benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return autolora_eval.run(benchmark, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture
def copy(first: Run, tmp_path: Path) -> RunFolder:
    """A copy of the first run, to be changed."""
    shutil.copytree(first.folder.path, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def contents(folder: RunFolder) -> dict[str, str]:
    return {
        str(path.relative_to(folder.path)): sha256_file(path)
        for path in sorted(folder.path.rglob("*"))
        if path.is_file()
    }


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Let a method be called so many times, and then act as if Ctrl-C had been pressed."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def method(self: object, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def test_every_file_of_the_contract_is_there_and_opens(first: Run) -> None:
    folder = first.folder
    for cell in CELLS:
        rows = read_jsonl(folder.metadata(cell))
        assert len(rows) == len(PROMPTS) * len(SEEDS)
        for row in rows:
            with Image.open(folder.images(cell) / row["file_name"]) as image:
                image.verify()
        features = read_features(folder.features(cell))
        assert sorted(features.ids) == sorted(row["file_name"] for row in rows)
        assert features.failed == {}
    table = pd.read_csv(folder.table("csv"))
    assert table["cell"].tolist() == pd.read_parquet(folder.table("parquet"))["cell"].tolist()
    assert table["cell"].tolist() == CELLS
    assert folder.table("md").read_text().count("\n") == len(CELLS) + 2
    assert folder.table("tex").read_text().count(r"\\") == 2 * len(CELLS) + 1
    assert len(pd.read_parquet(folder.scores)) == len(CELLS) * len(PROMPTS) * len(SEEDS)
    assert len(pd.read_csv(folder.diversity)) == len(CELLS) * len(PROMPTS)
    assert pd.read_csv(folder.comparisons)["metric"].tolist() == ["diversity"]
    figures = sorted(folder.figures.glob("*.svg"))
    assert figures
    for figure in figures:
        assert ElementTree.parse(figure).getroot().tag.endswith("svg")
        with Image.open(figure.with_suffix(".png")) as image:
            image.verify()
    assert "tiny" in PdfReader(folder.report_pdf).pages[0].extract_text()
    assert "</html>" in folder.report_html.read_text()
    assert not (folder.path / "judgements").exists()
    assert not [name for name in contents(folder) if ".partial-" in name]


def test_the_run_takes_the_disk_that_the_plan_says(benchmark: Path, first: Run) -> None:
    plan = autolora_eval.make_plan(autolora_eval.load_benchmark(benchmark))
    taken = sum(path.stat().st_size for path in first.folder.path.rglob("*") if path.is_file())
    # The report of so few images, and of no judge, is smaller than what is reckoned for it.
    assert plan.disk_bytes - REPORT_BYTES < taken < plan.disk_bytes


def test_the_run_comes_back_as_tables(first: Run) -> None:
    again = autolora_eval.open_run(first.folder.path)
    for name in ("table", "scores", "diversity", "comparisons"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    assert again.manifest == first.manifest
    # Per step: the LoRA alone makes one pass, equation (6) makes two.
    assert first.table.set_index("cell")["nfe"].to_dict() == {CELLS[0]: 3, CELLS[1]: 6}
    assert first.table["n_missing"].tolist() == first.table["n_unscored"].tolist() == [0, 0]


def test_the_screen_shows_the_table_and_where_the_report_is(first: Run, capsys) -> None:
    display.show_run(first)
    lines = capsys.readouterr().out.splitlines()
    for row in first.table.to_dict("records"):
        shown = ["T", row["method"], f"{row['diversity']:.3f}", str(row["nfe"])]
        assert [line.split() for line in lines].count(shown) == 1
    assert str(first.folder.report_pdf) in "".join(lines)
    assert "unscored" not in "".join(lines)


def test_the_diversity_of_the_table_is_that_of_the_features(first: Run) -> None:
    for cell in CELLS:
        features = read_features(first.folder.features(cell))
        folders = sorted({id_.split("/")[0] for id_ in features.ids})
        rows = [[n for n, id_ in enumerate(features.ids) if id_.startswith(f)] for f in folders]
        values = [autolora_eval.diversity(features.matrix[r]).value for r in rows]
        found = first.table.set_index("cell").loc[cell, "diversity"]
        assert found == pytest.approx(sum(values) / len(PROMPTS), rel=1e-9)


def test_run_again_does_nothing(benchmark: Path, copy: RunFolder, monkeypatch) -> None:
    before = contents(copy)

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded, or tables or report were written again")

    monkeypatch.setattr(LoraPipeline, "load", refused)
    monkeypatch.setattr(Extractor, "__init__", refused)
    autolora_eval.run(benchmark, copy.path)
    monkeypatch.setattr("autolora_eval.pipeline.run_pipeline.write_report", refused)
    monkeypatch.setattr("autolora_eval.analysis.tables.write_tables", refused)
    again = autolora_eval.run(benchmark, copy.path)
    stages = again.manifest.stages
    # What the stages took when they did something is kept: it is the cost of these images.
    assert [(stages[s].done, stages[s].reused) for s in ("generate", "features")] == [(12, 0)] * 2
    # The copy lies elsewhere, so that its manifest states another way to the benchmark.
    moved = ("manifest.json", "report.html", "report.pdf")
    after = contents(copy)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name] and name not in moved] == []


def test_a_removed_or_edited_table_is_written_again(benchmark, first, copy) -> None:
    copy.table("tex").unlink()
    copy.timings.write_text("cell,seconds\n")
    autolora_eval.run(benchmark, copy.path)
    for table in (copy.table("tex"), copy.timings):
        assert table.read_bytes() == (first.folder.path / table.name).read_bytes()


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [(LoraPipeline, "sample", 4), (Extractor, "__call__", 2)],
    ids=["while generating", "while taking features"],
)
def test_interrupted_and_run_again_gives_the_same_table(
    owner, name, after, benchmark, first, tmp_path, monkeypatch
) -> None:
    interrupt(monkeypatch, owner, name, after)
    with pytest.raises(KeyboardInterrupt):
        autolora_eval.run(benchmark, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(UsageError) as caught:
        autolora_eval.open_run(tmp_path / "run")
    finish = f"autolora-eval run {benchmark} --output {tmp_path / 'run'}"
    assert str(caught.value).endswith(f"Finish it with: {finish}")
    again = autolora_eval.run(benchmark, tmp_path / "run")
    assert again.folder.table("csv").read_bytes() == first.folder.table("csv").read_bytes()
    assert again.folder.comparisons.read_bytes() == first.folder.comparisons.read_bytes()
    assert list(again.scores["sha256"]) == list(first.scores["sha256"])
    stage = again.manifest.stages["generate"]
    # Two images a batch; in the second case all images had been made before.
    expected = (4, 8) if owner is LoraPipeline else (12, 0)
    assert (stage.done, stage.reused) == expected


@pytest.mark.usefixtures("no_report")
def test_other_libraries_are_accepted_and_recorded_by_image(benchmark, copy, first) -> None:
    rows = read_jsonl(copy.metadata(CELLS[0]))
    now = rows[0]["libraries"]
    before = now.replace(f"torch {metadata.version('torch')}", "torch 2.0.1")
    write_jsonl(copy.metadata(CELLS[0]), [row | {"libraries": before} for row in rows])
    write_jsonl(copy.metadata(CELLS[1]), [])
    # Images of the second cell are all to be made; those of the first are of another torch.
    with pytest.raises(AutoLoRAEvalError, match=r"torch 2\.0\.1, now .*--accept-versions"):
        autolora_eval.run(benchmark, copy.path)
    again = autolora_eval.run(benchmark, copy.path, accept_versions=True)
    assert again.manifest.libraries == sorted([before, now])
    assert [row["libraries"] for row in read_jsonl(copy.metadata(CELLS[1]))] == [now] * 6
    assert copy.table("csv").read_bytes() == first.folder.table("csv").read_bytes()


def test_stage_by_stage_gives_the_same_table(benchmark: Path, first: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    RunPipeline(benchmark, output).generate()
    assert not (output / "features").exists()
    RunPipeline(output).score()
    assert not (output / "report.pdf").exists()
    write_report(RunFolder(output))
    for name in ("table.csv", "table.md", "table.tex", "comparisons.csv", "diversity.csv"):
        assert (output / name).read_bytes() == (first.folder.path / name).read_bytes(), name
    assert (output / "report.pdf").read_bytes()[:5] == b"%PDF-"


def test_scoring_what_was_not_generated_is_refused(benchmark: Path, tmp_path: Path) -> None:
    stages = RunPipeline(benchmark, tmp_path / "run")
    with pytest.raises(UsageError, match="has no images yet") as caught:
        stages.require_manifest()
    assert f"autolora-eval generate {benchmark} --output" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_finds_its_benchmark_from_anywhere(copy, benchmark, tmp_path, monkeypatch) -> None:
    RunPipeline(benchmark, copy.path).generate()
    monkeypatch.chdir("/")
    (found := RunPipeline(copy.path)).score()
    assert found.plan.benchmark.file == benchmark.resolve()


def test_a_run_says_where_its_benchmark_was(copy, benchmark) -> None:
    recorded = copy.read_manifest().benchmark
    copy.update_manifest(benchmark=recorded.model_copy(update={"file": "../x.yaml"}))
    done = run_command("run", copy.path)
    lost = f"its benchmark file '{copy.path.parent.resolve() / 'x.yaml'}' is gone"
    assert (done.code, lost in done.stderr) == (2, True), done.stderr
    assert f"autolora-eval run BENCHMARK --output {copy.path}" in done.stderr


def test_images_of_other_settings_are_not_scored_but_missing(benchmark, copy, monkeypatch) -> None:
    changed, steps = benchmark.with_name("changed.yaml"), f"num_inference_steps: {STEPS}"
    changed.write_text(benchmark.read_text().replace(steps, "num_inference_steps: 2"))
    before = contents(copy)
    with pytest.raises(UsageError, match="were made with other settings"):
        RunPipeline(changed, copy.path).score()
    assert contents(copy) == before
    for batches in (0, 1):
        interrupt(monkeypatch, LoraPipeline, "sample", batches)
        with pytest.raises(KeyboardInterrupt):
            RunPipeline(changed, copy.path).generate()
        monkeypatch.undo()
        # Else a report would show the old numbers with the new settings.
        done = run_command("report", copy.path)
        assert (done.code, "no tables for its current settings" in done.stderr) == (2, True)
    RunPipeline(changed, copy.path).score()
    table = pd.read_parquet(copy.table("parquet"))
    # One batch of two was made; all the others are still of the settings before.
    assert table["n_missing"].tolist() == [4, 6]
    assert table["diversity"].isna().tolist() == [False, True]


def test_score_shows_how_many_images_are_missing(benchmark, copy) -> None:
    next(copy.images(CELLS[0]).glob("*/*.png")).unlink()
    done = run_command("score", benchmark, "--output", copy.path)
    assert "1 of 12 images unusable: missing_image 1" in done.text, done.stderr


def test_a_run_folder_takes_no_other_output(first: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a run folder, which is its own output"):
        RunPipeline(first.folder.path, tmp_path)


@pytest.mark.usefixtures("no_report")
def test_a_limited_run_says_so_and_grows_into_the_whole(benchmark, first, tmp_path) -> None:
    limited = autolora_eval.run(benchmark, tmp_path / "run", limit_prompts=1, limit_seeds=2)
    said = limited.manifest
    assert (said.is_limited, said.limit_prompts, said.limit_seeds) == (True, 1, 2)
    assert (said.prompts, said.seeds) == (PROMPTS[:1], SEEDS[:2])
    keys = ["cell", "image_id"]
    whole = first.scores.set_index(keys)["sha256"].to_dict()
    assert limited.scores.set_index(keys)["sha256"].to_dict().items() <= whole.items()
    assert len(limited.scores) == len(CELLS) * 2
    grown = autolora_eval.run(benchmark, tmp_path / "run")
    assert grown.manifest.stages["generate"].reused == len(CELLS) * 2
    assert not grown.manifest.is_limited
    assert grown.folder.table("csv").read_bytes() == first.folder.table("csv").read_bytes()


def test_the_manifest_says_what_the_run_is_made_of(benchmark: Path, first: Run) -> None:
    said = json.loads(first.folder.manifest.read_text())
    assert not Path(said["benchmark"]["file"]).is_absolute()
    assert (first.folder.path / said["benchmark"]["file"]).resolve() == benchmark.resolve()
    assert said["benchmark"]["sha256"] == sha256_file(benchmark)
    assert (said["prompts"], said["seeds"]) == (PROMPTS, SEEDS)
    assert said["prompts_sha256"] == sha256_bytes("\n".join(PROMPTS).encode())
    assert said["benchmark"]["content"]["models"]["T"]["num_inference_steps"] == STEPS
    model = said["models"]["T"]
    (lora,) = model["loras"]
    assert lora["sha256"] == sha256_file(benchmark.parent / "style.safetensors")
    assert lora["name"] == "style.safetensors"
    assert model["pipeline"]["name"] == "sdxl"
    assert model["scheduler"]["class"] == "EulerDiscreteScheduler"
    assert said["features"]["identity"]["name"] == "miniature:dinov2"
    assert (model["dtype"], said["features"]["dtype"]) == ("float32", "float32")  # not "auto"
    assert said["features"]["dim"] == read_features(first.folder.features(CELLS[0])).matrix.shape[1]
    for package in ("torch", "diffusers", "transformers", "numpy", "scipy"):
        assert said["packages"][package] == metadata.version(package)
    assert said["autolora_eval_version"] == autolora_eval.__version__
    assert said["counts"] == {"images": 12, "missing": 0, "unscored": 0}
    assert [cell["id"] for cell in said["cells"]] == CELLS
    assert {cell["id"]: cell["nfe"] for cell in said["cells"]} == {CELLS[0]: 3, CELLS[1]: 6}
    assert said["judge"] is None
    assert said["hardware"]["cores"] >= 1


def test_the_manifest_names_no_folder_of_this_machine(benchmark: Path, first: Run) -> None:
    """But the benchmark's file, as the user gave it."""
    text = first.folder.manifest.read_text().replace(str(benchmark), "")
    places = [benchmark.parent, first.folder.path, Path(autolora_eval.__file__).parent, Path.home()]
    assert [str(place) for place in places if str(place) in text] == []


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_a_path_that_is_not_a_run_folder_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"is not a run folder: it has no manifest\.json"):
        autolora_eval.open_run(tmp_path / kind)


@pytest.mark.parametrize("text", ["", "{torn", "[]", "{}", '{"name": "of something else"}'])
def test_a_manifest_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    for read in (autolora_eval.open_run, RunPipeline):
        with pytest.raises(UsageError, match=r"damaged manifest|has format_version None"):
            read(tmp_path)


def test_a_manifest_of_another_format_version_is_refused(first: Run, tmp_path: Path) -> None:
    manifest = json.loads(first.folder.manifest.read_text()) | {"format_version": 2}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"has format_version 2 .* reads 1: run its benchmark"):
        autolora_eval.open_run(tmp_path)
