"""Comparing anew keeps what people put beside it, and says what is paired with nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from report.readers import first_page_text
from scored_run import scored

from autolora_eval.pipeline.run_pipeline import compare
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import PromptCut, PromptCuts, joint_prompt_cuts

pytestmark = pytest.mark.e2e


@pytest.fixture
def runs(make, benchmark_data) -> Callable[..., list[Path]]:
    """A function that makes a run of each method, its model by the name that is given."""

    def make_both(models: tuple[str, str] = ("A", "A")) -> list[Path]:
        folders = []
        for model, method in zip(models, ("CFG", "AutoLoRA"), strict=True):
            models_ = {model: benchmark_data["models"]["A"]}
            methods = {method: benchmark_data["methods"][method]}
            run = make(f"of-{method}", models=models_, methods=methods, baseline=method)
            folders.append(scored(*run).path)
        return folders

    return make_both


def rate(folder: RunFolder) -> None:
    folder.agreement.write_text("metric,statistic\n")
    counts = {"ratings": 1, "images": 1, "raters": 1}
    files = {"ratings_file": "a.csv", "ratings_sha256": "", "scores_sha256": ""}
    folder.update_manifest(agreement=counts | files)


def test_ratings_stay_where_the_images_do_and_notes_always(runs, tmp_path, benchmark_data):
    both, joint = runs(), tmp_path / "joint"
    compare(both, joint)
    rate(RunFolder(joint))
    (joint / "notes.txt").write_text("mine")
    compare(both, joint)
    assert (joint / "agreement.csv").read_text() == "metric,statistic\n"
    assert (joint / "notes.txt").read_text() == "mine"
    benchmark_data["seeds"] = {"start": 3, "count": 3}
    compare(runs(), joint)
    assert not (joint / "agreement.csv").exists()  # the ratings are of other images
    assert (joint / "notes.txt").read_text() == "mine"


def test_models_that_are_called_otherwise_are_paired_with_nothing_and_that_is_said(runs, tmp_path):
    joint, shown = compare(runs(("A", "B")), tmp_path / "joint")
    assert joint.comparisons.empty
    (said,) = (one.message for one in shown if one.message.startswith("no cell of"))
    assert said.startswith("no cell of B is the baseline 'CFG': nothing is compared there.")
    assert "no cell of B" in first_page_text(joint.folder)


def test_only_different_software_and_hardware_is_reported(runs, tmp_path):
    first, second = runs()
    here = {"packages": {"torch": "2.13.0", "numpy": "2.4"}, "hardware": {"device": "cpu"}}
    for folder in (first, second):
        RunFolder(folder).update_manifest(**here)
    shown = compare([first, second], tmp_path / "joint")[1]
    assert [one for one in shown if one.what == "software"] == []
    there = {"packages": {"torch": "2.12.1", "numpy": "2.4"}, "hardware": {"device": "cuda"}}
    RunFolder(second).update_manifest(**there)
    shown = compare([first, second], tmp_path / "joint")[1]
    (said,) = (one for one in shown if one.what == "software")
    assert said.severity == "note"
    assert said.message == (
        "versions and devices: torch 2.13.0 in of-CFG, 2.12.1 in of-AutoLoRA; "
        "device cpu in of-CFG, cuda in of-AutoLoRA."
    )


def test_cut_prompts_are_reported_with_their_numbers_in_the_comparison(runs, tmp_path):
    first, second = (RunFolder(folder) for folder in runs())
    prompts = first.read_manifest().prompts
    cut = PromptCut(name="prompt 2", encoders=["text_encoder"], tokens=90, limit=77, read="a")
    lost = cut.model_copy(update={"name": "negative prompt 1"})
    of_all = cut.model_copy(update={"name": "negative prompt"})
    first.update_manifest(prompt_cuts={"A": PromptCuts(cut=[cut, of_all], same=[])})
    found = second.read_manifest().model_copy(
        update={
            "prompts": ["of this run alone", *prompts],
            "prompt_cuts": {"A": PromptCuts(cut=[cut, lost, of_all], same=[[1, 2], [2, 3]])},
        }
    )
    pairs = first.read_manifest().prompt_pairs
    joint = joint_prompt_cuts([first.read_manifest(), found], pairs)["A"]
    assert [one.name for one in joint.cut] == ["prompt 2", "negative prompt", "prompt 1"]
    assert joint.same == [[1, 2]]
    compared, _ = compare([first.path, second.path], tmp_path / "joint")
    names = [one.name for one in compared.manifest.prompt_cuts["A"].cut]
    assert names == ["prompt 2", "negative prompt"]
