"""Agreement with people against scikit-learn, definitions and simulations."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import run_command
from report.synthetic_run import Tables, make_tables, two_methods
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from autolora_eval._errors import UsageError
from autolora_eval._files import sha256_file
from autolora_eval.analysis.human_agreement import (
    COLUMNS,
    STATISTICS,
    agreement,
    bias,
    exact_rate,
    kendall,
    quadratic_kappa,
    spearman,
    within_one_rate,
    write_agreement,
)
from autolora_eval.runs.folder import open_run

PROMPTS = tuple(f"prompt {n}" for n in range(6))


def pair(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, n).astype(float)
    return x, np.clip(x + rng.integers(-2, 3, n), 0, 5)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_equals_scikit_learn(seed):
    x, y = pair(seed)
    expected = cohen_kappa_score(x.astype(int), y.astype(int), weights="quadratic")
    assert quadratic_kappa(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_equals_its_definition_and_is_symmetric(seed):
    x, y = (values / 3 for values in pair(seed))
    pairs = (x[:, None] - y) ** 2
    expected = 1 - ((x - y) ** 2).mean() / pairs.mean()
    assert quadratic_kappa(x, y) == pytest.approx(expected, abs=1e-12)
    assert quadratic_kappa(y, x) == pytest.approx(expected, abs=1e-12)


def test_tau_b_equals_its_definition():
    x, y = pair(3, 25)
    i, j = np.triu_indices(25, 1)
    dx, dy = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    expected = (dx * dy).sum() / np.sqrt((dx != 0).sum() * (dy != 0).sum())
    assert kendall(x, y) == pytest.approx(expected, abs=1e-12)


def test_values_for_perfect_reversed_and_independent_ratings():
    x = np.tile(np.arange(6.0), 50)
    for function in (spearman, kendall, quadratic_kappa):
        assert function(x, x) == pytest.approx(1.0)
        assert function(x, 5.0 - x) == pytest.approx(-1.0)
        independent = np.random.default_rng(1).permutation(x)
        assert abs(function(x, independent)) < 4 / np.sqrt(300)
    assert (bias(x, x), exact_rate(x, x), within_one_rate(x, x)) == (0.0, 1.0, 1.0)
    assert (bias(x + 1, x), exact_rate(x + 1, x), within_one_rate(x + 1, x)) == (1.0, 0.0, 1.0)
    assert within_one_rate(np.array([0.1 + 0.2]), np.array([1.3])) == 1.0


def test_undefined_statistics_are_nan():
    constant, x = np.full(9, 4.0), np.arange(9.0)
    for function in (spearman, kendall):
        assert np.isnan(function(constant, x))
        assert np.isnan(function(x, constant))
    assert np.isnan(quadratic_kappa(constant, constant))
    assert quadratic_kappa(constant, x) == pytest.approx(0.0, abs=1e-12)  # defined: no better
    assert np.isnan(exact_rate(x / 2, x))


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch) -> None:
    """199 resamples instead of 1,999: no test below checks the width of an interval."""
    monkeypatch.setattr("autolora_eval.analysis.estimates.N_RESAMPLES", 199)


def make() -> Tables:
    """A run of two cells, six prompts and three seeds with random integer scores."""
    tables = two_methods(prompts=PROMPTS)
    tables.scores["pc"] = np.random.default_rng(7).integers(0, 6, 36).astype(float)
    return tables


def rated(tables: Tables, values: np.ndarray, path: Path) -> Path:
    path.write_text(tables.scores[["file"]].assign(pc=values).to_csv(index=False))
    return path


@pytest.fixture
def agreed(tmp_path) -> Callable[..., pd.DataFrame]:
    """A function that returns the agreement of a run with the ratings of each rater."""

    def find(tables: Tables, *raters: dict[str, object]) -> pd.DataFrame:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        ratings = pd.concat([tables.scores[["file"]].assign(**columns) for columns in raters])
        ratings.to_csv(folder / "h.csv", index=False)
        run = open_run(tables.write(folder / "run").path)
        return agreement(run, folder / "h.csv").table

    return find


def cells_of(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    for column, value in ({"compared": "judge", "cell": "all"} | where).items():
        table = table[table[column] == value]
    return table.set_index("statistic")


def test_equal_ratings_agree_perfectly(agreed):
    tables = make()
    found = agreed(tables, {"pc": tables.scores["pc"]})
    assert list(found.columns) == list(COLUMNS)
    whole = cells_of(found)
    assert whole.index.tolist() == list(STATISTICS)
    assert whole["value"].tolist() == pytest.approx([1, 1, 1, 0, 1, 1])
    assert whole["low"].isna().all()
    assert set(whole["reason"]) == {"no interval: the same in every resample of 6 prompts"}
    assert set(whole["unit"]) == {"prompt"}
    assert set(whole["n_images"]) == {36}
    # The bias stands for each cell too: it is what would favour a method.
    assert found[found["cell"] != "all"]["statistic"].tolist() == ["bias", "bias"]


def test_statistics_are_those_of_the_shared_images(agreed):
    tables = make()
    people = np.clip(tables.scores["pc"] + np.resize([0, 1, -1, 0, 2], 36), 0, 5)
    people[:4] = np.nan  # not rated
    tables.scores.loc[4:6, "pc"] = np.nan  # not scored
    found = cells_of(agreed(tables, {"pc": people}))
    x, y = tables.scores["pc"].to_numpy()[7:], people.to_numpy()[7:]
    assert set(found["n_images"]) == {29}
    expected = {
        "spearman": stats.spearmanr(x, y).statistic,
        "kendall": stats.kendalltau(x, y).statistic,
        "kappa": cohen_kappa_score(x.astype(int), y.astype(int), weights="quadratic"),
        "bias": (x - y).mean(),
        "exact": (x == y).mean(),
        "within_one": (abs(x - y) <= 1).mean(),
    }
    assert found["value"].to_dict() == pytest.approx(expected, abs=1e-12)
    assert (found["low"] < found["value"]).all()
    assert (found["value"] < found["high"]).all()
    assert found["reason"].isna().all()


def test_several_raters_are_averaged_and_compared(agreed):
    tables = make()
    base = tables.scores["pc"].to_numpy()
    ann, bob = base, np.where(np.arange(36) % 3 == 0, np.clip(base + 1, 0, 5), base)
    table = agreed(tables, {"rater": "ann", "pc": ann}, {"rater": "bob", "pc": bob})
    found = cells_of(table)
    assert found.loc["bias", "value"] == pytest.approx((base - (ann + bob) / 2).mean())
    assert np.isnan(found.loc["exact", "value"])  # means of two ratings are not integers
    assert found.loc["exact", "reason"] == "defined for integers only"
    raters = cells_of(table, compared="raters").loc["raters_alpha"]
    assert 0.9 < raters["value"] < 1.0
    assert raters["low"] < raters["value"] < raters["high"]
    assert raters["n_images"] == 36


def test_raters_without_a_common_image_have_no_alpha(agreed):
    tables = make()
    table = agreed(tables, {"rater": ["ann", "bob"] * 18, "pc": tables.scores["pc"]})
    found = cells_of(table, compared="raters").loc["raters_alpha"]
    assert np.isnan(found["value"])
    assert (found["reason"], found["n_images"]) == ("no image was rated by two people", 0)


def test_any_score_name_that_a_rubric_allows_works(agreed):
    """Also names that this module uses itself."""
    tables = make()
    names = {"pc": "people", "sa": "image"}
    tables.scores = tables.scores.rename(columns=names)
    tables.table = tables.table.rename(columns=names)
    scores = tables.manifest["rubric"]["scores"]
    tables.manifest["rubric"]["scores"] = {new: scores[old] for old, new in names.items()}
    people = np.clip(tables.scores["people"] + np.resize([0, 1, -1], 36), 0, 5)
    table = agreed(tables, {"people": people, "image": 4})
    found = cells_of(table[table["score"] == "people"])
    assert found.loc["bias", "value"] == pytest.approx((tables.scores["people"] - people).mean())
    assert set(table["score"]) == {"people", "image"}


def test_the_expected_score_has_its_own_rows(agreed):
    tables = make()
    people = np.clip(tables.scores["pc"].to_numpy() + np.resize([0.5, -0.5, 0.3], 36), 0, 5)
    tables.scores["pc_expected"] = people * 0.9 + tables.scores["pc"] * 0.1
    found = cells_of(agreed(tables, {"pc": people}), compared="expected")
    assert found.index.tolist() == [*STATISTICS, "nearer"]
    verdict, expected = tables.scores["pc"] - people, tables.scores["pc_expected"] - people
    fall = (verdict.abs() - expected.abs()).mean()
    assert fall > 0
    assert found.loc["nearer", "value"] == pytest.approx(fall)
    assert 0 < found.loc["nearer", "low"] < fall < found.loc["nearer", "high"]


def test_too_few_images_give_null_with_a_reason(agreed):
    people = np.full(36, np.nan)
    people[:2] = [3.0, 4.0]
    found = cells_of(agreed(make(), {"pc": people}))
    needs = "needs at least 3 images with score and rating, has 2"
    assert found["reason"].tolist()[:3] == [needs] * 3
    assert found["value"].isna().tolist() == [True] * 3 + [False] * 3
    assert found.loc["bias", "reason"] == "an interval needs at least 5 images, has 2"
    found = cells_of(agreed(make(), {"pc": 4.0}))
    assert found.loc["spearman", "reason"].startswith("all scores of the judge")
    assert found.loc["kappa", "value"] == pytest.approx(0.0, abs=1e-12)


def test_ratings_of_unscored_images_only_give_null(agreed):
    tables = make()
    tables.scores["pc"] = np.nan
    found = cells_of(agreed(tables, {"pc": 3.0}))
    assert found["value"].isna().all()
    assert found["n_images"].tolist() == [0] * 6
    assert found.loc["bias", "reason"] == "needs at least 1 images with score and rating, has 0"


def test_the_table_and_its_inputs_are_written(tmp_path):
    tables = make()
    folder = tables.write(tmp_path / "run")
    ratings = rated(tables, tables.scores["pc"].to_numpy(), tmp_path / "people.csv")
    table = write_agreement(open_run(folder.path), ratings).table
    manifest = json.loads(folder.manifest.read_text(encoding="utf-8"))
    assert manifest["agreement"] == {
        "ratings_file": "people.csv",
        "ratings_sha256": sha256_file(ratings),
        "ratings": 36,
        "images": 36,
        "raters": 1,
        "scores_sha256": sha256_file(folder.scores),
    }
    before = folder.agreement.read_bytes()
    assert len(pd.read_csv(folder.agreement)) == len(table)
    write_agreement(open_run(folder.path), ratings)
    assert folder.agreement.read_bytes() == before


def test_a_run_without_a_judge_is_a_usage_error(tmp_path):
    run = open_run(make_tables(judged=False).write(tmp_path / "run").path)
    with pytest.raises(UsageError, match="has no judge's scores to compare"):
        agreement(run, tmp_path / "none.csv")


def test_the_command_prints_a_table_that_fits_a_terminal(tmp_path):
    tables = make()
    people = np.clip(tables.scores["pc"] + np.resize([0, 1, -1, 0, 0.5], 36), 0, 5).to_numpy()
    tables.scores["pc_expected"] = people * 0.5 + tables.scores["pc"] * 0.5
    folder = tables.write(tmp_path / "[bold]run")  # a name that rich would read as markup
    ratings = rated(tables, people, tmp_path / "h.csv")
    done = run_command("agreement", folder.path, ratings, width=80)
    assert (done.code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    rho = cells_of(pd.read_csv(folder.agreement)).loc["spearman"]
    shown = next(line for line in lines if line.startswith("pc ") and "Spearman" in line)
    assert f"{rho['value']:.3f}" in shown
    assert f"[{rho['low']:.3f}, {rho['high']:.3f}]" in shown
    assert "Equal: defined for integers only" in lines
    assert str(folder.agreement) in done.stdout


def test_the_command_prints_no_negative_zero(tmp_path):
    tables = make()
    ratings = rated(
        tables, (tables.scores["pc"] + 0.0004).clip(0, 5).to_numpy(), tmp_path / "h.csv"
    )
    done = run_command("agreement", tables.write(tmp_path / "run").path, ratings)
    (shown,) = (line for line in done.stdout.splitlines() if "Judge − people" in line)
    assert shown.split()[4] == "0.000"
    assert "-0.000" not in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,pcc\nx.png,3\n", "unknown column 'pcc': remove or rename it. Did you mean 'pc'?"),
        ("file,pc\nx.png,3\n", "h.csv:2: the run has no image 'x.png'"),
        (None, "Cannot read"),
    ],
)
def test_unusable_ratings_are_a_usage_error_and_nothing_is_written(tmp_path, content, message):
    folder = make().write(tmp_path / "run")
    manifest = folder.manifest.read_bytes()
    if content is not None:
        (tmp_path / "h.csv").write_text(content)
    done = run_command("agreement", folder.path, tmp_path / "h.csv")
    assert done.code == 2
    assert message in done.stderr
    assert not folder.agreement.exists()
    assert folder.manifest.read_bytes() == manifest
