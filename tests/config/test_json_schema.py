"""The schema that editors read says what the loader accepts."""

import json
import shlex

import jsonschema
import pytest
import yaml
from conftest import ROOT, changed

from autolora_eval._errors import UsageError
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.schema import Benchmark, Lora, Model, Seeds
from autolora_eval.config.starter import NAME, json_schema, write_starter
from autolora_eval.guidance.method_registry import GUIDERS
from autolora_eval.scoring.extractor import EXTRACTORS
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.sources.lookup import shipped_benchmarks, shipped_root

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_shipped_schema_is_that_of_the_loader():
    """Made anew by `json.dumps(json_schema(), indent=1, ensure_ascii=False)` and a line break."""
    jsonschema.Draft202012Validator.check_schema(json_schema())
    text = (shipped_root() / "benchmarks" / NAME).read_text(encoding="utf-8")
    assert text == json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", shipped_benchmarks())
def test_every_shipped_benchmark_is_valid_and_names_the_schema(name):
    text = shipped_benchmarks()[name].read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={NAME}"
    data = yaml.safe_load(text)
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("seed", 3),
        ("seeds.count", 0),
        ("models.A.guidance_scale", -1),
        ("models.A.lora.strength", 1.0),
        ("methods.AutoLoRA.autolora_scal", 2),
        ("methods.AutoLoRA.autolora_scale", "much"),
        ("methods.AutoLoRA", {}),
        ("features.dtype", "float8"),
    ],
)
def test_what_the_loader_refuses_the_schema_refuses(load, benchmark_data, keys, value):
    assert VALIDATOR.is_valid(benchmark_data)
    load(benchmark_data)
    wrong = changed(benchmark_data, keys, value)
    assert not VALIDATOR.is_valid(wrong)
    with pytest.raises(UsageError):
        load(wrong)


PARAMETERS = [method.parameters for method in GUIDERS.built_in().values()]
PARAMETERS += [kind.parameters for kind in EXTRACTORS.built_in().values()]


@pytest.mark.parametrize("model", [Benchmark, JudgeConfig, Model, Lora, Seeds, *PARAMETERS])
def test_every_key_has_a_description(model):
    assert all(field.description for field in model.model_fields.values())


MINIATURE = ("miniature:sdxl", "miniature:pixel_art_lora")


@pytest.mark.parametrize("judge", [None, "miniature:judge", "some/model"])
def test_a_first_benchmark_loads_and_names_its_schema(tmp_path, judge):
    prompts = ["a red heart", 'she said "no": #1 {x} \\ 雪']
    file = tmp_path / "mine.yaml"
    schema = write_starter(file, *MINIATURE, prompts, judge)
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={schema.name}"
    assert yaml.safe_load(schema.read_text(encoding="utf-8")) == json_schema()
    loaded = load_benchmark(file)
    assert loaded.prompts == tuple(prompts)
    assert list(loaded.methods) == ["LoRA", "LoRA+CFG", "AutoLoRA", "AutoLoRA+CFG"]
    assert (loaded.rubric is None) == (judge is None)
    assert VALIDATOR.is_valid(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("pipeline", "steps", "scale"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", 50, 5.0),
        ("stabilityai/stable-diffusion-3-medium-diffusers", 28, 7.0),
    ],
)
def test_a_first_benchmark_has_the_papers_defaults(tmp_path, pipeline, steps, scale):
    write_starter(tmp_path / "mine.yaml", pipeline, "nerijs/pixel-art-xl", ["a cat"], None)
    model = load_benchmark(tmp_path / "mine.yaml").spec.models["Mine"]
    assert (model.num_inference_steps, model.guidance_scale) == (steps, scale)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.yaml", "already exists"), (NAME, "not a schema of autolora-eval")],
)
def test_existing_files_are_not_overwritten(tmp_path, name, message):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        write_starter(tmp_path / "a.yaml", *MINIATURE, ["a cat"], None)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["{}"]


def test_two_benchmarks_in_one_folder_share_a_schema(tmp_path):
    schemas = {
        write_starter(tmp_path / name, *MINIATURE, ["a cat"], None) for name in ("a.yaml", "b.yaml")
    }
    assert schemas == {tmp_path / NAME}


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("true.yaml", "true"),
        ("2024.yaml", "2024"),
        ("1e5.yml", "1e5"),
        ("LoRA+CFG.yaml", "LoRA-CFG"),
        ("_my $(x) \n- 猫.yaml", "my-x"),
        (f"{'a' * 200}.yaml", "a" * 80),
    ],
)
def test_a_first_benchmark_may_lie_in_a_file_of_any_name(tmp_path, name, called):
    write_starter(tmp_path / name, *MINIATURE, ['a "cat" \\ #1: {no}'], None)
    loaded = load_benchmark(tmp_path / name)
    assert (loaded.spec.name, loaded.prompts) == (called, ('a "cat" \\ #1: {no}',))
    shown = f"autolora-eval run {shlex.quote(' '.join(name.split()))}"
    assert shown in (tmp_path / name).read_text(encoding="utf-8")


def test_the_benchmarks_of_the_readme_are_valid(benchmark_data):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [yaml.safe_load(part.partition("```")[0]) for part in text.split("```yaml\n")[1:]]
    whole = [data for data in found if data.keys() <= Benchmark.model_fields.keys()]
    assert any("methods" in data for data in whole)
    for data in whole:
        assert [error.message for error in VALIDATOR.iter_errors(benchmark_data | data)] == []


@pytest.mark.parametrize(
    ("method", "is_valid"),
    [
        ({"guider": "cfg"}, True),
        ({"guider": "my_package.MyGuider", "strength": 2}, True),
        ({"sampler": "my_package.my_sampler", "limit": 1.5}, True),
        ({"images": "their_images", "nfe": 100}, True),
        ({"images": "their_images"}, True),
        ({"images": "their_images", "nef": 100}, False),
    ],
)
def test_a_method_of_each_kind(benchmark_data, method, is_valid):
    benchmark_data["methods"]["Mine"] = method
    assert VALIDATOR.is_valid(benchmark_data) == is_valid


@pytest.mark.parametrize("name", ["a.yaml", "a/b.yaml"])
def test_what_cannot_load_leaves_neither_file_nor_folder(tmp_path, name):
    with pytest.raises(UsageError, match="Did you mean 'sdxl'"):
        write_starter(tmp_path / name, "miniature:sdxxl", MINIATURE[1], ["a cat"], None)
    assert list(tmp_path.iterdir()) == []
