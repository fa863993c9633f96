"""Estimates against closed forms of the jackknife and recomputation without each unit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from autolora_eval.analysis.cell_estimates import (
    cell_estimates,
    prompt_diversities,
    prompt_mean_products,
)
from autolora_eval.analysis.estimates import (
    SEED,
    Estimate,
    bootstrap_interval,
    mean_estimate,
    product_estimate,
    ratio_estimate,
    unit_members,
)
from autolora_eval.runs.feature_file import CellFeatures
from autolora_eval.scoring.diversity import diversity, jackknife_standard_error


def sample(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 5, size=n)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_the_interval_of_a_mean_is_the_t_interval(n):
    x = sample(n, n)
    estimate = mean_estimate(x, range(n))
    expected = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
    assert estimate.value == pytest.approx(x.mean(), abs=1e-12)
    assert estimate.interval() == pytest.approx(expected, abs=1e-12)
    error = jackknife_standard_error(estimate.leave_one_out)
    assert error == pytest.approx(x.std(ddof=1) / np.sqrt(n), rel=1e-12)


def test_the_pseudo_values_of_a_mean_are_its_values():
    x = sample(1, 9)
    names = [f"prompt {i}" for i in range(9)]
    pseudo = mean_estimate(x, names).pseudo_values()
    assert list(pseudo) == names
    assert list(pseudo.values()) == pytest.approx(x, abs=1e-12)


def test_a_unit_without_a_value_is_left_out():
    with_gap = mean_estimate([1.0, np.nan, 4.0, 7.0], "abcd")
    assert with_gap.units == ("a", "c", "d")
    assert with_gap.value == 4.0
    assert with_gap.interval() == mean_estimate([1.0, 4.0, 7.0], "acd").interval()


def test_too_few_units_have_no_interval():
    for empty in (mean_estimate([np.nan, np.nan], "ab"), mean_estimate([], "")):
        assert np.isnan(empty.value)
        assert empty.units == ()
        assert np.isnan(empty.interval()).all()
    one = mean_estimate([3.0], "a")
    assert one.value == 3.0
    assert np.isnan(one.interval()).all()
    assert np.isnan(Estimate(1.0, np.array([1.0, np.nan, 1.0]), (1, 2, 3)).interval()).all()


def test_a_ratio_is_the_mean_over_images_of_unequal_units():
    units = [np.array([5.0]), np.array([1.0, 2.0, 3.0]), np.array([]), np.array([4.0, 0.0])]
    sums, counts = [u.sum() for u in units], [len(u) for u in units]
    estimate = ratio_estimate(sums, counts, "abcd")
    everything = np.concatenate(units)
    assert estimate.value == pytest.approx(everything.mean(), abs=1e-12)
    assert estimate.value != pytest.approx(np.mean([u.mean() for u in units if len(u)]), abs=0.1)
    assert estimate.units == ("a", "b", "d")
    without = [np.concatenate([u for j, u in enumerate(units) if j != i]) for i in (0, 1, 3)]
    assert estimate.leave_one_out == pytest.approx([w.mean() for w in without], abs=1e-12)


def test_a_product_has_the_units_of_both_factors():
    a, b = mean_estimate([1.0, 3.0], "pq"), mean_estimate([4.0, 6.0, 8.0], "qrs")
    product = product_estimate(a, b)
    assert product.units == ("p", "q", "r", "s")
    assert product.value == 2.0 * 6.0
    # Without p: (3)·6; without q: (1)·7; without r: 2·6; without s: 2·5.
    assert product.leave_one_out == pytest.approx([18.0, 7.0, 12.0, 10.0], abs=1e-12)


# One cell's images, with gaps: an image without features, one without score, a prompt without
# any score, and a prompt of one image.
SIZES = {"castle": 5, "fox": 4, "boat": 3, "hill": 1}
NO_FEATURES = ("castle", 1)
UNSCORED = {("fox", 2), ("boat", 0), ("boat", 1), ("boat", 2)}


def cell(sizes: dict[str, int]) -> tuple[pd.DataFrame, CellFeatures]:
    rng = np.random.default_rng(3)
    rows, ids, vectors = [], [], []
    for index, (prompt, count) in enumerate(sizes.items()):
        centre = rng.normal(size=7)
        for seed in range(count):
            scored = (prompt, seed) not in UNSCORED
            rows.append(
                {
                    "cell": "M--X",
                    "model": "M",
                    "method": "X",
                    "prompt_index": index,
                    "prompt": prompt,
                    "seed": seed,
                    "image_id": f"{prompt}/{seed}",
                    "pc": float(rng.integers(0, 6)) if scored else np.nan,
                }
            )
            if (prompt, seed) != NO_FEATURES:
                ids.append(f"{prompt}/{seed}")
                vectors.append(centre + rng.normal(size=7))
    matrix = np.asarray(vectors, dtype=np.float32)
    return pd.DataFrame(rows), CellFeatures(ids, ["0"] * len(ids), matrix, {}, "k")


def measured(images: pd.DataFrame, features: CellFeatures) -> dict[str, float]:
    """Diversity, PC and Div-PC as DESIGN says, without any of the product's estimates."""
    vectors = dict(zip(features.ids, features.matrix, strict=True))
    spreads = []
    for _, group in images.groupby("prompt"):
        rows = [vectors[id_] for id_ in group["image_id"] if id_ in vectors]
        value = diversity(np.array(rows).reshape(len(rows), -1)).value
        if value is not None:
            spreads.append(value)
    spread = float(np.mean(spreads)) if spreads else np.nan
    score = float(images["pc"].mean())
    return {"diversity": spread, "pc": score, "div_pc": spread * score}


def estimates(images: pd.DataFrame, features: CellFeatures) -> dict[str, Estimate]:
    prompts = prompt_diversities(images, features)
    return cell_estimates(images, prompts, features, ["pc"])


@pytest.mark.parametrize(
    ("sizes", "column"),
    [(SIZES, "prompt"), ({"castle": 5}, "seed"), ({"fox": 4}, "seed")],
    ids=["several prompts", "one prompt, one image without features", "one prompt, one unscored"],
)
def test_every_estimate_equals_recomputation_without_each_unit(sizes, column):
    images, features = cell(sizes)
    whole = measured(images, features)
    for metric, estimate in estimates(images, features).items():
        assert estimate.value == pytest.approx(whole[metric], abs=1e-10), metric
        assert set(estimate.units) <= set(images[column])
        without = [measured(images[images[column] != u], features)[metric] for u in estimate.units]
        assert estimate.leave_one_out == pytest.approx(without, abs=1e-10), metric


def test_only_contributing_units_are_listed():
    found = estimates(*cell(SIZES))
    assert found["diversity"].units == ("castle", "fox", "boat")
    assert found["pc"].units == ("castle", "fox", "hill")
    assert set(found["div_pc"].units) == set(SIZES)
    one = estimates(*cell({"castle": 5}))
    assert one["diversity"].units == (0, 2, 3, 4)
    assert one["pc"].units == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("count", [1, 2])
def test_one_prompt_with_too_few_images_has_no_interval(count):
    found = estimates(*cell({"fox": count}))
    assert np.isnan(found["diversity"].interval()).all()
    assert np.isnan(found["div_pc"].interval()).all()
    assert np.isfinite(found["pc"].value)
    assert np.isnan(found["diversity"].value) == (count == 1)


def test_the_prompt_mean_of_products_is_the_mean_over_several_prompts():
    images, features = cell(SIZES)
    prompts = prompt_diversities(images, features)
    vectors = dict(zip(features.ids, features.matrix, strict=True))
    products = []
    for prompt in ("castle", "fox"):  # boat has no score, hill no diversity
        group = images[images["prompt"] == prompt]
        rows = [vectors[id_] for id_ in group["image_id"] if id_ in vectors]
        products.append(diversity(rows).value * group["pc"].mean())
    found = prompt_mean_products(images, prompts, ["pc"])
    assert found == {"div_pc_prompt_mean": pytest.approx(np.mean(products), abs=1e-12)}
    one = images[images["prompt"] == "fox"]
    assert np.isnan(prompt_mean_products(one, prompts[1:2], ["pc"])["div_pc_prompt_mean"])


@pytest.mark.parametrize("scale", ["logit", "log"])
def test_an_interval_is_computed_on_its_scale(scale):
    """If a value is outside the domain of the scale, the plain interval is used."""
    there = {"logit": special.logit, "log": np.log}[scale]
    x = np.random.default_rng(2).uniform(0.2, 0.6, size=12)
    plain = mean_estimate(x, range(12))
    estimate = replace(plain, scale=scale)
    error = jackknife_standard_error(there(plain.leave_one_out))
    half = stats.t.ppf(0.975, 11) * error
    low, high = estimate.interval()
    assert there(low) == pytest.approx(there(plain.value) - half, rel=1e-9)
    assert there(high) == pytest.approx(there(plain.value) + half, rel=1e-9)
    outside = mean_estimate(x - 0.5, range(12))
    assert replace(outside, scale=scale).interval() == outside.interval()


def test_means_over_units_are_marked():
    assert mean_estimate([1.0, 2.0, np.nan], "abc").is_mean
    assert ratio_estimate([2.0, 4.0], [2, 2], "ab").is_mean
    assert not ratio_estimate([2.0, 4.0], [2, 3], "ab").is_mean
    a, b = mean_estimate([1.0, 2.0], "ab"), mean_estimate([3.0, 1.0], "ab")
    assert not product_estimate(a, b).is_mean


# ---- Bootstrap intervals


def test_the_interval_is_scipys_of_the_same_resamples():
    x = np.random.default_rng(4).exponential(size=30)
    without = (x.sum() - x) / 29
    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=1999, method="BCa", rng=np.random.default_rng(SEED)
    ).confidence_interval
    for known in (None, without):
        found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 30, without=known)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_images_of_one_prompt_count_as_one_unit():
    """Ten equal images per prompt must not make the interval narrower than one."""
    x = np.random.default_rng(3).normal(size=12)
    tenfold, members = np.repeat(x, 10), unit_members(np.repeat(np.arange(12), 10).tolist())
    assert [len(rows) for rows in members] == [10] * 12

    def mean_of_all(drawn: np.ndarray) -> float:
        return float(tenfold[np.concatenate([members[n] for n in drawn])].mean())

    clustered = bootstrap_interval(mean_of_all, 12)
    single = bootstrap_interval(lambda drawn: float(x[drawn].mean()), 12)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0, 2.0, 3.0, 4.0], "an interval needs at least 5 prompts, has 4"),
        ([1.0] * 6, "no interval: the same in every resample of 6 prompts"),
        ([1.0, np.nan, 1.0, 2.0, 3.0], "no interval: undefined in some resamples of 5 prompts"),
    ],
)
def test_a_missing_interval_has_a_reason(values, reason):
    x = np.asarray(values)
    found = bootstrap_interval(lambda drawn: float(x[drawn].mean()), len(x), "prompt")
    assert np.isnan([found.low, found.high]).all()
    assert found.reason is not None
    assert found.reason.startswith(reason)


def test_unit_members_keep_the_order_of_units_and_rows():
    assert [rows.tolist() for rows in unit_members(["b", "a", "b", 1])] == [[0, 2], [1], [3]]
