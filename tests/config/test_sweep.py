"""Sweeps: which cells they make, under which names, and what is refused before a model loads."""

import itertools
import sys
from collections.abc import Callable

import pytest
import yaml
from conftest import ROOT

from autolora_eval._errors import UsageError
from autolora_eval._text import format_swept_value
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Cell, Plan, make_plan
from autolora_eval.config.stage_inputs import cell_record
from autolora_eval.config.sweep_grid import MAX_CELLS

METHODS = {
    "LoRA": {"guider": "lora"},
    "AutoLoRA": {"guider": "autolora", "guidance_scale": 1.0},
    "CFG": {"guider": "cfg"},
    "AutoLoRA+CFG": {"guider": "autolora"},
}


@pytest.fixture
def planned(planned) -> Callable[..., Plan]:
    """A function that plans a benchmark with a sweep."""
    return lambda sweep, methods=METHODS: planned(sweep=sweep, methods=methods)


def ids(plan: Plan) -> list[str]:
    return [cell.id.removeprefix("A--") for cell in plan.cells]


def of(plan: Plan, method: str) -> list[Cell]:
    return [cell for cell in plan.cells if cell.method.name == method]


def test_the_lora_scale_is_every_methods(planned):
    plan = planned({"lora_scale": [0.2, 1]})
    assert ids(plan) == [
        f"{method}--lora_scale={scale}" for scale in ("0.2", "1") for method in METHODS
    ]
    for cell in plan.cells:
        assert cell.columns["lora_scale"] == cell.model.spec.lora.scale
    assert [cell.columns["lora_scale"] for cell in of(plan, "LoRA")] == [0.2, 1.0]
    # All but the scale is the model's own, of which there is one.
    assert list(plan.benchmark.models) == ["A"]
    assert plan.benchmark.models["A"].spec.lora.scale == 0.8


def test_a_method_without_a_swept_parameter_is_one_cell(planned):
    plan = planned({"guidance_scale": [3.5, 4.0]})
    assert ids(plan) == [
        "LoRA",
        "AutoLoRA",  # it states that it has no CFG
        "CFG--guidance_scale=3.5",
        "AutoLoRA+CFG--guidance_scale=3.5",
        "CFG--guidance_scale=4",
        "AutoLoRA+CFG--guidance_scale=4",
    ]
    assert [cell.columns["guidance_scale"] for cell in of(plan, "CFG")] == [3.5, 4.0]
    assert [cell.columns["guidance_scale"] for cell in of(plan, "AutoLoRA")] == [1.0]
    for cell in of(plan, "AutoLoRA+CFG"):  # w1 follows w2, as it does where the model states it
        assert cell.columns["base_guidance_scale"] == cell.columns["guidance_scale"]


def test_the_models_scale_may_be_swept_through_one(planned):
    plan = planned({"guidance_scale": [1.0, 5.0]}, {"CFG": METHODS["CFG"]})
    assert [cell.nfe for cell in plan.cells] == [10, 20]


def test_an_interval_sets_both_ends(planned):
    intervals = [[0.0, 1.0], [0.25, 0.75], [0, 0.5]]
    plan = planned(
        {"interval": intervals}, {**METHODS, "Late": {"guider": "autolora", "start": 0.1}}
    )
    found = of(plan, "AutoLoRA+CFG")
    assert [[cell.columns["start"], cell.columns["stop"]] for cell in found] == intervals
    names = ["interval=0-1", "interval=0.25-0.75", "interval=0-0.5"]
    assert [cell.id.split("--")[-1] for cell in found] == names
    assert [cell.nfe for cell in found] == [40, 2 * 10 + 2 * 5, 30]
    assert [len(of(plan, name)) for name in ("LoRA", "CFG", "Late")] == [1, 1, 1]


def test_parameters_are_crossed_in_the_order_of_the_file(planned):
    sweep = {"lora_scale": [0.5, 1.0], "autolora_scale": [1.5, 2.0], "base_guidance_scale": [0]}
    plan = planned(sweep)
    found = of(plan, "AutoLoRA+CFG")
    keys = ("lora_scale", "autolora_scale", "base_guidance_scale")
    assert [tuple(cell.columns[key] for key in keys) for cell in found] == list(
        itertools.product(*sweep.values())
    )
    name = "A--AutoLoRA+CFG--lora_scale=0.5--autolora_scale=1.5--base_guidance_scale=0"
    assert found[0].id == name
    assert [cell.point for cell in of(plan, "CFG")] == [{"lora_scale": 0.5}, {"lora_scale": 1.0}]
    assert len(plan.cells) == 2 * 2 + 2 * 4
    assert plan.n_images == len(plan.cells) * len(plan.jobs)
    assert plan.nfe == sum(cell.nfe for cell in plan.cells) * len(plan.jobs)


def test_another_value_leaves_the_cells_that_were_there(planned):
    few = planned({"lora_scale": [0.4], "guidance_scale": [3.5]})
    more = planned({"lora_scale": [1.3, 0.40], "guidance_scale": [7, 3.5, 5]})
    before = {cell.id: cell_record(cell, few) for cell in few.cells}
    after = {cell.id: cell_record(cell, more) for cell in more.cells}
    assert len(after) == len(more.cells) == 2 * (1 + 1 + 3 + 3)
    assert before.items() <= after.items()
    assert "A--CFG--lora_scale=0.4--guidance_scale=3.5" in before


def test_a_value_is_one_number_however_it_is_written(planned):
    whole, point = (planned({"autolora_scale": [n], "lora_scale": [n]}) for n in (2, 2.0))
    assert [c.id for c in whole.cells] == [c.id for c in point.cells]
    for a, b in zip(whole.cells, point.cells, strict=True):
        assert cell_record(a, whole).plan_key == cell_record(b, point).plan_key
    texts = [format_swept_value(value) for value in (1, 1.0, 0.1, 1e-7, (0.25, 1))]
    assert texts == ["1", "1", "0.1", "1e-07", "0.25–1"]


def test_every_model_is_swept(plan_of, benchmark_data):
    models = benchmark_data["models"]
    models["B"] = {**models["A"], "guidance_scale": 7.0}
    plan = plan_of(benchmark_data | {"sweep": {"lora_scale": [0.5, 1.0]}})
    assert [cell.id for cell in plan.cells] == [
        f"{model}--{method}--lora_scale={scale}"
        for model in "AB"
        for scale in ("0.5", "1")
        for method in ("CFG", "AutoLoRA")
    ]
    assert {cell.columns["guidance_scale"] for cell in plan.cells} == {5.0, 7.0}


# The keys that finished runs are found by, as they were before there were sweeps, when the quick
# start had neither batch_size nor channels_last.
BEFORE = {
    ("quickstart", "SDXL-miniature--LoRA"): ("59ab9242c01154ae", "1340e92c30c53f21"),
    ("quickstart", "SDXL-miniature--AutoLoRA"): ("29733c93bef3b2bb", "ea7428564b95de79"),
    ("quickstart", "SDXL-miniature--LoRA+CFG"): ("95dea135fcb6b237", "6e5bd600d930afcc"),
    ("quickstart", "SDXL-miniature--AutoLoRA+CFG"): ("8144d7a4341fa34e", "f986478b2586a59f"),
    ("pixel_art", "SDXL--CFG"): ("b886d2498233da01", "2aad3e2885ba253a"),
    ("pixel_art", "SDXL--AutoLoRA"): ("f7f01d3b1bef266e", "72683ed231d3df81"),
    ("pixel_art", "SD3--CFG"): ("544b27b26b3baa30", "01e67c0f48b276d4"),
    ("pixel_art", "SD3--AutoLoRA"): ("aa288b318cffb664", "2ca10922aac0719f"),
}


def test_without_a_sweep_nothing_is_made_again(plan_of, benchmark_data, image_key):
    what = {
        "pipeline": {"kind": "folder", "name": "p", "sha256": "1"},
        "loras": [{"kind": "file", "name": "l", "sha256": "2", "part_of_base": False}],
    }
    found = {}
    quickstart = yaml.safe_load((ROOT / "benchmarks" / "quickstart.yaml").read_text())
    del quickstart["batch_size"], quickstart["models"]["SDXL miniature"]["channels_last"]
    plans = {"quickstart": plan_of(quickstart), "pixel_art": make_plan(load_benchmark("pixel_art"))}
    for name, plan in plans.items():
        for cell in plan.cells:
            key = image_key(cell, what, "torch.float32")
            found[name, cell.id] = (cell_record(cell, plan).plan_key, key)
    assert found == BEFORE
    for data in (benchmark_data, benchmark_data | {"sweep": {}}):
        cells = [(cell.id, cell.point) for cell in plan_of(data).cells]
        assert cells == [("A--CFG", {}), ("A--AutoLoRA", {})]


@pytest.fixture
def refused(problem, benchmark_data) -> Callable[..., str]:
    """A function that returns what is wrong with a sweep: its place in the file, and the rest."""

    def refuse(sweep: object, methods: object = None) -> str:
        data = benchmark_data | {"sweep": sweep, "methods": methods or METHODS, "baseline": None}
        return problem(data).split(": ", 1)[1]

    return refuse


UNKNOWN = "no method has this parameter."


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"lora_scales": [1.0]}, f".lora_scales: {UNKNOWN} Did you mean 'lora_scale'?"),
        ({"autolora_scal": [1.0]}, f".autolora_scal: {UNKNOWN} Did you mean 'autolora_scale'?"),
        (
            {"w": [1.0]},
            f".w: {UNKNOWN} Known: lora_scale, autolora_scale, guidance_scale, "
            "base_guidance_scale, start, stop, interval.",
        ),
        (
            {"guidance_scale": []},
            ".guidance_scale: lists no value. Expected values such as "
            "'guidance_scale: [0.5, 1.0]'.",
        ),
        ({"lora_scale": [0.5, 1, 0.50]}, ".lora_scale.2: 0.5 is already value 1. Remove one."),
        ({"interval": [[0, 1], [0.0, 1.0]]}, ".interval.1: 0–1 is already value 1. Remove one."),
        ({"lora_scale": [0.5, "1"]}, ".lora_scale.1: expected a number (got '1')."),
        (
            {"lora_scale": [10**400]},
            "not valid YAML: line 32: a number of 401 characters. Put a text into quotation marks.",
        ),
        ({"lora_scale": [True]}, ".lora_scale.0: expected a number (got True)."),
        ({"autolora_scale": [float("nan")]}, ".autolora_scale.0: expected a number (got nan)."),
        ({"interval": [0.5]}, ".interval.0: expected two numbers such as [0.25, 0.75] (got 0.5)."),
        ({"lora_scale": [0.0]}, ".lora_scale.0: Input should be greater than 0 (got 0.0)."),
        (
            {"guidance_scale": [5, -1]},
            ".guidance_scale.1: Input should be greater than or equal to 0 (got -1).",
        ),
        (
            {"interval": [[0.0, 1.5]]},
            ".interval.0: Input should be less than or equal to 1 (got 1.5).",
        ),
        ({"interval": [[0.6, 0.2]]}, ".interval.0: stop (0.2) must not be less than start (0.6)."),
        (
            {"interval": [[0.0, 1.0]], "stop": [0.5]},
            ".stop: 'interval' already sets it. Remove one of the two.",
        ),
        ({"lora_scale": 0.5}, ".lora_scale: Input should be a valid list (got 0.5)."),
        (None, ": expected 'key: value' entries (got nothing)."),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(refused, sweep, message):
    assert refused(sweep).removeprefix("sweep") == message


@pytest.mark.parametrize(
    ("sweep", "methods", "message"),
    [
        (
            {"start": [0.0, 0.5], "stop": [0.2, 1.0]},
            ["AutoLoRA"],
            "sweep: stop (0.2) must not be less than start (0.5). "
            "Method 'AutoLoRA' at start 0.5, stop 0.2.",
        ),
        (
            {"guidance_scale": [3.0]},
            ["LoRA", "AutoLoRA"],
            "sweep.guidance_scale: has no effect: every method with this parameter sets it "
            "(AutoLoRA). Remove it there or here.",
        ),
    ],
)
def test_values_are_checked_against_the_methods(refused, sweep, methods, message):
    assert refused(sweep, {name: METHODS[name] for name in methods}) == message


def test_too_many_cells_are_refused_before_they_are_made(refused):
    values = [n / 1000 for n in range(1, 1001)]
    line = refused({"lora_scale": values, "autolora_scale": values, "guidance_scale": values})
    assert f"at most {MAX_CELLS:,} cells are allowed" in line
    assert line.startswith("sweep: 1,000,000,000 combinations with 1 × 4 models and methods")


def test_all_problems_of_a_sweep_are_reported_at_once(write_benchmark, benchmark_data):
    sweep = {"lora_scale": [0, 0.5, 0.5], "gamma": [1], "interval": [[1, 0]]}
    path = write_benchmark(benchmark_data | {"sweep": sweep, "methods": METHODS})
    with pytest.raises(UsageError) as caught:
        load_benchmark(path)
    lines = str(caught.value).splitlines()
    keys = ["sweep.lora_scale.0", "sweep.lora_scale.2", "sweep.gamma", "sweep.interval.0"]
    assert [line.split(": ")[1] for line in lines] == keys
    text = path.read_text().splitlines()
    assert all("- " in text[int(line.split(":")[1]) - 1] or "gamma" in line for line in lines)


def test_two_methods_that_a_sweep_makes_one_are_refused(planned):
    given = METHODS | {"Strong": {"guider": "autolora", "autolora_scale": 2.0}}
    one = r"'A × AutoLoRA\+CFG at autolora_scale 2' and 'A × Strong'"
    with pytest.raises(UsageError, match=one):
        planned({"autolora_scale": [1.5, 2.0]}, given)


NEEDS = """
from diffusers.guiders import ClassifierFreeGuidance

class Needs(ClassifierFreeGuidance):
    def __init__(self, strength: float, guidance_scale: float = 7.5):
        super().__init__(guidance_scale * strength)
"""


@pytest.mark.model
def test_a_parameter_without_a_default_can_be_swept(
    planned, problem, benchmark_data, workplace, monkeypatch
):
    monkeypatch.setattr("sys.path", list(sys.path))
    (workplace / "needs_for_test.py").write_text(NEEDS)
    methods = {"Needs": {"guider": "needs_for_test.Needs"}}
    plan = planned({"strength": [1, 2.5]}, {**METHODS, **methods})
    assert [cell.columns["strength"] for cell in of(plan, "Needs")] == [1.0, 2.5]
    data = benchmark_data | {"methods": {**METHODS, **methods}}
    assert "methods.Needs.strength: missing" in problem(data)
    shown = problem(data | {"sweep": {"strength": ["much"]}})
    assert "sweep.strength.0: expected a valid number" in shown
