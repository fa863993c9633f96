"""A benchmark file that is wrong: each problem is one line with its place, before torch loads."""

import copy
import functools
import math
import operator
from pathlib import Path
from typing import Any

import pytest
from conftest import changed

from autolora_eval._errors import UsageError
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan


def without(data: dict[str, Any], keys: str) -> dict[str, Any]:
    data = copy.deepcopy(data)
    *parents, last = keys.split(".")
    del functools.reduce(operator.getitem, parents, data)[last]
    return data


def problems(path: Path) -> list[str]:
    """The lines of the error that loading the benchmark raises."""
    with pytest.raises(UsageError) as caught:
        load_benchmark(path)
    return str(caught.value).split("\n")


def test_the_benchmark_that_the_others_break_is_right(load, benchmark_data):
    loaded = load(benchmark_data)
    assert loaded.prompts == ("a cat", "a dog", "a blue house")
    assert loaded.models["A"].size == (32, 32)  # 8 latent pixels × 2² (three VAE blocks)
    assert list(loaded.methods) == ["CFG", "AutoLoRA"]


@pytest.mark.parametrize(
    ("parent", "misspelt", "right"),
    [
        ("", "promts", "prompts"),
        ("seeds.", "cuont", "count"),
        ("models.A.", "num_inference_step", "num_inference_steps"),
        ("models.A.lora.", "weigth_name", "weight_name"),
        ("features.", "modle", "model"),
        ("judge.", "temprature", "temperature"),
        ("methods.AutoLoRA.", "autolora_scael", "autolora_scale"),
        ("methods.CFG.", "guidance_scal", "guidance_scale"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest(
    problem, line_of, benchmark_data, parent, misspelt, right
):
    line = problem(changed(benchmark_data, parent + misspelt, 1))
    place = f":{line_of(misspelt)}: {parent}{misspelt}: "
    assert line.endswith(f"{place}unknown key. Did you mean '{right}'?")


WRONG: dict[str, list[object]] = {
    "seeds.count": ["ten", 2.5, True, None, 0],
    "seeds.start": [-1],
    "seeds": [5, [0, 1], None],
    "models": [None, ["A"]],
    "models.A": [None, "sdxl"],
    "models.A.pipeline": [{"path": "sdxl"}, ""],
    "models.A.num_inference_steps": [-5, 0, "fifty"],
    "models.A.guidance_scale": [math.nan, math.inf, -1.0, "5,0"],
    "models.A.width": [1023],
    "models.A.lora": ["lora"],
    "models.A.lora.scale": [0, -0.5, math.nan],
    "methods": [None],
    "methods.CFG": [None, "cfg"],
    "methods.CFG.guidance_scale": ["high", math.nan],
    "methods.AutoLoRA.autolora_scale": [-0.1, math.inf],
    "methods.AutoLoRA.start": [math.nan],
    "methods.AutoLoRA.stop": [1.01],
    "features": ["dino"],
    "features.batch_size": [0],
    "features.dtype": ["int8"],
    "judge.temperature": [-1],
    "judge.backend": ["vllm"],
    "judge.timeout": [math.inf],
    "prompts": [3, None],
    "name": ["../up", 7],
    "device": ["gpu"],
    "batch_size": [0],
}


@pytest.mark.parametrize(
    ("keys", "value"), [(keys, value) for keys, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_one_line_with_key_and_value(problem, benchmark_data, keys, value):
    line = problem(changed(benchmark_data, keys, value))
    shown = {list: "a list", dict: "a mapping", type(None): "nothing"}.get(type(value), repr(value))
    assert f": {keys}: " in line
    assert line.endswith(f" (got {shown}).")


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        ("seeds", 5, "entries, with the keys start, count (got 5)."),
        ("models.A.lora", "lora", "entries, with the keys path, "),
        ("models", None, "entries (got nothing)."),
    ],
)
def test_the_keys_of_a_mapping_are_named_where_it_is_not_one(
    problem, benchmark_data, keys, value, says
):
    line = problem(changed(benchmark_data, keys, value))
    assert f"{keys}: expected 'key: value' {says}" in line


TURNED = {"guider": "autolora", "start": 0.6, "stop": 0.2}


@pytest.mark.parametrize(
    ("keys", "value", "end"),
    [
        ("seeds.zzz", 1, ": unknown key. Known: start, count."),
        ("methods.AutoLoRA.guider", "autolroa", "guider 'autolroa'. Did you mean 'autolora'?"),
        ("methods.AutoLoRA", TURNED, ": stop (0.2) must not be less than start (0.6)."),
        ("baseline", "AutoLora", ": unknown method 'AutoLora'. Did you mean 'AutoLoRA'?"),
    ],
)
def test_an_error_ends_with_what_was_expected(problem, benchmark_data, keys, value, end):
    line = problem(changed(benchmark_data, keys, value))
    assert f": {keys}: " in line
    assert line.endswith(end)


@pytest.mark.parametrize(("key", "empty"), [("models", {}), ("methods", {}), ("prompts", [])])
def test_what_has_no_entry_is_refused(problem, line_of, benchmark_data, key, empty):
    line = problem(changed(benchmark_data, key, empty))
    assert f".yaml:{line_of(key)}: {key}: " in line


@pytest.mark.parametrize(
    "key", ["name", "prompts", "seeds", "models", "methods", "models.A.pipeline"]
)
def test_a_missing_key_is_named(problem, benchmark_data, key):
    data = without(benchmark_data, key)
    if key == "methods":
        del data["baseline"]
    assert problem(data).endswith(f": {key}: missing; this key is needed.")


@pytest.mark.parametrize("name", ["A ", " A", "", "a\nb", "x" * 81])
@pytest.mark.parametrize("kind", ["models", "methods"])
def test_a_name_that_could_be_taken_for_another_is_refused(problem, benchmark_data, kind, name):
    entry = next(iter(benchmark_data[kind].values()))
    line = problem(changed(benchmark_data, f"{kind}.{name}", entry))
    assert f": {kind}." in line
    assert "(got " in line


@pytest.mark.parametrize("name", ["str", "list[x]", "[key]", "constrained-str", "on"])
def test_a_name_may_be_any_word(load, problem, benchmark_data, name):
    data = changed(benchmark_data, f"methods.{name}", {"guider": "lora"})
    assert list(load(data).methods)[-1] == name
    unknown = changed(data, f"methods.{name}", {"guider": "lora", "scale": 1})
    assert f": methods.{name}.scale: unknown key." in problem(unknown)


def test_all_problems_are_reported_at_once_in_one_line_each(write_benchmark, benchmark_data):
    data = changed(benchmark_data, "seeds.count", 0)
    data = changed(data, "models.A.steps", 5)
    data = changed(data, "device", "gpu")
    path = write_benchmark(without(data, "name"))
    keys = [line.split(": ")[1] for line in problems(path)]
    assert sorted(keys) == ["device", "models.A.steps", "name", "seeds.count"]

    data = changed(benchmark_data, "prompts", "none.txt")
    data = changed(data, "models.A.pipeline", "./none")
    data = changed(data, "models.A.lora.path", "./none")
    data = changed(data, "methods.CFG", {"guider": "cgf"})
    data = changed(data, "methods.AutoLoRA", {"guider": "autolora", "a": 1, "start": -1})
    data = changed(data, "features.model", "./none")
    data = changed(data, "judge.rubric", "none.yaml")
    data = changed(data, "published", "none.csv")
    path = write_benchmark(changed(data, "baseline", "Best"))
    lines = problems(path)
    assert all(line.startswith(f"{path}:") for line in lines)
    assert [line.split(": ")[1] for line in lines] == [
        "prompts",
        "models.A.pipeline",
        "models.A.lora",
        "methods.CFG.guider",
        "methods.AutoLoRA.start",
        "methods.AutoLoRA.a",
        "features.model",
        "judge.rubric",
        "published",
        "baseline",
    ]


@pytest.mark.parametrize("method", [{}, {"guider": None}, {"guidr": "cfg"}])
def test_a_method_without_a_guider_is_refused(problem, benchmark_data, method):
    line = problem(changed(benchmark_data, "methods.CFG", method))
    assert ": methods.CFG.guider: missing; " in line
    assert ("Is 'guidr' a misspelling of it?" in line) == ("guidr" in method)


@pytest.mark.parametrize(
    ("kind", "name", "entry"),
    [
        ("methods", "Again", {"guider": "cfg"}),
        ("methods", "Explicit", {"guider": "cfg", "guidance_scale": 5}),
        ("methods", "Spelt out", {"guider": "autolora", "autolora_scale": 1.5, "start": 0}),
        ("models", "Copy", None),
        ("models", "Elsewhere", {"pipeline": "./sdxl", "lora": {"path": "lora/style.safetensors"}}),
    ],
)
def test_one_computation_under_two_names_is_refused(load, benchmark_data, kind, name, entry):
    if kind == "models":
        model = copy.deepcopy(benchmark_data["models"]["A"])
        for key, value in (entry or {}).items():
            model[key] = {**model[key], **value} if isinstance(value, dict) else value
        entry = model
    loaded = load(changed(benchmark_data, f"{kind}.{name}", entry))
    with pytest.raises(UsageError, match=f"'.*{name}.*' and '.*' are the same computation"):
        make_plan(loaded)


@pytest.mark.parametrize("name", ["cfg", "CFG:", "CFG*", "-CFG", "CFG."])
def test_two_cells_of_one_folder_are_refused(load, benchmark_data, name):
    benchmark_data["methods"][name] = {"guider": "lora"}
    loaded = load(benchmark_data)
    with pytest.raises(UsageError, match="'A × CFG' would share a folder"):
        make_plan(loaded)
