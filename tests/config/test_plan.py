"""The plan: cells and jobs in order, the same jobs for all cells, and what they cost."""

from typing import Any

import pytest

from autolora_eval._errors import UsageError
from autolora_eval.config.plan import (
    REPORT_BYTES,
    Plan,
    describe_parameters,
    describe_sampling,
    make_plan,
)
from autolora_eval.guidance.method_registry import GUIDERS


def nfe(guider: str, num_steps: int, model_scale: float = 5.0, **given: float) -> int:
    """Passes for one image of a method with these parameters on a model of this CFG scale."""
    rule = GUIDERS.find(guider)
    parameters = rule.parameters.model_validate(given).with_model_defaults(model_scale)
    return rule.nfe(parameters, num_steps)


@pytest.fixture
def two_by_two(benchmark_data) -> dict[str, Any]:
    """Two models, two methods, three prompts, two seeds."""
    models = benchmark_data["models"]
    models["0"] = {**models["A"], "num_inference_steps": 7, "guidance_scale": 1.0}
    return benchmark_data


@pytest.fixture
def plan(plan_of, two_by_two) -> Plan:
    return plan_of(two_by_two)


def test_cells_are_models_by_methods_in_the_order_of_the_file(plan):
    found = [(cell.model.name, cell.method.name) for cell in plan.cells]
    assert found == [("A", "CFG"), ("A", "AutoLoRA"), ("0", "CFG"), ("0", "AutoLoRA")]
    assert [cell.id for cell in plan.cells] == ["A--CFG", "A--AutoLoRA", "0--CFG", "0--AutoLoRA"]


def test_a_cell_takes_from_its_model_what_its_method_does_not_state(plan):
    assert plan.cells[1].columns == {
        "guider": "autolora",
        "lora_scale": 0.8,
        "num_inference_steps": 10,
        "autolora_scale": 1.5,
        "guidance_scale": 5.0,
        "base_guidance_scale": 5.0,
        "start": 0.0,
        "stop": 1.0,
    }
    assert plan.cells[3].columns["guidance_scale"] == 1.0
    assert plan.cells[3].columns["base_guidance_scale"] == 1.0


def test_jobs_are_prompts_by_seeds_in_order(plan):
    """One list for all cells: every method sees the same prompts and seeds."""
    found = [(job.prompt_index, job.prompt, job.seed) for job in plan.jobs]
    assert found == [
        (0, "a cat", 3),
        (0, "a cat", 4),
        (1, "a dog", 3),
        (1, "a dog", 4),
        (2, "a blue house", 3),
        (2, "a blue house", 4),
    ]
    assert len({job.file for job in plan.jobs}) == 6


def test_totals(plan):
    assert plan.n_images == 4 * 6
    # CFG and AutoLoRA at w = 5 in 10 steps, then at w = 1 in 7: 2N + 4N + 1N' + 2N'.
    assert [cell.nfe for cell in plan.cells] == [20, 40, 7, 14]
    assert plan.nfe == (20 + 40 + 7 + 14) * 6
    assert plan.n_judge_calls == plan.n_images


def test_judge_calls_are_images_times_repeats(plan_of, two_by_two, plan):
    two_by_two["judge"]["repeats"] = 3
    thrice = plan_of(two_by_two)
    assert thrice.n_judge_calls == 3 * thrice.n_images
    del two_by_two["judge"]
    silent = plan_of(two_by_two)
    assert (silent.n_judge_calls, silent.n_images, silent.nfe) == (0, plan.n_images, plan.nfe)
    assert silent.disk_bytes < plan.disk_bytes


def test_disk_grows_with_images_and_their_area(plan_of, two_by_two, plan):
    two_by_two["seeds"]["count"] = 4
    more = plan_of(two_by_two)
    assert more.disk_bytes - REPORT_BYTES == 2 * (plan.disk_bytes - REPORT_BYTES)
    for model in two_by_two["models"].values():
        model.update(width=320, height=64)
    larger = plan_of(two_by_two)
    # The images go from 32 × 32 to 320 × 64 pixels; at least half a byte a pixel, at most three.
    extra = more.n_images * (320 * 64 - 32 * 32)
    assert extra / 2 <= larger.disk_bytes - more.disk_bytes <= 3 * extra


def test_a_file_stays_its_own_when_prompts_are_reordered_or_added(planned):
    def files(*prompts: str) -> dict[tuple[str, int], str]:
        return {(job.prompt, job.seed): job.file for job in planned(prompts=list(prompts)).jobs}

    first = files("a cat", "a dog", "γ/猫")
    assert files("γ/猫", "a dog", "a cat") == first
    more = files("new", "a dog", "A cat", "γ/猫", "a cat")
    assert {key: more[key] for key in first} == first
    assert len(set(more.values())) == 10


def test_limits_take_the_first_of_each(load, two_by_two):
    benchmark = load(two_by_two)
    whole = make_plan(benchmark)
    limited = make_plan(benchmark, limit_prompts=2, limit_seeds=1)
    assert [(job.prompt, job.seed) for job in limited.jobs] == [("a cat", 3), ("a dog", 3)]
    assert set(limited.jobs) <= set(whole.jobs), "a limited run is a part of the whole one"
    assert limited.cells == whole.cells
    assert limited.n_images == 4 * 2
    assert make_plan(benchmark, limit_prompts=99, limit_seeds=99).jobs == whole.jobs
    assert len(make_plan(benchmark, limit_seeds=1).jobs) == 3
    assert len(make_plan(benchmark, limit_prompts=1).jobs) == 2


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("what", ["prompts", "seeds"])
def test_a_limit_below_one_is_refused(load, two_by_two, what, limit):
    benchmark = load(two_by_two)
    with pytest.raises(UsageError, match=rf"limit of {what} must be at least 1 \(got {limit}\)"):
        make_plan(benchmark, **{f"limit_{what}": limit})


@pytest.mark.parametrize("num_steps", [1, 2, 7, 10, 28, 50])
@pytest.mark.parametrize(
    ("guider", "given", "passes"),
    [
        ("lora", {}, 1),
        ("cfg", {}, 2),
        ("cfg", {"guidance_scale": 1.0}, 1),
        ("cfg", {"guidance_scale": 0.0}, 1),
        ("autolora", {}, 4),
        ("autolora", {"guidance_scale": 1.0}, 2),  # equation (6)
        ("autolora", {"guidance_scale": 0.0}, 2),  # the two unconditional ones
        ("autolora", {"guidance_scale": 5.0, "base_guidance_scale": 1.0}, 3),
        ("autolora", {"guidance_scale": 1.0, "base_guidance_scale": 5.0}, 3),
        ("autolora", {"guidance_scale": 5.0, "base_guidance_scale": 0.0}, 3),
        ("autolora", {"autolora_scale": 1.0}, 2),  # LoRA+CFG: no base pass
        ("autolora", {"autolora_scale": 1.0, "guidance_scale": 1.0}, 1),
        ("autolora", {"autolora_scale": 1.0, "guidance_scale": 0.0}, 1),
        ("autolora", {"autolora_scale": 1.0, "base_guidance_scale": 1.0}, 2),
        ("autolora", {"autolora_scale": 0.0}, 2),  # base+CFG: no LoRA pass
        ("autolora", {"autolora_scale": 0.0, "guidance_scale": 1.0}, 1),
        ("autolora", {"autolora_scale": 0.0, "base_guidance_scale": 1.0}, 1),
        ("autolora", {"start": 0.4, "stop": 0.4}, 2),  # guided at no step
    ],
)
def test_passes_are_a_multiple_of_the_steps(guider, given, passes, num_steps):
    assert nfe(guider, num_steps, **given) == passes * num_steps


@pytest.mark.parametrize(
    ("num_steps", "guided"),
    [(10, 4), (7, 3), (5, 2), (3, 1), (1, 0), (50, 20), (51, 20)],  # ⌊0.6 N⌋ − ⌊0.2 N⌋
)
def test_outside_its_interval_autolora_costs_what_lora_with_cfg_does(num_steps, guided):
    interval = {"start": 0.2, "stop": 0.6}
    outside = num_steps - guided
    assert nfe("autolora", num_steps, **interval) == 4 * guided + 2 * outside
    assert nfe("autolora", num_steps, 1.0, **interval) == 2 * guided + outside
    assert nfe("autolora", num_steps, autolora_scale=0.0, **interval) == 2 * num_steps
    # With w1 = 1 the base branch is one pass, so that γ = 0 outside would cost less than γ = 1.
    mixed = nfe("autolora", num_steps, base_guidance_scale=1.0, **interval)
    assert mixed == 3 * guided + 2 * outside


def test_parameters_in_one_line_leave_out_what_has_no_value():
    assert describe_parameters({"guider": "cfg", "w": 5.0, "x": None}) == "guider=cfg, w=5.0"


def test_a_single_step_is_one_step(plan_of, two_by_two):
    two_by_two["models"]["0"]["num_inference_steps"] = 1
    described = [describe_sampling(m) for m in plan_of(two_by_two).benchmark.models.values()]
    assert described[1].endswith("pixels in 1 step")
