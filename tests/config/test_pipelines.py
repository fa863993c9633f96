"""Pipelines that no guidance method can act on are refused before any model loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
from conftest import save_json
from diffusers.pipelines.auto_pipeline import SUPPORTED_TASKS_MAPPINGS
from safetensors.numpy import save_file

from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import quiet_libraries
from autolora_eval.config.inputs import INDEX, TESTED, WITHOUT_GUIDER
from autolora_eval.config.lora_file import read_lora_file
from autolora_eval.config.schema import Lora, Model
from autolora_eval.generation import preflight
from autolora_eval.generation.pipeline_loading import open_pipeline
from autolora_eval.sources.model_source import Source, local_lora

pytestmark = pytest.mark.model


def named(folder: Path, name: object) -> Path:
    """A pipeline's folder of which nothing is there but its index."""
    save_json(folder / INDEX, {"_class_name": name, "_diffusers_version": "0.42.1"})
    return folder


@pytest.fixture
def data(benchmark_data, workplace) -> dict[str, Any]:
    """The benchmark with a pipeline of its own folder, which is still empty."""
    benchmark_data["models"]["A"]["pipeline"] = str(workplace / "other")
    (workplace / "other").mkdir()
    return benchmark_data


@pytest.mark.parametrize("name", WITHOUT_GUIDER)
def test_a_pipeline_without_a_guider_is_refused_by_its_index_alone(problem, data, workplace, name):
    named(workplace / "other", name)
    line = problem(data)
    assert f"models.A.pipeline: '{workplace / 'other'}' is a {name}, " in line
    assert "takes no guider, so guidance methods cannot act on it. What works: " in line
    assert all(works in line for works in TESTED)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ('{"_class_name": ', "not valid JSON: "),
        ("[]", "names no '_class_name'"),
        (
            "{}",
            "names no '_class_name', so it is not a pipeline of diffusers. Write one with save_",
        ),
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


def test_a_folder_that_is_not_a_pipeline_is_refused(problem, data):
    assert "has no model_index.json, so it is not a model in the diffusers" in problem(data)


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """A function that returns the folder of a repository in the cache of the hub."""

    def make(name: str) -> Path:
        commit, place = "a" * 40, tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        return place / "snapshots" / commit

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return make


def test_a_hub_model_in_the_cache_is_known_too(problem, data, cached):
    data["models"]["A"]["pipeline"] = "someone/flux"
    named(cached("someone/flux"), "FluxPipeline")
    assert "models.A.pipeline: 'someone/flux' is a FluxPipeline, " in problem(data)


def test_a_lora_of_the_hub_in_the_cache_is_checked_by_the_plan(problem, data, cached):
    data["models"]["A"] |= {
        "pipeline": "sdxl",
        "lora": {"path": "someone/lora", "weight_name": "a.safetensors"},
    }
    (cached("someone/lora") / "a.safetensors").write_bytes(b"<html>Log in to download</html>")
    line = problem(data)
    assert "models.A.lora: " in line
    assert "a.safetensors' is not a whole .safetensors file" in line


@pytest.fixture
def missing(plan_of, data, workplace) -> Callable[..., str]:
    """A function that returns the one thing that a run with this pipeline lacks."""

    def ask(pipeline: str | None = None) -> str:
        data["models"]["A"]["pipeline"] = pipeline or data["models"]["A"]["pipeline"]
        del data["judge"]
        (line,) = preflight.missing(plan_of(data), workplace / "run")
        return line

    return ask


def test_a_hub_model_is_known_before_its_weights_are_fetched(missing, tmp_path, monkeypatch):
    def download(repo: str, name: str, **_: object) -> str:
        assert (repo, name) == ("someone/flux", INDEX), "nothing but the index"
        return str(named(tmp_path / "fetched", "FluxPipeline") / INDEX)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(preflight, "hub_refusal", lambda source: None)
    line = missing("someone/flux")
    assert line.startswith("'someone/flux' is a FluxPipeline, and the modular pipeline that")


@pytest.fixture
def hub_lora(tmp_path, monkeypatch) -> Path:
    """The folder of a repository `someone/lora` on a hub that can be reached."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()

    def download(repo: str, name: str, **_: object) -> str:
        if not (there / name).exists():
            raise OSError(name)
        return str(shutil.copy(there / name, here / name))

    def files(*_: object, **__: object) -> list[str]:
        return sorted(path.name for path in there.iterdir())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
    monkeypatch.setattr(preflight, "hub_refusal", lambda source: None)
    return there


@pytest.mark.parametrize(
    ("names", "tensor", "says"),
    [
        (["a.bin"], "", "'someone/lora' holds its LoRA as a pickle: "),
        (["a.safetensors", "b.safetensors"], "", "but has a.safetensors, b.safetensors. Name one"),
        (["a.safetensors"], "lora_unet_x.hada_w1_a", "is LoHa ('lora_unet_x.hada_w1_a')"),
        (["a.safetensors"], "unet.x.lora_A.weight", "lacks the up or B matrix"),
    ],
)
def test_a_lora_on_the_hub_is_refused_before_a_model_loads(
    missing, data, hub_lora, names, tensor, says
):
    for name in names:
        save_file({tensor or "x": np.ones((4, 4), np.float32)}, hub_lora / name)
    data["models"]["A"]["lora"] = {"path": "someone/lora"}
    assert says in missing("sdxl")


def test_the_settings_of_peft_on_the_hub_are_fetched_with_the_lora(hub_lora):
    """Without them its alpha would be its rank."""
    halves = {
        f"base_model.model.x.lora_{half}.weight": np.ones((4, 4), np.float32) for half in "AB"
    }
    save_file(halves, hub_lora / "adapter_model.safetensors")
    source = Source("someone/lora", "hub", "someone/lora")
    assert read_lora_file(local_lora(source)).layers[0].alpha == 4
    save_json(hub_lora / "adapter_config.json", {"r": 4, "lora_alpha": 2})
    assert read_lora_file(local_lora(source)).layers[0].alpha == 2


def test_a_hub_that_cannot_be_reached_is_not_asked_for_files(missing, monkeypatch):
    """Its client would try five times, for half a minute, and say so on the screen."""

    def download(*_: object, **__: object) -> str:
        raise AssertionError("asked for a file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(preflight, "hub_refusal", lambda source: "no network")
    assert "not available from the hub (no network): someone/flux" in missing("someone/flux")


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
    missing, workplace, name, says
):
    """`missing` is what `run` and `generate` ask before the first model, whichever that is."""
    named(workplace / "other", name)
    line = missing()
    assert line.startswith(f"'{workplace / 'other'}' ")
    assert name in line
    assert says.replace("0.42.1", diffusers.__version__) in line


def opened(folder: Path, **keys: object) -> None:
    source = Source(str(folder), "folder", str(folder))
    with quiet_libraries():
        open_pipeline(source, Model(pipeline=str(folder), lora=Lora(path="any"), **keys))


def test_the_lists_are_those_of_diffusers(tmp_path):
    """Every class that diffusers knows a modular pipeline for, by what that takes."""
    names = {found.__name__ for mapping in SUPPORTED_TASKS_MAPPINGS for found in mapping.values()}
    assert {"FluxPipeline", "StableDiffusionPipeline", *TESTED} <= names
    without, others = set(), set()
    for name in names:
        try:
            opened(named(tmp_path / name, name))
            others.add(name)
        except AutoLoRAEvalError as error:
            if "takes no guider" in str(error):
                without.add(name)
    assert set(TESTED) <= others
    assert without == set(WITHOUT_GUIDER)


def test_a_negative_prompt_that_would_be_dropped_is_refused(tmp_path):
    """FLUX.2 klein takes a guider, and no negative prompt."""
    folder = named(tmp_path / "klein", "Flux2KleinPipeline")
    opened(folder)
    with pytest.raises(AutoLoRAEvalError, match=r"takes no negative prompt \(got 'a dog'\)"):
        opened(folder, negative_prompt="a dog")


def test_code_in_a_pipelines_folder_is_not_run(tmp_path):
    folder = named(tmp_path / "theirs", "StableDiffusionXLPipeline")
    code = {"ModularPipelineBlocks": "block.Block"}
    (folder / "modular_config.json").write_text(json.dumps({"auto_map": code}))
    (folder / "block.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Block: pass\n")
    with pytest.raises(AutoLoRAEvalError, match="custom code"):
        opened(folder)
    assert not (tmp_path / "ran").exists()
