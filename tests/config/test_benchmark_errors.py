"""A benchmark file that is wrong: each problem is one line with its place, before torch loads."""

import copy
import functools
import math
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import changed

from autolora_eval._errors import UsageError
from autolora_eval.config.inputs import LoadedBenchmark
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan


def without(data: dict[str, Any], keys: str) -> dict[str, Any]:
    data = copy.deepcopy(data)
    *parents, last = keys.split(".")
    del functools.reduce(operator.getitem, parents, data)[last]
    return data


def problems(path: Path | str) -> list[str]:
    """The lines of the error that loading the benchmark raises."""
    with pytest.raises(UsageError) as caught:
        load_benchmark(path)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def line_of(path: Path, key: str) -> int:
    """The number of the one line of the file that has `key` as its key."""
    lines = path.read_text(encoding="utf-8").split("\n")
    (found,) = [n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:")]
    return found


def test_the_benchmark_that_the_others_break_is_right(write_benchmark, benchmark_data):
    loaded = load_benchmark(write_benchmark(benchmark_data))
    assert isinstance(loaded, LoadedBenchmark)
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
    write_benchmark, benchmark_data, parent, misspelt, right
):
    path = write_benchmark(changed(benchmark_data, parent + misspelt, 1))
    line = line_of(path, misspelt)
    assert problems(path) == [
        f"{path}:{line}: {parent}{misspelt}: unknown key. Did you mean '{right}'?"
    ]


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        ("seeds", 5, "entries, with the keys start, count (got 5)."),
        ("models.A.lora", "lora", "entries, with the keys path, "),
        ("models", None, "entries (got nothing)."),
    ],
)
def test_the_keys_of_a_mapping_are_named_where_it_is_not_one(
    write_benchmark, benchmark_data, keys, value, says
):
    path = write_benchmark(changed(benchmark_data, keys, value))
    assert f"{keys}: expected 'key: value' {says}" in problems(path)[0]


@pytest.mark.parametrize(
    ("keys", "value", "shown"),
    [
        ("seeds.count", "ten", "'ten'"),
        ("seeds.count", 2.5, "2.5"),
        ("seeds.count", True, "True"),
        ("seeds.count", None, "nothing"),
        ("seeds.start", -1, "-1"),
        ("seeds.count", 0, "0"),
        ("seeds", 5, "5"),
        ("seeds", [0, 1], "a list"),
        ("seeds", None, "nothing"),
        ("models", None, "nothing"),
        ("models", ["A"], "a list"),
        ("models.A", None, "nothing"),
        ("models.A", "sdxl", "'sdxl'"),
        ("models.A.pipeline", {"path": "sdxl"}, "a mapping"),
        ("models.A.pipeline", "", "''"),
        ("models.A.num_inference_steps", -5, "-5"),
        ("models.A.num_inference_steps", 0, "0"),
        ("models.A.num_inference_steps", "fifty", "'fifty'"),
        ("models.A.guidance_scale", math.nan, "nan"),
        ("models.A.guidance_scale", math.inf, "inf"),
        ("models.A.guidance_scale", -1.0, "-1.0"),
        ("models.A.guidance_scale", "5,0", "'5,0'"),
        ("models.A.width", 1023, "1023"),
        ("models.A.lora", "lora", "'lora'"),
        ("models.A.lora.scale", 0, "0"),
        ("models.A.lora.scale", -0.5, "-0.5"),
        ("models.A.lora.scale", math.nan, "nan"),
        ("methods", None, "nothing"),
        ("methods.CFG", None, "nothing"),
        ("methods.CFG", "cfg", "'cfg'"),
        ("methods.CFG.guidance_scale", "high", "'high'"),
        ("methods.CFG.guidance_scale", math.nan, "nan"),
        ("methods.AutoLoRA.autolora_scale", -0.1, "-0.1"),
        ("methods.AutoLoRA.autolora_scale", math.inf, "inf"),
        ("methods.AutoLoRA.start", math.nan, "nan"),
        ("methods.AutoLoRA.stop", 1.01, "1.01"),
        ("features", "dino", "'dino'"),
        ("features.batch_size", 0, "0"),
        ("features.dtype", "int8", "'int8'"),
        ("judge.temperature", -1, "-1"),
        ("judge.backend", "vllm", "'vllm'"),
        ("judge.timeout", math.inf, "inf"),
        ("prompts", 3, "3"),
        ("prompts", None, "nothing"),
        ("name", "../up", "'../up'"),
        ("name", 7, "7"),
        ("device", "gpu", "'gpu'"),
        ("batch_size", 0, "0"),
    ],
)
def test_a_wrong_value_is_one_line_with_key_and_value(
    write_benchmark, benchmark_data, keys, value, shown
):
    path = write_benchmark(changed(benchmark_data, keys, value))
    (line,) = problems(path)
    assert line.startswith(f"{path}:")
    assert f": {keys}: " in line
    assert line.endswith(f" (got {shown}).")


@pytest.mark.parametrize(
    ("keys", "value", "end"),
    [
        ("seeds.zzz", 1, "seeds.zzz: unknown key. Known: start, count."),
        (
            "methods.AutoLoRA.guider",
            "autolroa",
            "methods.AutoLoRA.guider: unknown guider 'autolroa'. Did you mean 'autolora'?",
        ),
        (
            "methods.AutoLoRA",
            {"guider": "autolora", "start": 0.6, "stop": 0.2},
            "methods.AutoLoRA: stop (0.2) must not be less than start (0.6).",
        ),
        (
            "baseline",
            "AutoLora",
            "baseline: there is no method 'AutoLora'. Did you mean 'AutoLoRA'?",
        ),
    ],
)
def test_what_is_wrong_ends_with_what_was_expected(
    write_benchmark, benchmark_data, keys, value, end
):
    (line,) = problems(write_benchmark(changed(benchmark_data, keys, value)))
    assert line.endswith(f": {end}")


@pytest.mark.parametrize("key", ["models", "methods", "prompts"])
def test_what_has_no_entry_is_refused(write_benchmark, benchmark_data, key):
    empty: object = [] if key == "prompts" else {}
    path = write_benchmark(changed(benchmark_data, key, empty))
    (line,) = problems(path)
    assert line.startswith(f"{path}:{line_of(path, key)}: {key}: ")


@pytest.mark.parametrize(
    "key", ["name", "prompts", "seeds", "models", "methods", "models.A.pipeline"]
)
def test_a_missing_key_is_named(write_benchmark, benchmark_data, key):
    data = without(benchmark_data, key)
    if key == "methods":
        del data["baseline"]
    (line,) = problems(write_benchmark(data))
    assert line.endswith(f": {key}: missing; this key is needed.")


@pytest.mark.parametrize("name", ["A ", " A", "", "a\nb", "x" * 81])
@pytest.mark.parametrize("kind", ["models", "methods"])
def test_a_name_that_could_be_taken_for_another_is_refused(
    write_benchmark, benchmark_data, kind, name
):
    entry = next(iter(benchmark_data[kind].values()))
    path = write_benchmark(changed(benchmark_data, f"{kind}.{name}", entry))
    (line,) = problems(path)
    assert f": {kind}." in line
    assert "(got " in line


@pytest.mark.parametrize("name", ["str", "list[x]", "[key]", "constrained-str", "on"])
def test_a_name_may_be_any_word(write_benchmark, benchmark_data, name):
    data = changed(benchmark_data, f"methods.{name}", {"guider": "lora"})
    assert list(load_benchmark(write_benchmark(data)).methods)[-1] == name
    path = write_benchmark(changed(data, f"methods.{name}", {"guider": "lora", "scale": 1}))
    (line,) = problems(path)
    assert f": methods.{name}.scale: unknown key." in line


def test_all_problems_are_told_at_once_in_one_line_each(write_benchmark, benchmark_data):
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


def test_no_torch_is_loaded(write_benchmark, benchmark_data):
    benchmark_data["models"]["A"]["scheduler"] = {"class": "UniPCMultistepScheduler"}
    path = write_benchmark(benchmark_data)
    code = (
        "import sys\n"
        "from autolora_eval import load_benchmark, make_plan\n"
        f"print(make_plan(load_benchmark({str(path)!r})).n_images)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'pandas', 'matplotlib'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["12", "[]"]  # 2 cells × 3 prompts × 2 seeds


# Methods and cells


@pytest.mark.parametrize("method", [{}, {"guider": None}, {"guidr": "cfg"}])
def test_a_method_without_a_guider_is_refused(write_benchmark, benchmark_data, method):
    (line,) = problems(write_benchmark(changed(benchmark_data, "methods.CFG", method)))
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
def test_one_computation_under_two_names_is_refused(
    write_benchmark, benchmark_data, kind, name, entry
):
    if kind == "models":
        model = copy.deepcopy(benchmark_data["models"]["A"])
        for key, value in (entry or {}).items():
            model[key] = {**model[key], **value} if isinstance(value, dict) else value
        entry = model
    loaded = load_benchmark(write_benchmark(changed(benchmark_data, f"{kind}.{name}", entry)))
    with pytest.raises(UsageError, match=f"'.*{name}.*' and '.*' are the same computation"):
        make_plan(loaded)


@pytest.mark.parametrize("name", ["cfg", "CFG:", "CFG*", "-CFG", "CFG."])
def test_two_cells_of_one_folder_are_refused(write_benchmark, benchmark_data, name):
    data = copy.deepcopy(benchmark_data)
    data["methods"][name] = {"guider": "lora"}
    loaded = load_benchmark(write_benchmark(data))
    with pytest.raises(UsageError, match="'A × CFG' would share a folder"):
        make_plan(loaded)
