"""Reliability of the judge: published and closed-form values of α, and the tables of a run."""

import json
from collections.abc import Callable

import krippendorff
import numpy as np
import pandas as pd
import pytest
from scored_run import KEY, Place, manifest_of, tables, write_features, write_images, write_manifest
from scored_run import vector as feature_vector

from autolora_eval._files import write_jsonl
from autolora_eval.analysis.reliability import (
    alpha_of_coincidences,
    coincidences,
    exact_agreement,
    ordinal_alpha,
    reliability,
    unscored_by_reason,
    write_reliability,
)
from autolora_eval.analysis.scores import join_scores
from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.images import cell_images
from autolora_eval.scoring.judgement_store import JudgementFile

GAP = np.nan
# Four observers and twelve units: Krippendorff, "Computing Krippendorff's Alpha-Reliability"
# (2011), section C, with missing data; its ordinal α is .815.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
        [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
    ]
)


def random_ratings(seed: int, k: int, n: int, levels: int = 6, gaps: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ratings = rng.integers(0, levels, (k, n)).astype(float)
    ratings[rng.random((k, n)) < gaps] = GAP
    return ratings


def of_one_prompt(n: int) -> pd.DataFrame:
    """The rows of n images of a single prompt: each is a sampling unit."""
    return pd.DataFrame({"prompt_index": np.zeros(n, dtype=int)})


def test_alpha_equals_the_published_example():
    value, interval = ordinal_alpha(PUBLISHED, of_one_prompt(12))
    assert value == pytest.approx(0.815, abs=0.0005)
    assert interval.low < value < interval.high <= 1.0
    assert interval.reason is None


@pytest.mark.parametrize("seed", range(8))
def test_the_closed_form_equals_the_librarys_alpha(seed):
    ratings = random_ratings(seed, 2 + seed % 3, 30) if seed else PUBLISHED
    values = np.unique(ratings[~np.isnan(ratings)])
    expected = krippendorff.alpha(ratings, level_of_measurement="ordinal")
    observed = coincidences(ratings, values)
    assert alpha_of_coincidences(observed) == pytest.approx(expected, abs=1e-12)
    # A level that nobody gave, and images apart, change nothing.
    wider = coincidences(ratings, np.append(values, 99.0))
    assert alpha_of_coincidences(wider) == pytest.approx(expected, abs=1e-12)
    parts = sum(coincidences(ratings[:, n : n + 1], values) for n in range(ratings.shape[1]))
    assert parts == pytest.approx(observed, abs=1e-12)


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ([[1.0, 2.0, 3.0]], "no image has two ratings"),
        ([[1.0, GAP], [GAP, 2.0]], "no image has two ratings"),
        ([[4.0, 4.0, 1.0], [4.0, 4.0, GAP]], "all ratings are 4"),
        (np.zeros((2, 0)), "no image has two ratings"),
    ],
)
def test_an_undefined_alpha_is_nan_with_a_reason(ratings, reason):
    value, interval = ordinal_alpha(np.asarray(ratings), of_one_prompt(np.shape(ratings)[1]))
    assert np.isnan([value, interval.low, interval.high]).all()
    assert interval.reason == reason


def test_exact_agreement_is_the_share_of_equal_ratings():
    ratings = np.array([[1, 2, 3, GAP, 5], [1, 2, 4, 4, GAP], [1, 1, GAP, 4, GAP]])
    assert exact_agreement(ratings) == 2 / 4
    assert np.isnan(exact_agreement(ratings[:1]))


@pytest.fixture
def plan(planned, benchmark_data) -> Plan:
    benchmark_data["judge"]["repeats"] = 3
    return planned()


Rating = Callable[[Place, int], float | str]


def judged(
    plan: Plan, folder: RunFolder, rating: Rating
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Write images and judgements of every repeat, and return what joins them."""
    write_images(plan, folder)
    write_features(plan, folder, feature_vector)
    manifest = manifest_of(plan, folder)
    for cell in manifest.cells:
        rows = []
        for image in cell_images(manifest, cell, folder):
            for repeat in range(3):
                given = rating((cell.id, image.prompt_index, image.seed), repeat)
                scored = not isinstance(given, str)
                row = {"image_id": image.id, "sha256": image.sha256, "repeat": repeat}
                row |= {"scores": {"pc": given} if scored else None, "judge_key": KEY}
                row["raw"] = json.dumps({"pc": given})
                rows.append(row | {"reason": None if scored else given})
        write_jsonl(folder.judgements(cell.id), rows)
    return join_scores(manifest, folder)


def test_ratings_are_the_scores_in_the_replies_that_count(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")
    judged(plan, folder, lambda place, repeat: float(repeat))
    manifest = manifest_of(plan, folder)
    file = JudgementFile(folder.judgements("A--CFG"))
    first, *_ = rows = list(file.rows())
    rows[1]["scores"] = {"pc": 5.0}  # edited: the reply is 1
    file.path.unlink()
    file.append(
        [
            *rows,
            first | {"raw": '{"pc": 4}'},  # the last counts
            first | {"raw": '{"pc": 3}', "judge_key": "another judge"},
            first | {"raw": '{"pc": 3}', "sha256": "0" * 64},  # of the file as it was before
            first | {"raw": '{"pc": 3}', "repeat": 3},  # beyond the repeats asked for now
            first | {"raw": '{"pc": 3}', "image_id": "not in the plan"},
            rows[5] | {"scores": None},
        ]
    )
    _, ratings = join_scores(manifest, folder)
    expected = np.repeat([[[0.0], [1.0], [2.0]]], 6, axis=2)
    assert (ratings["A--AutoLoRA"] == expected).all()
    expected[0, 0, 0], expected[0, 2, 1] = 4.0, GAP
    assert ratings["A--CFG"] == pytest.approx(expected, nan_ok=True)


def test_the_table_has_a_row_per_cell_and_one_for_all(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")

    def rating(place: Place, repeat: int) -> float | str:
        if place == ("A--CFG", 0, 3):
            return "no_json" if repeat == 2 else 1.0
        return float((place[1] + place[2] + (repeat == 1 and place[0] == "A--AutoLoRA")) % 6)

    judged(plan, folder, rating)
    tables(plan, folder)
    assert len(pd.read_csv(folder.unscored)) == 0
    table = pd.read_csv(folder.reliability).set_index("cell")
    assert table.index.tolist() == ["A--CFG", "A--AutoLoRA", "all"]
    expected = {
        "n_images": [6, 6, 12],
        "n_asked": [18, 18, 36],
        "n_valid": [17, 18, 35],
        "n_repeated": [6, 6, 12],
        "exact_agreement": [1.0, 0.0, 0.5],
        "unit": ["prompt"] * 3,
    }
    assert table[list(expected)].to_dict("list") == expected
    assert table.loc["A--CFG", "alpha"] == 1.0 > table.loc["A--AutoLoRA", "alpha"]
    assert table["alpha_low"].isna().all()
    assert table.loc["all", "reason"] == "an interval needs at least 5 prompts, has 3"
    assert "expected_mean" in table
    assert table["expected_mean"].isna().all()


def test_without_repeats_there_is_no_alpha(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")
    scores, ratings = judged(plan, folder, lambda place, repeat: float(place[2]))
    scores["pc_expected"] = scores["pc"] + 0.25
    table = reliability(scores, {cell: own[:, :1] for cell, own in ratings.items()}, ["pc"])
    assert table["reason"].tolist() == ["no image has two ratings"] * 3
    assert table[["alpha", "exact_agreement"]].isna().all(axis=None)
    assert table["n_repeated"].tolist() == [0, 0, 0]
    assert table["mean"].tolist() == [3.5] * 3
    assert table["expected_mean"].tolist() == [3.75] * 3


def test_the_judge_is_not_asked_about_images_without_a_file(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")
    judged(plan, folder, lambda place, repeat: 3.0)
    for job in plan.jobs[:2]:
        (folder.images("A--CFG") / job.file).unlink()
    table = reliability(*join_scores(manifest_of(plan, folder), folder), ["pc"])
    assert table["n_asked"].tolist() == [12, 18, 30]
    assert table["n_valid"].tolist() == [12, 18, 30]


def test_unscored_images_are_counted_by_cell_and_reason():
    reasons = ["no_json", None, "out_of_range:pc", "no_json", None, None]
    scores = pd.DataFrame({"cell": list("aaaabb"), "unscored_reason": reasons})
    found = unscored_by_reason(scores.astype({"unscored_reason": "string"}))
    assert found.to_dict("records") == [
        {"cell": "a", "reason": "no_json", "n_unscored": 2, "n_images": 4, "share": 0.5},
        {"cell": "a", "reason": "out_of_range:pc", "n_unscored": 1, "n_images": 4, "share": 0.25},
    ]
    assert len(unscored_by_reason(scores[4:])) == 0


def test_without_a_judge_the_tables_are_deleted(plan, tmp_path):
    folder = RunFolder(tmp_path / "run")
    scores = judged(plan, folder, lambda place, repeat: 1.0)
    manifest = write_manifest(plan, folder)
    write_reliability(manifest, folder, *scores)
    assert folder.reliability.is_file()
    write_reliability(manifest.model_copy(update={"judge": None}), folder, *scores)
    assert not folder.reliability.exists()
    assert not folder.unscored.exists()
