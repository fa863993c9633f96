"""Pipelines that no guidance method can act on are refused before any model loads."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import save_json

from autolora_eval._devices import quiet_libraries
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval.config.inputs import INDEX, TESTED, WITHOUT_GUIDER
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.generation import preflight

pytestmark = pytest.mark.model

Write = Callable[[object], Path]


def named(folder: Path, name: object) -> Path:
    """A pipeline's folder of which nothing is there but its index."""
    save_json(folder / INDEX, {"_class_name": name, "_diffusers_version": "0.42.1"})
    return folder


@pytest.fixture
def data(benchmark_data, workplace) -> dict[str, Any]:
    """The benchmark with a pipeline of its own folder, which is still empty."""
    data = copy.deepcopy(benchmark_data)
    data["models"]["A"]["pipeline"] = str(workplace / "other")
    (workplace / "other").mkdir()
    return data


@pytest.mark.parametrize("name", WITHOUT_GUIDER)
def test_a_pipeline_without_a_guider_is_refused_by_its_index_alone(problem, data, workplace, name):
    named(workplace / "other", name)
    line = problem(data)
    assert f"models.A.pipeline: '{workplace / 'other'}' is a {name}, " in line
    assert "takes no guider, so that no guidance method can act on it. What works: " in line
    assert all(works in line for works in TESTED)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ('{"_class_name": ', "not valid JSON: "),
        ("[]", "names no '_class_name', so it is no pipeline of diffusers. Write one with save_"),
        ("{}", "names no '_class_name', so it is no pipeline of diffusers. Write one with save_"),
        ('{"_class_name": 7}', "names no '_class_name'"),
        (
            '{"_class_name": ["pipeline", "Mine"]}',
            "is a pipeline with code of its own (pipeline, Mine), which is not run. What works: ",
        ),
    ],
)
def test_an_index_that_names_no_class_is_refused(problem, data, workplace, index, says):
    (workplace / "other" / INDEX).write_text(index)
    assert says in problem(data)


def test_a_folder_that_is_no_pipeline_is_refused(problem, data):
    assert "has no model_index.json, so it is not a model in the diffusers" in problem(data)


def in_hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, repo: str, name: str) -> None:
    """Put a hub model's index where the hub's client keeps it."""
    from huggingface_hub import constants

    commit, place = "a" * 40, folder / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    named(place / "snapshots" / commit, name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))


def test_a_hub_model_in_the_cache_is_known_too(problem, data, tmp_path, monkeypatch):
    data["models"]["A"]["pipeline"] = "someone/flux"
    in_hub_cache(tmp_path / "hub", monkeypatch, "someone/flux", "FluxPipeline")
    assert "models.A.pipeline: 'someone/flux' is a FluxPipeline, " in problem(data)


def test_a_hub_model_is_known_before_its_weights_are_fetched(
    write_benchmark, data, tmp_path, monkeypatch
):
    import huggingface_hub

    def download(repo: str, name: str, **_: object) -> str:
        assert (repo, name) == ("someone/flux", INDEX), "nothing but the index"
        return str(named(tmp_path / "fetched", "FluxPipeline") / INDEX)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(preflight, "hub_refusal", lambda source: None)
    data["models"]["A"]["pipeline"] = "someone/flux"
    del data["judge"]
    plan = make_plan(load_benchmark(write_benchmark(data)))
    (line,) = preflight.missing(plan, tmp_path / "run")
    assert line.startswith("'someone/flux' is a FluxPipeline, and the modular pipeline that")


def test_a_hub_that_cannot_be_reached_is_not_asked_for_files(
    write_benchmark, data, tmp_path, monkeypatch
):
    """Its client would try five times, for half a minute, and say so on the screen."""
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise AssertionError("asked for a file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(preflight, "hub_refusal", lambda source: "no network")
    data["models"]["A"]["pipeline"] = "someone/flux"
    del data["judge"]
    plan = make_plan(load_benchmark(write_benchmark(data)))
    (line,) = preflight.missing(plan, tmp_path / "run")
    assert "not to be had from the hub (no network): someone/flux" in line


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StableDiffusionPipeline", "for which diffusers 0.42.1 has no modular pipeline that"),
        ("WanPipeline", "for which diffusers 0.42.1 has no text-to-image workflow."),
        ("QwenImageEditPipeline", "has no text-to-image workflow."),
        ("StableDifusionXLPipeline", "which diffusers 0.42.1 does not know. What works: Stable"),
    ],
)
def test_a_pipeline_that_is_in_no_list_is_asked_of_diffusers_before_anything_loads(
    write_benchmark, data, workplace, name, says
):
    """`missing` is what `run` and `generate` ask before the first model, whichever that is."""
    import diffusers

    named(workplace / "other", name)
    del data["judge"]
    plan = make_plan(load_benchmark(write_benchmark(data)))
    (line,) = preflight.missing(plan, workplace / "run")
    assert line.startswith(f"'{workplace / 'other'}' ")
    assert name in line
    assert says.replace("0.42.1", diffusers.__version__) in line


def test_the_lists_are_those_of_diffusers(tmp_path):
    """Every class that diffusers knows a modular pipeline for, by what that takes."""
    from diffusers.pipelines.auto_pipeline import SUPPORTED_TASKS_MAPPINGS

    from autolora_eval.config.schema import Lora, Model
    from autolora_eval.generation.pipeline_loading import open_pipeline
    from autolora_eval.sources.model_source import Source

    names = {found.__name__ for mapping in SUPPORTED_TASKS_MAPPINGS for found in mapping.values()}
    assert {"FluxPipeline", "StableDiffusionPipeline", *TESTED} <= names
    without, opened = set(), set()
    for name in names:
        folder = str(named(tmp_path / name, name))
        try:
            with quiet_libraries():
                open_pipeline(
                    Source(folder, "folder", folder), Model(pipeline=folder, lora=Lora(path="any"))
                )
            opened.add(name)
        except AutoLoRAEvalError as error:
            if "takes no guider" in str(error):
                without.add(name)
    assert set(TESTED) <= opened
    assert without == set(WITHOUT_GUIDER)


def test_a_negative_prompt_that_would_be_dropped_is_refused(tmp_path):
    """FLUX.2 klein takes a guider, and no negative prompt."""
    from autolora_eval.config.schema import Lora, Model
    from autolora_eval.generation.pipeline_loading import open_pipeline
    from autolora_eval.sources.model_source import Source

    folder = str(named(tmp_path / "klein", "Flux2KleinPipeline"))
    source = Source(folder, "folder", folder)
    given = {"pipeline": folder, "lora": Lora(path="any")}
    with quiet_libraries():
        open_pipeline(source, Model(**given))
        with pytest.raises(AutoLoRAEvalError, match=r"takes no negative prompt \(got 'a dog'\)"):
            open_pipeline(source, Model(**given, negative_prompt="a dog"))


def test_code_in_a_pipelines_folder_is_not_run(tmp_path):
    from autolora_eval.config.schema import Lora, Model
    from autolora_eval.generation.pipeline_loading import open_pipeline
    from autolora_eval.sources.model_source import Source

    folder = named(tmp_path / "theirs", "StableDiffusionXLPipeline")
    code = {"ModularPipelineBlocks": "block.Block"}
    (folder / "modular_config.json").write_text(json.dumps({"auto_map": code}))
    (folder / "block.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Block: pass\n")
    source = Source(str(folder), "folder", str(folder))
    with quiet_libraries(), pytest.raises(AutoLoRAEvalError, match="custom code"):
        open_pipeline(source, Model(pipeline=str(folder), lora=Lora(path="any")))
    assert not (tmp_path / "ran").exists()
