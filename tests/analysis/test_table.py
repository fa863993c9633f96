"""The tables of a run: what is missing is null and counted, what is published stands beside."""

import csv
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from report.readers import content_of
from scored_run import (
    SETTINGS,
    Place,
    scored,
    tables,
    vector,
    write_features,
    write_images,
    write_manifest,
)

from autolora_eval._errors import UsageError
from autolora_eval._files import write_jsonl
from autolora_eval.analysis.scores import write_timings
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.pipeline.run_pipeline import RunPipeline
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.records import CountsRecord
from autolora_eval.scoring.diversity import diversity

BASE, AUTO = "A--CFG", "A--AutoLoRA"
# Of the three prompts with two seeds each of `benchmark_data`, in the cell AutoLoRA:
MISSING = (AUTO, 0, 4)  # prompt 0 has one image left: no diversity
UNSCORED = (AUTO, 1, 3)
NOT_JUDGED = (AUTO, 2, 4)
CORRUPT = (AUTO, 2, 3)  # prompt 2 has one feature vector left: no diversity
SEEDS = (3, 4)


def score(place: Place) -> dict[str, float] | str | None:
    if place == UNSCORED:
        return "no_json"
    if place == NOT_JUDGED:
        return None
    cell, prompt_index, seed = place
    return {"pc": float((len(cell) + 2 * prompt_index + seed) % 6)}


@pytest.fixture
def plan(planned) -> Plan:
    return planned()


@pytest.fixture
def whole(plan, tmp_path) -> RunFolder:
    """A run without gaps."""
    return scored(plan, RunFolder(tmp_path / "whole"))


@pytest.fixture
def gaps(plan, tmp_path) -> RunFolder:
    """A run with gaps in the cell AutoLoRA."""

    def features(place: Place) -> np.ndarray | None:
        return None if place == CORRUPT else vector(place)

    return scored(plan, RunFolder(tmp_path / "gaps"), [MISSING], features, score)


def rows(folder: RunFolder) -> dict[str, dict[str, str]]:
    with folder.table("csv").open(encoding="utf-8", newline="") as stream:
        return {row["cell"]: row for row in csv.DictReader(stream)}


def test_what_is_missing_is_counted(gaps):
    # Unscored are the missing image, the refused and the one that was not judged.
    # Missing from the diversity are the missing and the corrupt one.
    assert gaps.read_manifest().counts == CountsRecord(images=12, missing=2, unscored=3)
    found = {
        cell: [row[f"n_{n}"] for n in ("images", "missing", "unscored", "undefined_prompts")]
        for cell, row in rows(gaps).items()
    }
    assert found == {BASE: ["6", "0", "0", "0"], AUTO: ["6", "2", "3", "2"]}


def test_what_is_missing_is_null_with_a_reason(gaps):
    scores = pd.read_parquet(gaps.scores).set_index(["cell", "prompt_index", "seed"])
    assert len(scores) == 12
    reasons = {MISSING: "missing_image", UNSCORED: "no_json", NOT_JUDGED: "not_judged"}
    assert scores["unscored_reason"].dropna().to_dict() == reasons
    for place, value in scores["pc"].items():
        assert np.isnan(value) if place in reasons else value == score(place)["pc"], place
    errors = {MISSING: "missing_image", CORRUPT: "corrupt_image"}
    assert scores["image_error"].dropna().to_dict() == errors
    assert pd.isna(scores.loc[MISSING, "sha256"])


def test_diversities_without_enough_images_are_null_with_a_reason(gaps):
    found = pd.read_csv(gaps.diversity).set_index(["cell", "prompt_index"])
    for prompt_index in (0, 2):
        row = found.loc[AUTO, prompt_index]
        assert (row["n"], row["reason"]) == (1, "needs at least 2 images, has 1")
        assert np.isnan(row["diversity"])
        assert np.isnan(row["standard_error"])
    kept = found.loc[AUTO, 1]
    assert kept["n"] == 2
    vectors = [vector((AUTO, 1, seed)) for seed in SEEDS]
    assert kept["diversity"] == pytest.approx(diversity(vectors).value, rel=1e-9)
    assert pd.isna(kept["reason"])


def test_means_are_over_what_there_is(gaps):
    row = rows(gaps)[AUTO]
    spread = diversity([vector((AUTO, 1, seed)) for seed in SEEDS]).value
    gone = (MISSING, UNSCORED, NOT_JUDGED)
    places = [(AUTO, index, seed) for index in range(3) for seed in SEEDS]
    mean = np.mean([score(place)["pc"] for place in places if place not in gone])
    assert float(row["diversity"]) == pytest.approx(spread, rel=1e-9)
    assert float(row["pc"]) == pytest.approx(mean, rel=1e-9)
    assert float(row["div_pc"]) == pytest.approx(spread * mean, rel=1e-9)
    # One prompt has a diversity: a value, but nothing to tell its spread by.
    assert (row["diversity_low"], row["diversity_high"]) == ("", "")
    assert row["div_pc_low"] == ""


def test_a_score_without_a_clear_product_has_no_column_and_no_comparison_of_one(make, workplace):
    rubric = workplace / "rubric.yaml"
    scores = "  er: {key: er, display_name: Errors, higher_is_better: false}\n  pc:"
    rubric.write_text(rubric.read_text().replace("  pc:", scores), encoding="utf-8")
    folder = scored(*make("run"))
    of_pc = ["div_pc", "div_pc_low", "div_pc_high", "div_pc_prompt_mean"]
    assert [column for column in rows(folder)[AUTO] if column.startswith("div_")] == of_pc
    compared = pd.read_csv(folder.comparisons)
    assert list(compared["metric"]) == ["diversity", "er", "pc", "div_pc"]
    # Holm's correction counts these four alone.
    assert compared["p_holm"].min() == pytest.approx(min(1.0, 4 * compared["p_value"].min()))


def test_a_cell_without_any_image_is_null_everywhere(make):
    missing = [(AUTO, index, seed) for index in range(3) for seed in SEEDS]
    folder = scored(*make("run"), missing)
    row = rows(folder)[AUTO]
    assert [row["n_images"], row["n_missing"], row["n_unscored"]] == ["6", "6", "6"]
    for metric in ("diversity", "pc", "div_pc"):
        assert [row[f"{metric}{suffix}"] for suffix in ("", "_low", "_high")] == [""] * 3
    table = pd.read_parquet(folder.table("parquet")).set_index("cell")
    assert table.loc[AUTO, ["diversity", "pc", "div_pc"]].isna().all()
    auto = folder.table("md").read_text().splitlines()[3].split(" | ")
    assert auto[1:5] == ["AutoLoRA", "–", "–", "–"]
    assert folder.table("tex").read_text().count("AutoLoRA & -- & -- & --") == 1
    compared = pd.read_csv(folder.comparisons)
    assert compared["difference"].isna().all()
    assert compared["p_holm"].isna().all()


def test_a_dash_in_the_readable_tables_has_its_reason(make):
    """Prompts with one image each: no diversity, and no product; the scores are there."""
    missing = [(AUTO, index, 3) for index in range(3)]
    scores = {BASE: "no_json", AUTO: {"pc": 2.0}}
    folder = scored(*make("run"), missing, scores=lambda place: scores[place[0]])
    lines = folder.table("md").read_text(encoding="utf-8").splitlines()
    assert lines[3].startswith("| A | AutoLoRA | – | 2.000 [2.000, 2.000] | – | ")
    assert lines[3].endswith("| 6, 3 missing, 3 unscored |")
    assert [line for line in lines if line.startswith("– ")] == [
        r"– no value (no\_json): A × CFG: PC, Div-PC.",
        "– no value (needs at least 2 images, has 1): A × AutoLoRA: Div, Div-PC.",
    ]


def test_the_run_without_gaps_agrees_with_its_definition(plan, whole):
    assert tables(plan, whole) == CountsRecord(images=12, missing=0, unscored=0)
    for cell, row in rows(whole).items():
        spreads, means = [], []
        for index in range(3):
            spreads.append(diversity([vector((cell, index, seed)) for seed in SEEDS]).value)
            means.append(np.mean([(len(cell) + index + seed) % 6 for seed in SEEDS]))
        assert float(row["diversity"]) == pytest.approx(np.mean(spreads), rel=1e-9)
        assert float(row["pc"]) == pytest.approx(np.mean(means), rel=1e-9)
        assert float(row["div_pc"]) == pytest.approx(np.mean(spreads) * np.mean(means), rel=1e-9)
        products = np.multiply(spreads, means)
        assert float(row["div_pc_prompt_mean"]) == pytest.approx(products.mean(), rel=1e-9)


def test_writing_again_gives_the_same_bytes(plan, whole):
    files = [whole.table(s) for s in ("csv", "md", "tex", "parquet")]
    files += [whole.scores, whole.diversity, whole.comparisons]
    tables(plan, whole)
    before = [file.read_bytes() for file in files]
    tables(plan, whole)
    assert [file.read_bytes() for file in files] == before


def test_a_judgement_or_features_of_another_judge_or_image_do_not_count(plan, whole):
    assert tables(plan, whole, "another judge").unscored == 12
    file = next(whole.images(BASE).rglob("*.png"))
    file.write_bytes(next(whole.images(AUTO).rglob("*.png")).read_bytes())
    found = tables(plan, whole)
    assert (found.unscored, found.missing) == (1, 1)


def test_one_method_has_nothing_to_compare(planned, benchmark_data, tmp_path):
    benchmark_data["methods"] = {"CFG": {"guider": "cfg"}}
    del benchmark_data["judge"]
    plan = planned()
    folder = RunFolder(tmp_path / "run")
    write_images(plan, folder)
    write_features(plan, folder, vector)
    assert tables(plan, folder, None).unscored == 0
    assert len(pd.read_csv(folder.comparisons)) == 0
    assert "pc" not in rows(folder)[BASE]
    first = content_of(folder).first
    assert (first.winners, first.findings, first.certainty) == ([], [], [])


def test_one_prompt_compares_seeds(plan, whole):
    one = make_plan(plan.benchmark, limit_prompts=1)
    tables(one, whole)
    assert set(pd.read_csv(whole.comparisons)["unit"]) == {"seed"}
    tables(plan, whole)
    compared = pd.read_csv(whole.comparisons)
    assert set(compared["unit"]) == {"prompt"}
    assert compared["metric"].tolist() == ["diversity", "pc", "div_pc"]


def test_seconds_per_image_are_the_median_of_a_cells_current_images(make):
    plan, folder = make("run")
    write_manifest(plan, folder)
    first, second = plan.cells
    taken = [*((s, SETTINGS) for s in (1.0, 9.0, 2.0, None)), (50.0, "01d01d01d")]
    rows = [
        {"file_name": f"a/{n}.png", "seconds": s, "settings_key": k}
        for n, (s, k) in enumerate(taken)
    ]
    write_jsonl(folder.metadata(first.id), rows)
    alone = {"file_name": "a/0.png", "settings_key": SETTINGS, "made_alone": True}
    write_jsonl(folder.metadata(second.id), [alone])
    write_timings(folder.read_manifest(), folder)
    found = pd.read_csv(folder.timings)
    assert list(found["cell"]) == [first.id, second.id]
    assert list(found["n_timed"]) == [3, 0]
    assert list(found["n_made_alone"]) == [0, 1]
    assert found["seconds_per_image"][0] == 2.0
    assert np.isnan(found["seconds_per_image"][1])


@pytest.fixture
def with_published(planned, workplace) -> Callable[..., Plan]:
    """A function that plans a benchmark with published values."""

    def plan(content: str, **sections: object) -> Plan:
        (workplace / "published.csv").write_text(content, encoding="utf-8")
        return planned(published="published.csv", **sections)

    return plan


def test_published_values_are_beside_ours(with_published, whole):
    tables(with_published("model,method,diversity,pc\nA,AutoLoRA,0.25,3.5\nB,CFG,0.5,1\n"), whole)
    table = pd.read_parquet(whole.table("parquet")).set_index("cell")
    assert table.loc[AUTO, ["diversity_published", "pc_published"]].tolist() == [0.25, 3.5]
    assert table.loc[BASE, ["diversity_published", "pc_published"]].isna().all()
    assert rows(whole)[BASE]["pc_published"] == ""
    assert list(table.index) == [BASE, AUTO]


@pytest.mark.parametrize("name", ["3", "NA", "None"])
def test_models_of_published_values_may_have_names_like_values(
    name, with_published, benchmark_data, tmp_path
):
    models = {name: benchmark_data["models"]["A"]}
    plan = with_published(f"model,method,diversity,pc\n{name},CFG,0.25,\n", models=models)
    folder = scored(plan, RunFolder(tmp_path / "run"))
    found = rows(folder)[f"{name}--CFG"]
    assert (found["diversity_published"], found["pc_published"]) == ("0.25", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,method,diversty\nA,CFG,1\n", "column 'diversty' is not a column of the table. Did"),
        ("model,diversity\nA,1\n", "no column 'method'"),
        ("model,method,pc\nA,CFG,1\nA,CFG,2\n", "two rows for A, CFG"),
        ("model,method,pc_low\nA,CFG,1\n", "column 'pc_low' is not a column of the table."),
        ('model,method,pc\nA,CFG,"3,5"\n', "column 'pc' holds values that are not numbers"),
        ("", "cannot be read"),
        ('model,method,pc\nA,CFG,1,2,3\n"', "cannot be read"),
    ],
)
def test_published_values_that_do_not_fit_are_refused(
    content, message, workplace, with_published, whole
):
    plan = with_published(content)
    with pytest.raises(UsageError) as caught:
        tables(plan, whole)
    with pytest.raises(UsageError, match=re.escape(str(caught.value))):
        RunPipeline(plan.benchmark.file).check_requirements()
    assert str(caught.value).startswith(f"{workplace / 'published.csv'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
