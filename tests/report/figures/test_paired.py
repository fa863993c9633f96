"""Differences unit by unit against pandas, and against the comparisons that they explain."""

import numpy as np
import pytest
from report.figures.made_up import made_up

from autolora_eval.analysis.cell_estimates import sorted_differences, unit_values
from autolora_eval.analysis.comparisons import paired
from autolora_eval.analysis.estimates import mean_estimate, product_estimate, ratio_estimate
from autolora_eval.report.figures.paired_differences import thinned


def test_scores_of_one_prompt_are_paired_seed_by_seed() -> None:
    data = made_up(n_seeds=50)
    scores = data.scores
    found = unit_values(scores, data.diversity, ["pc", "sa"])
    assert set(found) == {"pc", "sa"}
    a, b = (scores[scores["cell"] == f"SDXL--{m}"].set_index("seed") for m in ("AutoLoRA", "LoRA"))
    expected = (a["pc"] - b["pc"]).dropna().sort_values().to_numpy()
    differences = sorted_differences(found["pc"], "SDXL--AutoLoRA", "SDXL--LoRA")
    assert len(differences) < 50  # some image of a pair is unscored
    assert np.array_equal(differences, expected)


def test_prompts_are_paired_by_their_diversity_and_mean_score() -> None:
    data = made_up(n_prompts=8, n_seeds=5)
    data.scores[["pc", "sa"]] = data.scores[["pc", "sa"]].fillna(2.0)
    found = unit_values(data.scores, data.diversity, ["pc", "sa"])
    assert set(found) == {"diversity", "pc", "sa", "div_pc", "div_sa"}
    cells = ("SDXL--AutoLoRA", "SDXL--LoRA")
    for metric, frame in (("diversity", data.diversity), ("pc", data.scores)):
        means = frame.groupby(["cell", "prompt_index"])[metric].mean()
        expected = np.sort((means[cells[0]] - means[cells[1]]).to_numpy())
        assert np.allclose(sorted_differences(found[metric], *cells), expected, atol=1e-12)


def test_products_differ_by_what_the_comparison_is_made_of() -> None:
    data = made_up(n_prompts=8, n_seeds=5)
    cells = ("SDXL--AutoLoRA", "SDXL--LoRA")
    estimates = []
    for cell in cells:
        spread = data.diversity[data.diversity["cell"] == cell]["diversity"].to_numpy()
        groups = data.scores[data.scores["cell"] == cell].groupby("prompt_index")["pc"]
        score = ratio_estimate(groups.sum(), groups.count(), range(8))
        estimates.append(product_estimate(mean_estimate(spread, range(8)), score))
    pairs = zip(*(e.pseudo_values().values() for e in estimates), strict=True)
    expected = np.sort([a - b for a, b in pairs])
    found = unit_values(data.scores, data.diversity, ["pc"])["div_pc"]
    differences = sorted_differences(found, *cells)
    assert np.allclose(differences, expected, atol=1e-12)
    # The interval of the comparison is that of these differences.
    message = paired(*estimates)
    half = (message["high"] - message["low"]) / 2
    assert differences.std(ddof=1) / np.sqrt(8) * 2.364624 == pytest.approx(half, rel=1e-5)


def test_a_prompt_without_a_value_in_one_cell_does_not_count() -> None:
    data = made_up(n_prompts=6)
    data.diversity.loc[data.diversity.index[1], "diversity"] = np.nan  # of the first cell
    found = unit_values(data.scores, data.diversity, ["pc"])["diversity"]
    assert len(sorted_differences(found, "SDXL--AutoLoRA", "SDXL--LoRA")) == 5
    assert len(sorted_differences(found, "SDXL--AutoLoRA", "SDXL--LoRA+CFG")) == 6
    assert len(sorted_differences(found, "SDXL--AutoLoRA", "no such cell")) == 0


def test_a_curve_keeps_both_ends_of_every_step() -> None:
    differences = np.repeat([-2.0, 0.0, 3.0], [100, 50, 51])
    x, ranks = thinned(differences, 100)
    assert x.tolist() == [-2.0, -2.0, 0.0, 0.0, 3.0, 3.0]
    assert (ranks * 200).round().astype(int).tolist() == [0, 99, 100, 149, 150, 200]


def test_a_curve_of_many_values_keeps_its_ends_and_few_points() -> None:
    differences = np.sort(np.random.default_rng(0).standard_normal(5_000))
    x, ranks = thinned(differences, 100)
    assert len(x) == 100
    assert (x[0], x[-1], ranks[0], ranks[-1]) == (differences[0], differences[-1], 0.0, 1.0)
    # It stays on the curve: a value's rank is where it stands among all.
    assert np.allclose(ranks, np.searchsorted(differences, x) / 4_999)
    assert thinned(np.zeros(0), 10)[0].tolist() == []
