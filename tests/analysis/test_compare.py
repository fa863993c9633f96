"""Cells of several runs in one table: the same numbers, paired, or refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scored_run
from command import run_command
from json_lines import read_jsonl
from report.synthetic_run import IMAGE_SET
from scored_run import (
    KEY,
    Place,
    accept_tables,
    scored,
    tables,
    vector,
    write_features,
    write_images,
    write_judgements,
)
from typer.testing import CliRunner

from autolora_eval._errors import UsageError
from autolora_eval._files import write_json
from autolora_eval.analysis.explain import explain
from autolora_eval.cli import app
from autolora_eval.pipeline.run_pipeline import compare
from autolora_eval.runs.folder import RunFolder, open_run
from autolora_eval.runs.records import ImageSetRecord

pytestmark = pytest.mark.e2e

MODEL = scored_run.MODEL.model_dump(mode="json")


def score(place: Place) -> dict[str, float]:
    cell, prompt_index, seed = place
    return {"pc": float((len(cell) + 2 * prompt_index + seed) % 6)}


@pytest.fixture
def run_of(make) -> Callable[..., RunFolder]:
    """A function that makes a run, its numbers decided by cell, prompt and seed."""
    return lambda name, **sections: scored(*make(name, **sections), scores=score)


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """A folder of the runs that many tests need."""
    return tmp_path_factory.mktemp("compared")


@pytest.fixture
def copy_of(run_of, originals, tmp_path) -> Callable[..., RunFolder]:
    """A function like `run_of` that makes a run once, and copies it for each test."""

    def copy(name: str, **sections: object) -> RunFolder:
        if not (originals / name).exists():
            run_of(name, **sections).path.rename(originals / name)
        return RunFolder(shutil.copytree(originals / name, tmp_path / name))

    return copy


@pytest.fixture
def whole(copy_of) -> RunFolder:
    """Both methods in one run."""
    return copy_of("whole")


@pytest.fixture
def halves(copy_of, benchmark_data) -> list[Path]:
    """The same, one method a run."""
    methods = benchmark_data["methods"]
    return [
        copy_of(f"half-{name}", methods={name: methods[name]}, baseline=name).path
        for name in ("CFG", "AutoLoRA")
    ]


def test_two_halves_compared_are_the_whole(whole, halves, tmp_path):
    (tmp_path / "joint").mkdir()  # an empty folder is written, and an earlier comparison
    for _ in range(2):
        joint, differences = compare(halves, tmp_path / "joint")
    assert differences == []
    ours = open_run(whole.path)
    keys = ["cell", "diversity", "diversity_low", "diversity_high", "pc", "pc_low", "div_pc"]
    assert ours.table[keys].to_dict("list") == joint.table[keys].to_dict("list")
    keys = ["cell", "baseline_cell", "metric", "difference", "low", "high", "p_value", "win_rate"]
    assert ours.comparisons[keys].to_dict("list") == joint.comparisons[keys].to_dict("list")


@pytest.mark.report
def test_the_joint_run_can_be_explained_and_has_a_report(halves, tmp_path):
    joint, _ = compare(halves, tmp_path / "joint")
    assert joint.folder.report_pdf.is_file()
    sections = explain(joint.folder.path, "AutoLoRA").sections
    metrics = next(section.rows for section in sections if section.title == "Metrics")
    assert all(row["recomputed from the files"].endswith(", same") for row in metrics)
    summary = explain(joint.folder.path, "AutoLoRA", "0", 3).sections[0].values
    file = joint.scores.query("method == 'AutoLoRA' and seed == 3")["file"].iloc[0]
    assert summary["in the report"] == f"{joint.folder.report_html.resolve().as_uri()}#image={file}"


def test_the_same_images_are_one_cell(whole, halves, tmp_path):
    joint, differences = compare([whole.path, halves[0]], tmp_path / "joint")
    assert joint.table["method"].tolist() == ["CFG", "AutoLoRA"]
    assert [d.message for d in differences] == [
        "method 'CFG': whole and half-CFG have the same images. Only those of whole are used."
    ]


def test_a_run_without_one_of_its_images_is_compared(make, whole, tmp_path):
    other = scored(*make("other"), missing=[("A--CFG", 0, 3)], scores=score)
    joint, _ = compare([whole.path, other.path], tmp_path / "joint")
    assert joint.table.set_index("method")["n_missing"].to_dict() == {
        "CFG (whole)": 0,
        "CFG (other)": 1,
        "AutoLoRA": 0,
    }


def test_only_shared_prompts_and_seeds_are_compared_with_a_note(run_of, whole, tmp_path):
    methods, prompts = {"Third": {"guider": "lora"}}, ["a dog", "a cat", "a cow"]
    seeds = {"start": 4, "count": 2}
    other = run_of("other", methods=methods, baseline="Third", prompts=prompts, seeds=seeds)
    joint, differences = compare([whole.path, other.path], tmp_path / "joint")
    assert [(d.what, d.severity) for d in differences] == [("prompts", "note"), ("seeds", "note")]
    assert differences[0].message.endswith("only the 2 that all have are compared.")
    images = joint.scores[["prompt", "seed"]].drop_duplicates().values.tolist()
    assert images == [["a cat", 4], ["a dog", 4]]
    assert joint.table["n_images"].tolist() == [2, 2, 2]
    assert joint.manifest.differences == differences
    # The mean of two scores of each prompt's single seed: by hand.
    expected = np.mean([score(("A--Third", index, 4))["pc"] for index in (1, 0)])
    assert joint.table.set_index("method")["pc"]["Third"] == expected


def change(folder: RunFolder, section: str, **values: object) -> None:
    manifest = json.loads(folder.manifest.read_text())
    manifest[section] = manifest[section] | values
    write_json(folder.manifest, manifest)


def judged_by_another(folder: RunFolder, cell: str) -> None:
    change(folder, "judge", key="another judge", model="somebody")
    replies = folder.judgements(cell)
    text = replies.read_text(encoding="utf-8")
    replies.write_text(text.replace(f'"{KEY}"', '"another judge"'), encoding="utf-8")
    accept_tables(folder)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("features", {"key": "another", "model": "clip"}, "extractor: 'dino' in half-CFG, 'clip'"),
        ("judge", {"rubric_sha256": "0", "rubric_name": "other"}, "scores of different rubrics"),
    ],
)
def test_scores_on_different_scales_are_refused(halves, tmp_path, section, values, message):
    change(RunFolder(halves[1]), section, **values)
    with pytest.raises(UsageError) as raised:
        compare(halves, tmp_path / "joint", allow_different_judges=True)
    assert message in str(raised.value)
    assert "--allow" not in str(raised.value)
    assert not (tmp_path / "joint").exists()


def test_different_judges_are_refused_unless_asked_for(halves, tmp_path):
    judged_by_another(RunFolder(halves[1]), "A--AutoLoRA")
    with pytest.raises(UsageError, match="--allow-different-judges"):
        compare(halves, tmp_path / "joint")
    joint, differences = compare(halves, tmp_path / "joint", allow_different_judges=True)
    assert [(d.what, d.severity) for d in differences] == [("judge", "judge")]
    assert joint.table["pc"].notna().all()
    rows = read_jsonl(joint.folder.judgements("A--AutoLoRA"))
    assert {row["judge_key_in_run"] for row in rows} == {"another judge"}


def test_a_different_model_is_reported(halves, tmp_path):
    for half, dtype in zip(halves, ("float32", "float16"), strict=True):
        change(RunFolder(half), "models", A=MODEL | {"dtype": dtype})
    asked = ["compare", *map(str, halves), "--output", str(tmp_path / "joint")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert [d.message for d in open_run(tmp_path / "joint").manifest.differences] == [
        "model 'A' differs in dtype between half-CFG, half-AutoLoRA."
    ]


def test_something_else_is_not_written_over(whole, halves, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it", encoding="utf-8")
    with pytest.raises(UsageError, match=r"'thesis\.txt' and .*, or an earlier comparison\. Name"):
        compare(halves, mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match=r"whole' is a run, not a comparison; expected .* Name"):
        compare(halves, whole.path)
    assert open_run(whole.path).manifest.compared is None


def test_a_comparison_is_written_at_a_url(halves):
    for _ in range(2):
        done = run_command("compare", *halves, "--output", "memory://bucket/joint")
        assert (done.code, done.stderr) == (0, "")
    done = run_command("explain", "memory://bucket/joint", "AutoLoRA")
    assert done.code == 0, done.stderr


def test_a_run_is_not_written_into_a_comparison(halves, tmp_path):
    compare(halves, tmp_path / "joint")
    before = (tmp_path / "joint" / "manifest.json").read_bytes()
    done = run_command("run", "quickstart", "--output", tmp_path / "joint")
    assert done.code == 2
    assert "joint' is a comparison of runs; expected a new or empty folder, or an earlier run" in (
        done.stderr
    )
    assert (tmp_path / "joint" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("named", "baseline", "message"),
    [
        ((0,), None, "two or more runs"),
        ((0, 0), None, "is named twice"),
        ((0, 1), "AutoLora", r"no method .AutoLora. in these runs\. Did you mean"),
    ],
)
def test_too_few_runs_and_unknown_baselines_are_refused(halves, tmp_path, named, baseline, message):
    with pytest.raises(UsageError, match=message):
        compare([halves[n] for n in named], tmp_path / "joint", baseline=baseline)


def test_a_run_that_is_compared_is_never_written_over(halves, tmp_path):
    """A comparison may be a source too, and is then no earlier output to be replaced."""
    joint, _ = compare(halves, tmp_path / "joint")
    before = open_run(joint.folder.path).table
    for output in (joint.folder.path, joint.folder.path / "inner", joint.folder.path.parent):
        with pytest.raises(UsageError, match=r"would write into .*joint.*Name another --output"):
            compare([joint.folder.path, halves[0]], output)
    assert open_run(joint.folder.path).table.equals(before)


def test_a_comparison_that_fails_leaves_the_earlier_one(halves, tmp_path):
    compare(halves, tmp_path / "joint")
    before = (tmp_path / "joint" / "manifest.json").read_bytes()
    RunFolder(halves[1]).features("A--AutoLoRA").unlink()
    with pytest.raises(UsageError, match=r"half-AutoLoRA.*A--AutoLoRA.*no features.*score"):
        compare(halves, tmp_path / "joint")
    assert (tmp_path / "joint" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.glob(".partial*")] == []


def test_methods_whose_names_are_one_folder_stay_two_cells(run_of, tmp_path):
    """'My CFG', 'My-CFG' and 'my cfg' are three names and one folder on some file systems."""
    runs = []
    for number, name in enumerate(("My CFG", "My-CFG", "my cfg")):
        methods = {name: {"guider": "autolora", "autolora_scale": 1.5 + number}}
        runs.append(run_of(f"run-{number}", methods=methods, baseline=name).path)
    joint, _ = compare(runs, tmp_path / "joint")
    assert joint.table["method"].tolist() == ["My CFG", "My-CFG", "my cfg"]
    assert joint.table["cell"].str.lower().is_unique
    for run, method in zip(runs, joint.table["method"], strict=True):
        theirs = joint.table.set_index("method").loc[method, "diversity"]
        assert theirs == open_run(run).table["diversity"][0]


def test_the_same_images_that_two_judges_saw_are_two_cells(whole, halves, tmp_path):
    """To compare judges is why one would ask for it."""
    judged_by_another(RunFolder(halves[0]), "A--CFG")
    joint, _ = compare([whole.path, halves[0]], tmp_path / "joint", allow_different_judges=True)
    assert joint.table["method"].tolist() == ["CFG (whole)", "AutoLoRA", "CFG (half-CFG)"]


def test_what_made_each_runs_numbers_stays_recorded(halves, tmp_path):
    image_set = ImageSetRecord.model_validate(IMAGE_SET)
    for half, version in zip(halves, ("2.13.0", "2.14.0"), strict=True):
        RunFolder(half).update_manifest(
            packages={"torch": version},
            hardware={"device": "cuda", "gpu": f"GPU of {version}"},
            image_sets={"A--AutoLoRA": image_set} if version == "2.14.0" else {},
        )
    joint, (difference, *_) = compare(halves, tmp_path / "joint")
    assert "device GPU of 2.13.0 in half-CFG, GPU of 2.14.0 in half" in difference.message
    compared = joint.manifest.compared
    assert compared is not None
    assert [run.packages["torch"] for run in compared.values()] == ["2.13.0", "2.14.0"]
    assert compared["half-AutoLoRA"].hardware.gpu == "GPU of 2.14.0"
    assert joint.manifest.image_sets == {"A--AutoLoRA": image_set}
    sections = explain(joint.folder.path, "AutoLoRA").sections
    inputs = next(section.values for section in sections if section.title == "Inputs")
    assert "torch 2.14.0" in inputs["software"]
    assert "GPU of 2.14.0" in inputs["hardware"]


def test_runs_of_any_folder_name_are_compared(halves, tmp_path):
    """A run may lie in a folder whose name no benchmark could have."""
    names = ("_LoRA+CFG", "a run; $(x) of 猫 and of " + "many letters " * 10)
    runs = [half.rename(half.with_name(name)) for half, name in zip(halves, names, strict=True)]
    joint, _ = compare(runs, tmp_path / "joint")
    assert joint.manifest.benchmark.name.startswith("LoRA-CFG-and-a-run-x-of-and-of-many")
    assert len(joint.manifest.compared or {}) == 2


@pytest.mark.parametrize("model", ["A", "A--CFG"])
def test_a_name_that_two_runs_have_is_made_unique(make, benchmark_data, tmp_path, model):
    """Also where a model is called as the cell of another."""
    models = {model: benchmark_data["models"]["A"]}
    one, (plan, two) = scored(*make("one", models=models)), make("two", models=models)
    write_images(plan, two)
    for file in two.images("").rglob("*.png"):
        file.write_bytes(file.read_bytes() + b" ")  # other images than the first run's
    write_features(plan, two, vector)
    write_judgements(plan, two, score)
    tables(plan, two)
    joint, _ = compare([one.path, two.path], tmp_path / "joint", baseline="CFG (two)")
    names = ["CFG (one)", "AutoLoRA (one)", "CFG (two)", "AutoLoRA (two)"]
    assert joint.table["method"].tolist() == names
    assert set(joint.comparisons["baseline"]) == {"CFG (two)"}
    assert joint.table["cell"].is_unique
    assert joint.table["cell"][0] == f"{model}--CFG-one"


def test_what_differs_between_the_manifests_of_the_runs(halves, tmp_path):
    """The fewest replies are taken, a limit stays told, and the model is the one that was used."""
    unused = {"name": "x", "kind": "folder", "used": False}
    change(RunFolder(halves[0]), "models", A=MODEL | {"pipeline": unused})
    change(RunFolder(halves[0]), "judge", repeats=3)
    RunFolder(halves[1]).update_manifest(limit_seeds=3)
    joint, differences = compare(halves, tmp_path / "joint")
    assert [(d.what, d.severity) for d in differences] == [("judge repeats", "note")]
    assert "3 in half-CFG, 1 in half-AutoLoRA; only the first reply of" in differences[0].message
    assert joint.manifest.judge.repeats == 1
    assert joint.manifest.models["A"].pipeline.sha256 == "1" * 64
    assert joint.manifest.is_limited
    for command in ("run", "score", "generate"):
        done = CliRunner().invoke(app, [command, str(joint.folder.path)])
        assert isinstance(done.exception, UsageError)
        assert "is a comparison of runs" in str(done.exception)
        assert "autolora-eval report" in str(done.exception)


@pytest.mark.parametrize("kind", ["features", "judgements", "metadata"])
def test_files_that_changed_after_scoring_are_refused(halves, tmp_path, kind):
    """Else a cut file would leave images out of the comparison only."""
    file = getattr(RunFolder(halves[1]), kind)("A--AutoLoRA")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    name = file.relative_to(halves[1])
    command = f"autolora-eval score {halves[1]}"
    with pytest.raises(UsageError, match=rf"half-AutoLoRA': {name} was changed .*{command}"):
        compare(halves, tmp_path / "joint")
    assert not (tmp_path / "joint").exists()


def test_a_damaged_manifest_is_refused(halves, tmp_path):
    """A cell's name cannot point outside the folder, and no section may lack."""
    file = RunFolder(halves[1]).manifest
    whole = json.loads(file.read_text())
    for id_ in ("../outside", "a/b", "..", ".hidden"):
        write_json(file, whole | {"cells": [whole["cells"][0] | {"id": id_}]})
        with pytest.raises(UsageError, match=r"half-AutoLoRA.*damaged manifest.json: cells\.0\.id"):
            compare(halves, tmp_path / "joint")
    for section in ("cells", "benchmark", "prompts", "seeds"):
        write_json(file, {key: value for key, value in whole.items() if key != section})
        with pytest.raises(UsageError, match=rf"damaged manifest.json: {section}: Field req"):
            compare(halves, tmp_path / "joint")
