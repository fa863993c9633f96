"""Diversity metrics against a reference set: the images of another method."""

from collections.abc import Callable

import numpy as np
import pytest
from report.readers import content_of, text_of
from scored_run import manifest_of, scored, vector

from autolora_eval.analysis.estimates import t_interval
from autolora_eval.analysis.explain import explain
from autolora_eval.analysis.tables import reference_cells
from autolora_eval.config.plan import Plan
from autolora_eval.pipeline.run_pipeline import compare
from autolora_eval.runs.folder import RunFolder, open_run

REACH = """
import numpy as np
from autolora_eval.scoring.diversity_metric import DiversityMetric

def reach(features, reference):
    return float(np.abs(features[:, None] - reference[None]).sum(-1).min(1).max())

METRIC = DiversityMetric(
    name="reach", display_name="Reach", label="Reach", function=reach, low=0.0,
    equation="max_j min_i |f(x_j) − f(r_i)|", source="this test", least_images=1,
    against_reference=True, least_reference=2,
)
"""
METRICS = {"diversity": ["a_reach.METRIC"], "diversity_reference": "CFG"}


@pytest.fixture
def make(make, workplace) -> Callable[..., tuple[Plan, RunFolder]]:
    """The same with a metric of its own."""
    (workplace / "a_reach.py").write_text(REACH, encoding="utf-8")
    return lambda name, **sections: make(name, **(METRICS | sections))


def reach(cell: str, reference: str, prompt: int, seeds: list[int], of: list[int]) -> float:
    """The metric, written without numpy."""
    here = [vector((cell, prompt, seed)).astype(float) for seed in seeds]
    there = [vector((reference, prompt, seed)).astype(float) for seed in of]
    return max(min(float(np.abs(a - b).sum()) for b in there) for a in here)


def test_each_prompt_is_compared_with_the_references_images_of_that_prompt(run_of):
    run = run_of()
    expected = [reach("A--AutoLoRA", "A--CFG", n, [3, 4], [3, 4]) for n in range(3)]
    own = run.diversity[run.diversity["cell"] == "A--AutoLoRA"]
    assert own["reach"].tolist() == pytest.approx(expected)
    assert own["reference_cell"].unique().tolist() == ["A--CFG"]
    assert run.table.set_index("method")["reach"]["AutoLoRA"] == pytest.approx(np.mean(expected))
    assert run.manifest.diversity_metrics["a_reach.METRIC"].against_reference


def test_the_reference_itself_has_no_value_with_a_reason(run_of):
    run = run_of()
    own = run.diversity[run.diversity["cell"] == "A--CFG"]
    assert own["reach"].isna().all()
    assert set(own["reach_reason"]) == {"it is the reference itself"}
    assert run.table.set_index("method")["reach"].isna().tolist() == [True, False]
    compared = run.comparisons.set_index("metric").loc["reach"]
    assert np.isnan(compared["difference"])
    said = text_of(content_of(run.folder))
    assert "no value (it is the reference itself)" in said
    assert "diversity reference" in said


def test_with_one_prompt_the_jackknife_leaves_out_seeds_of_the_cell_only(run_of):
    run = run_of(prompts=["a cat"], seeds={"start": 3, "count": 5})
    seeds = list(range(3, 8))
    whole = reach("A--AutoLoRA", "A--CFG", 0, seeds, seeds)
    without = [
        reach("A--AutoLoRA", "A--CFG", 0, [s for s in seeds if s != lost], seeds) for lost in seeds
    ]
    low, high = t_interval(whole, np.asarray(without))
    row = run.table.set_index("method").loc["AutoLoRA"]
    assert row["reach"] == pytest.approx(whole)
    assert (row["reach_low"], row["reach_high"]) == pytest.approx((max(0.0, low), high))


def test_a_prompt_with_too_few_reference_images_has_no_value(make):
    lost = ("A--CFG", 1, 4)
    run = open_run(
        scored(*make("run"), vectors=lambda place: None if place == lost else vector(place)).path
    )
    own = run.diversity[run.diversity["cell"] == "A--AutoLoRA"].set_index("prompt_index")
    assert own["reach"].isna().tolist() == [False, True, False]
    assert own["reach_reason"][1] == "needs at least 2 images of the reference, which has 1"
    expected = [reach("A--AutoLoRA", "A--CFG", n, [3, 4], [3, 4]) for n in (0, 2)]
    assert run.table.set_index("method")["reach"]["AutoLoRA"] == pytest.approx(np.mean(expected))


def test_in_a_sweep_the_reference_has_the_same_parameters(make):
    plan, folder = make("run", sweep={"lora_scale": [0.5, 1.0], "autolora_scale": [1.5, 2.0]})
    found = reference_cells(manifest_of(plan, folder))
    assert found == {
        cell.id: f"A--CFG--lora_scale={cell.point['lora_scale']:g}"
        for cell in plan.cells
        if cell.method.name == "AutoLoRA"
    }
    assert len(found) == 4
    plan, folder = make(
        "other", sweep={"autolora_scale": [1.5, 2.0]}, diversity_reference="AutoLoRA"
    )
    assert reference_cells(manifest_of(plan, folder)) == {}
    run = open_run(scored(plan, folder).path)
    own = run.diversity[run.diversity["method"] == "CFG"]
    assert set(own["reach_reason"]) == {"no reference has its swept parameters"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diversity_reference": None}, "Name the method that makes it: add 'diversity_ref"),
        ({"diversity_reference": "CGF"}, "unknown method 'CGF'. Did you mean 'CFG'?"),
    ],
)
def test_an_unknown_reference_is_a_usage_error(make, problem, benchmark_data, changes, message):
    given = {key: value for key, value in (METRICS | changes).items() if value is not None}
    assert message in problem(benchmark_data | given)


def test_a_comparison_of_runs_leaves_the_metric_out(make, benchmark_data, tmp_path):
    folders = [scored(*make(name)).path for name in ("one", "two")]
    joint, differences = compare(folders, tmp_path / "joint")
    assert [d.message for d in differences if d.what == "diversity"] == [
        "diversity metrics against a reference set, which two runs do not share, are left out: "
        "a_reach.METRIC."
    ]
    assert "reach" not in joint.table


def test_explain_recomputes_it_from_the_files(make):
    folder = scored(*make("run", diversity=["coverage"], seeds={"start": 0, "count": 7}))
    for method, recomputed in (("AutoLoRA", ", same"), ("CFG", "–, same")):
        sections = explain(folder.path, f"A--{method}").sections
        rows = next(section.rows for section in sections if section.title == "Metrics")
        row = next(row for row in rows if row["metric"] == "coverage")
        assert row["recomputed from the files"].endswith(recomputed)
        assert "Naeem" in row["computed from"]
    summary = explain(folder.path, "A--AutoLoRA", "0").sections[0].values
    assert summary["reference image set"] == "A--CFG"
