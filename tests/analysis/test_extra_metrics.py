"""Further diversity metrics in the tables, beside equation (8), which does not change."""

import math
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scored_run import Place, scored, vector

from autolora_eval.analysis.cell_estimates import MAX_GROUPS
from autolora_eval.analysis.estimates import t_interval
from autolora_eval.analysis.explain import explain
from autolora_eval.pipeline.run_pipeline import compare
from autolora_eval.report import write_report
from autolora_eval.runs.folder import Run, RunFolder, open_run
from autolora_eval.scoring.diversity_metric import METRICS

DOCUMENT = ROOT / "docs" / "how_to" / "diversity_metric.md"
EXTRA = ["vendi", "mean_distance"]
VENDI = METRICS.find("vendi")


def values(cell: str, prompt: int, seeds: list[int], lost: tuple[int, ...] = ()) -> float:
    found = VENDI(np.stack([vector((cell, prompt, seed)) for seed in seeds if seed not in lost]))
    assert found.value is not None
    return found.value


def test_a_cells_value_is_the_mean_over_prompts_with_a_jackknife_interval(run_of):
    run = run_of(diversity=EXTRA)
    for row in run.table.to_dict("records"):
        found = [values(row["cell"], prompt, [3, 4]) for prompt in range(3)]
        assert row["vendi"] == pytest.approx(np.mean(found))
        # Of a mean the jackknife is the usual standard error.
        ends = t_interval(np.mean(found), (sum(found) - np.asarray(found)) / (len(found) - 1))
        assert (row["vendi_low"], row["vendi_high"]) == pytest.approx((max(1.0, ends[0]), ends[1]))
        own = run.diversity[run.diversity["cell"] == row["cell"]]
        assert own["vendi"].tolist() == pytest.approx(found)
        assert own["vendi_reason"].isna().all()


def test_they_are_in_comparisons_tables_and_manifest_and_in_no_product(run_of):
    run = run_of(diversity=EXTRA)
    measured = ["diversity", "pc", "div_pc", *EXTRA]
    assert run.comparisons["metric"].tolist() == measured
    assert not [c for c in run.table if c.startswith("div_vendi")]
    product = run.table["diversity"] * run.table["pc"]
    assert run.table["div_pc"].tolist() == pytest.approx(product.tolist())
    compared = run.comparisons.set_index("metric").loc["vendi"]
    by_method = run.table.set_index("method")["vendi"]
    assert compared["difference"] == pytest.approx(by_method["AutoLoRA"] - by_method["CFG"])
    assert "Vendi score" in compared["sentence"]
    assert "Vendi ↑" in run.folder.table("md").read_text(encoding="utf-8")
    given = run.manifest.diversity_metrics
    assert list(given) == EXTRA
    assert given["vendi"].source == VENDI.source
    assert given["vendi"].high is None


def test_they_change_no_other_column(make):
    with_them = scored(*make("with", diversity=EXTRA))
    without = scored(*make("without"))
    for name in ("table.csv", "diversity.csv"):
        more, less = (pd.read_csv(f.path / name, dtype=str) for f in (with_them, without))
        added = [column for column in more if column not in less]
        assert {column.removesuffix("_low").removesuffix("_high") for column in added} <= {
            *EXTRA,
            *(f"{metric}_reason" for metric in EXTRA),
        }
        pd.testing.assert_frame_equal(more.drop(columns=added), less)
    assert not any(name in (without.path / "table.csv").read_text() for name in EXTRA)
    same = (pd.read_csv(f.comparisons) for f in (with_them, without))
    more, less = (frame.drop(columns=["p_holm", "sentence"]) for frame in same)
    pd.testing.assert_frame_equal(more[~more["metric"].isin(EXTRA)], less)


@pytest.fixture
def of_one_prompt(make) -> Callable[..., Run]:
    """A function that returns a run of one prompt, without the features of the lost seeds."""

    def run(count: int, lost: tuple[int, ...]) -> Run:
        seeds = {"start": 3, "count": count}
        plan, folder = make("one", prompts=["a cat"], seeds=seeds, diversity=EXTRA)
        scored(plan, folder, vectors=lambda place: None if place[2] in lost else vector(place))
        return open_run(folder.path)

    return run


def test_with_one_prompt_the_jackknife_leaves_out_each_seed(of_one_prompt):
    run = of_one_prompt(6, lost=(4,))
    seeds = [3, 5, 6, 7, 8]
    for row in run.table.to_dict("records"):
        whole = values(row["cell"], 0, seeds)
        without = [values(row["cell"], 0, seeds, (seed,)) for seed in seeds]
        ends = t_interval(whole, np.asarray(without))
        assert row["vendi"] == pytest.approx(whole)
        assert (row["vendi_low"], row["vendi_high"]) == pytest.approx((max(1.0, ends[0]), ends[1]))
    compared = run.comparisons.set_index("metric").loc["vendi"]
    assert (compared["unit"], compared["n_units"]) == ("seed", 5)


def test_with_many_seeds_the_jackknife_leaves_out_groups(of_one_prompt):
    count = 2 * MAX_GROUPS + 3
    lost = (3, 3 + MAX_GROUPS, 3 + 2 * MAX_GROUPS, 10)  # all of one group, and a part of another
    run = of_one_prompt(count, lost)
    seeds = [seed for seed in range(3, 3 + count) if seed not in lost]
    groups = [[s for s in seeds if (s - 3) % MAX_GROUPS == g] for g in range(MAX_GROUPS)]
    row = run.table.to_dict("records")[0]
    without = [values(row["cell"], 0, seeds, tuple(group)) for group in groups if group]
    assert len(without) == MAX_GROUPS - 1
    ends = t_interval(values(row["cell"], 0, seeds), np.asarray(without))
    assert (row["vendi_low"], row["vendi_high"]) == pytest.approx((max(1.0, ends[0]), ends[1]))
    compared = run.comparisons.set_index("metric")
    vendi, own = compared.loc["vendi"], compared.loc["diversity"]
    assert (vendi["unit"], vendi["n_units"]) == ("seed group", MAX_GROUPS - 1)
    assert (own["unit"], own["n_units"]) == ("seed", len(seeds))
    assert math.isfinite(vendi["p_value"])
    assert pd.isna(vendi["units_for_power_80"]), "more seeds do not make more groups"
    assert own["units_for_power_80"] > 0


def test_values_of_unequal_numbers_of_images_are_not_compared(make):
    """The Vendi score grows with the number of images: it must not count against missing ones."""

    def without(lost: set[Place], **sections: object) -> pd.DataFrame:
        def features(place: Place) -> np.ndarray | None:
            return None if place in lost else vector(("A--CFG", *place[1:]))  # equal images

        plan, folder = make("run", diversity=["vendi"], seeds={"start": 3, "count": 5}, **sections)
        found = open_run(scored(plan, folder, vectors=features).path)
        shutil.rmtree(folder.path)
        return found.comparisons.set_index("metric")[["n_units", "difference"]]

    found = without({("A--AutoLoRA", 1, seed) for seed in (3, 4, 5)})
    assert found.loc["vendi"].tolist() == [2, 0.0]
    assert found.loc["diversity", "n_units"] == 3
    found = without({("A--AutoLoRA", 0, 3)}, prompts=["a cat"])
    assert found.loc["vendi", "n_units"] == 0
    assert np.isnan(found.loc["vendi", "difference"])
    assert found.loc["diversity", "n_units"] == 4


def test_an_undefined_value_has_a_reason(of_one_prompt):
    run = of_one_prompt(2, lost=(4,))
    assert run.table[[*EXTRA, "vendi_low", "vendi_high"]].isna().all(axis=None)
    assert set(run.diversity["vendi_reason"]) == {"needs at least 2 images, has 1"}
    assert "needs at least 2 images, has 1" in run.folder.table("md").read_text(encoding="utf-8")


def test_a_published_value_has_its_own_column(run_of, workplace):
    (workplace / "published.csv").write_text("method,vendi\nCFG,1.75\n")
    run = run_of(diversity=["vendi"], published="published.csv")
    assert run.table.set_index("method")["vendi_published"].to_dict()["CFG"] == 1.75


def recomputed(folder: RunFolder, cell: str) -> dict[str, dict[str, str]]:
    """Return the rows of the metrics that `explain` recomputes, by metric."""
    section = next(s for s in explain(folder.path, cell).sections if s.title == "Metrics")
    return {row["metric"]: row for row in section.rows}


def test_explain_recomputes_them_and_names_their_source(make):
    folder = scored(*make("run", diversity=EXTRA))
    found = recomputed(folder, "A--AutoLoRA")
    assert all(found[name]["recomputed from the files"].endswith(", same") for name in EXTRA)
    assert "Vendi score" in found["vendi"]["computed from"]
    assert VENDI.source in found["vendi"]["computed from"]
    summary = explain(folder.path, "A--AutoLoRA", "0").sections[0].values
    assert summary["vendi"] == f"{values('A--AutoLoRA', 0, [3, 4]):.4f}"


def test_explain_does_not_import_code_beside_the_run(make, workplace, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (workplace / "lying_about.py").write_text(
        "from dataclasses import replace\n"
        "from autolora_eval.scoring.metrics.vendi import METRIC as VENDI\n"
        "METRIC = replace(VENDI, name='own', display_name='Own')\n"
    )
    folder = scored(*make("run", diversity=["lying_about.METRIC"]))
    assert "own" in open_run(folder.path).table
    monkeypatch.undo()
    del sys.modules["lying_about"]
    own = recomputed(folder, "A--AutoLoRA")["own"]
    assert own["recomputed from the files"] == "its code is not installed"
    assert "lying_about" not in sys.modules


def test_the_report_shows_them_and_why_one_is_undefined(make):

    def features(place: Place) -> Any:
        return None if place[0] == "A--CFG" and place[2] == 4 else vector(place)

    folder = scored(*make("run", diversity=EXTRA), vectors=features)
    write_report(folder)
    page = folder.report_html.read_text(encoding="utf-8")
    assert "Vendi ↑" in page
    assert VENDI.source in page
    assert "no value (needs at least 2 images, has 1)" in page
    assert "Vendi and Dist can depend on the number of images. Values of cells with" in page
    assert len(list(folder.figures.glob("*.svg"))) >= 3


def test_a_comparison_keeps_the_metrics_of_all_runs(make, run_of, tmp_path, benchmark_data):
    folders = []
    for name, metrics in (("CFG", EXTRA), ("AutoLoRA", ["vendi"])):
        methods = {name: benchmark_data["methods"][name]}
        run = make(f"of-{name}", methods=methods, baseline=name, diversity=metrics)
        folders.append(scored(*run).path)
    whole = run_of(diversity=["vendi"])
    joint, differences = compare(folders, tmp_path / "joint")
    message = next(d.message for d in differences if d.what == "diversity")
    assert message == "diversity metrics that not all runs have are left out: mean_distance."
    assert joint.table["vendi"].tolist() == whole.table["vendi"].tolist()
    assert "mean_distance" not in joint.table
    assert list(joint.manifest.diversity_metrics) == ["vendi"]


def test_the_documentation_lists_the_shipped_metrics():
    page = DOCUMENT.read_text(encoding="utf-8")
    for name in EXTRA:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert METRICS.find(name).source.split("arXiv ")[1] in row
