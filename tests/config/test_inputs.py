"""What a benchmark names: prompt files, model folders, LoRAs, rubrics."""

import json
import re
import shutil
from dataclasses import replace
from typing import Any

import pytest
import yaml
from conftest import changed

from autolora_eval._errors import UsageError
from autolora_eval._files import sha256_bytes, sha256_file
from autolora_eval.config.inputs import read_prompts
from autolora_eval.config.stage_inputs import planned_manifest
from autolora_eval.runs.folder import RunFolder
from autolora_eval.sources.lookup import shipped_root


@pytest.mark.parametrize(
    ("keys", "name", "says"),
    [
        ("prompts", "promts.txt", "no such prompt file: 'promts.txt' (looked in {here}"),
        ("prompts", "promts.txt", "Did you mean 'prompts.txt'?"),
        ("prompts", "zzz", ")."),  # near to none: the folder is not listed
        ("prompts", "sdxl", "no such prompt file: 'sdxl'"),
        *(("prompts", text, "no such prompt file: ") for text in ("a cat " * 150, "~x/y", "a\0b")),
        ("judge.rubric", "rubrik.yaml", "judge.rubric: no such rubric: 'rubrik.yaml'"),
        ("judge.rubric", "rubrik.yaml", "Did you mean 'rubric.yaml'?"),
        ("models.A.pipeline", "prompts.txt", "has no model_index.json"),
        ("models.A.pipeline", "miniature:none", "models.A.pipeline: no miniature 'none'."),
    ],
)
def test_a_name_of_no_file_of_its_kind(problem, benchmark_data, workplace, keys, name, says):
    line = problem(changed(benchmark_data, keys, name))
    says = says.format(here=workplace)
    assert line.endswith(says) if says.startswith((")", "Did")) else says in line


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("sdxl/model_index.json", ": models.A.pipeline: 'sdxl' has no model_index.json"),
        ("dino/config.json", ": features.model: 'dino' has no config.json"),
    ],
)
def test_a_folder_without_the_file_that_says_what_it_is(
    problem, benchmark_data, workplace, file, says
):
    (workplace / file).unlink()
    assert says in problem(benchmark_data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "prompts.txt: contains no prompt."),
        (b"\n  \n\t\n", "prompts.txt: contains no prompt."),
        (b"a cat\nkitt\xe9n\n", "prompts.txt: not UTF-8 (byte 10)."),
        ("a cat\n".encode("utf-16"), "prompts.txt: not UTF-8 (byte 0)."),
        (b"a cat\n\na dog\n a cat \n", "prompts.txt:4: the prompt 'a cat' already occurs"),
        (b"x" * 10_001, "prompts.txt:1: a prompt of 10001 characters; at most 10000"),
    ],
)
def test_a_prompt_file_that_cannot_be_used(problem, benchmark_data, workplace, content, says):
    (workplace / "prompts.txt").write_bytes(content)
    assert f": prompts: {workplace}/{says}" in problem(benchmark_data)


@pytest.mark.parametrize("suffix", [".tsv", ".CSV", ".jsonl", ".parquet"])
def test_a_table_of_prompts_is_not_read_line_by_line(problem, benchmark_data, workplace, suffix):
    """PartiPrompts is a .tsv, and GenEval's prompts are a .jsonl: a line has more than a prompt."""
    (workplace / f"parti{suffix}").write_text("Prompt\tCategory\na cat\tAnimals\n")
    says = f"{workplace}/parti{suffix}: a {suffix.lower()} file is a table"
    assert says in problem({**benchmark_data, "prompts": f"parti{suffix}"})


def test_prompts_are_lines_without_blanks_around(load, benchmark_data, workplace):
    """Windows line breaks and a byte order mark are none of the prompt; U+2028 in it is."""
    content = "\ufeff a cat \r\n\r\nγ\u2028猫\n\x0bdog\x0b\nlast".encode()
    (workplace / "prompts.txt").write_bytes(content)
    loaded = load(benchmark_data)
    assert loaded.prompts == ("a cat", "γ\u2028猫", "dog", "last")


OWN = [" a cat ", {"prompt": "a dog ", "negative_prompt": "blurry"}]


@pytest.mark.parametrize("prompts", [OWN, "prompts.yaml", "prompts.json"])
def test_a_prompt_may_have_its_own_negative_prompt(plan_of, benchmark_data, workplace, prompts):
    """In the list of a benchmark, and in a file. Another one is another image's file."""
    (workplace / "prompts.yaml").write_text(yaml.safe_dump(OWN), encoding="utf-8")
    (workplace / "prompts.json").write_text(json.dumps(OWN), encoding="utf-8")
    benchmark_data["models"]["A"]["negative_prompt"] = "ugly"
    plan = plan_of({**benchmark_data, "prompts": prompts})
    cat, dog = plan.jobs[0], plan.jobs[2]
    assert (cat.prompt, plan.cells[0].negative_prompt(cat)) == ("a cat", "ugly")
    assert (dog.prompt, plan.cells[0].negative_prompt(dog)) == ("a dog", "blurry")
    manifest = planned_manifest(plan, RunFolder(workplace / "run"))
    assert tuple(manifest.jobs()) == plan.jobs
    assert manifest.prompts_sha256 == sha256_bytes(b"a cat\na dog\0blurry")
    assert (
        dog.file
        != replace(dog, negative_prompt="ugly").file
        != replace(dog, negative_prompt=None).file
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "- a cat\n- {prompt: a dog, negativ_prompt: x}\n",
            "prompts.yaml:2: prompts.1.negativ_prompt: unknown key. Did you mean 'negative_prompt'",
        ),
        ("- a cat\n- a dog\n- a cat\n", "prompts.yaml, entry 3: the prompt 'a cat' already occurs"),
        ("prompts: [a cat]\n", "prompts.yaml: prompts: Input should be a valid list"),
        ("- [a cat\n", "prompts.yaml: not valid YAML: "),
    ],
)
def test_a_yaml_file_of_prompts_that_cannot_be_used(load, benchmark_data, workplace, text, says):
    (workplace / "prompts.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(f"{workplace}/{says}")):
        load({**benchmark_data, "prompts": "prompts.yaml"})


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (["a cat", "a dog", "a cat"], "entry 3: the prompt 'a cat' already occurs"),
        (["a cat", "a cat "], "entry 2: the prompt 'a cat' already occurs"),
        ([" "], "contains no prompt."),
        (["a cat", {"prompt": "a", "negativ_prompt": "x"}], ": prompts.1.negativ_prompt: unknown"),
        ([{"pixel art": "a cat"}], "no key 'prompt' (found 'pixel art'). A text with ': ' must be"),
        ([{"promt": "a cat"}], ": prompts.0: no key 'prompt' (found 'promt')."),
        (["a cat", 7], ": prompts.1: expected text; put it in quotation marks (got 7)."),
        (["a cat", None], ": prompts.1: Input should be a valid string (got nothing)."),
        (["a cat", ""], ": prompts.1: String should have at least 1 character (got '')."),
    ],
)
def test_a_list_of_prompts_that_cannot_be_used(problem, benchmark_data, prompts, says):
    assert says in problem({**benchmark_data, "prompts": prompts})


def test_the_shipped_prompts_are_the_papers_and_any_benchmark_may_name_them(load, benchmark_data):
    """The SHA-256 of the paper's 30 Pixel-Art prompts, one a line, as typed from its appendix."""
    path = shipped_root() / "prompts" / "pixel_art.txt"
    assert sha256_file(path) == "c02dc829c2f72f8677c85812ad8f40452b8c1a58b4d2abf23a2f241fda95dcbf"
    assert len(read_prompts(path)) == 30
    anyones = load({**benchmark_data, "prompts": "prompts/pixel_art.txt"})
    assert anyones.prompts == tuple(read_prompts(path))


def with_pipeline(data: dict[str, Any], pipeline: str, **more: object) -> dict[str, Any]:
    return changed(data, "models.A", data["models"]["A"] | {"pipeline": pipeline} | more)


def with_lora(data: dict[str, Any], path: str, **more: object) -> dict[str, Any]:
    return changed(data, "models.A.lora", {"path": path, **more})


@pytest.mark.parametrize("path", ["sdxll", "./sdxl-base", "../sdxl", "/nowhere/sdxl", "a/b/c"])
def test_a_model_that_is_neither_folder_nor_hub_id(problem, benchmark_data, path):
    line = problem(with_pipeline(benchmark_data, path))
    assert f": models.A.pipeline: no such folder: '{path}'. Expected a folder with a " in line


def test_a_hub_id_is_left_to_the_hub(load, benchmark_data):
    data = with_pipeline(benchmark_data, "owner/name", revision="abc")
    data["models"]["A"]["lora"] = {"path": "owner/lora", "weight_name": "a.safetensors"}
    model = load(data).models["A"]
    assert (model.pipeline.kind, model.pipeline.location) == ("hub", "owner/name")
    assert model.pipeline.revision == "abc"
    (lora,) = model.loras
    assert (lora.source.kind, lora.source.weight_name) == ("hub", "a.safetensors")
    assert model.size == (1024, 1024)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
@pytest.mark.parametrize(
    ("weights", "key"),
    [
        ("sdxl/unet/diffusion_pytorch_model", "models.A.pipeline"),
        ("dino/model", "features.model"),
        ("lora/style", "models.A.lora"),
    ],
)
def test_weights_that_are_only_there_as_a_pickle_are_refused_with_advice(
    problem, benchmark_data, workplace, weights, key, suffix
):
    safe = workplace / f"{weights}.safetensors"
    safe.rename(safe.with_suffix(suffix))
    line = problem(benchmark_data)
    assert f": {key}: " in line
    assert "pickle can run code" in line
    assert "safetensors.torch.save_file" in line


def test_a_pickle_beside_safe_weights_is_passed_over(load, benchmark_data, workplace):
    for folder, name in (("sdxl/unet", "diffusion_pytorch_model"), ("dino", "model")):
        (workplace / folder / f"{name}.bin").write_bytes(b"pickle")
    (workplace / "lora" / "style.pt").write_bytes(b"pickle")
    loaded = load(benchmark_data)
    assert loaded.models["A"].loras[0].source.path.suffix == ".safetensors"


def test_a_revision_of_a_folder_is_refused_rather_than_ignored(problem, benchmark_data):
    of_pipeline = with_pipeline(benchmark_data, "sdxl", revision="main")
    assert ": models.A.pipeline: a revision belongs to a hub id" in problem(of_pipeline)
    of_lora = with_lora(benchmark_data, "lora", revision="main")
    assert ": models.A.lora: a revision belongs to a hub id" in problem(of_lora)


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_a_broken_configuration_gives_a_message(problem, benchmark_data, workplace, component):
    config = workplace / "sdxl" / component / "config.json"
    config.write_text("{broken")
    assert f": models.A.pipeline: {config}: not valid JSON" in problem(benchmark_data)


@pytest.mark.parametrize("sample_size", ["[8, 8]", '"8"'])
def test_a_size_that_cannot_be_read_is_asked_for(
    problem, load, benchmark_data, workplace, sample_size
):
    (workplace / "sdxl" / "unet" / "config.json").write_text(f'{{"sample_size": {sample_size}}}')
    assert "Set width and height." in problem(benchmark_data)
    given = with_pipeline(benchmark_data, "sdxl", width=64, height=32)
    assert load(given).models["A"].size == (64, 32)


def test_a_lora_folder_with_several_files_wants_a_weight_name(
    problem, load, benchmark_data, workplace
):
    lora = workplace / "lora"
    shutil.copy(lora / "style.safetensors", lora / "other.safetensors")
    line = problem(benchmark_data)
    assert "but has other.safetensors, style.safetensors. Name one with weight_name." in line

    named = with_lora(benchmark_data, "lora", weight_name="other.safetensors")
    found = load(named).models["A"].loras[0].source.path
    assert found == lora / "other.safetensors"

    (lora / "checkpoint-5").mkdir()
    shutil.copy(lora / "style.safetensors", lora / "checkpoint-5" / "style.safetensors")
    below = with_lora(benchmark_data, "lora", weight_name="checkpoint-5/style.safetensors")
    assert load(below).models["A"].loras[0].source.path.parent == lora / "checkpoint-5"

    misspelt = with_lora(benchmark_data, "lora", weight_name="ohter.safetensors")
    assert "Did you mean 'other.safetensors'?" in problem(misspelt)


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        ("./none", {}, "no such LoRA: './none'."),
        ("owner/name.safetensors", {}, "no such LoRA: 'owner/name.safetensors'."),
        ("none.pt", {}, "'none.pt' is a pickle: "),
        ("sdxl/unet", {"weight_name": "x.bin"}, "weight_name 'x.bin' is a pickle: "),
        ("owner/name", {"weight_name": "x.ckpt"}, "weight_name 'x.ckpt' is a pickle: "),
        ("lora", {"weight_name": "../x.safetensors"}, "weight_name: no '../x.safetensors' in '"),
        ("lora/style.safetensors", {"weight_name": "y.safetensors"}, "a weight_name belongs to"),
        ("prompts.txt", {}, "'prompts.txt' is not a .safetensors file."),
        ("sdxl", {}, "'sdxl' must hold one .safetensors file, but has none."),
    ],
)
def test_a_lora_that_cannot_be_used(problem, benchmark_data, path, more, says):
    assert f": models.A.lora: {says}" in problem(with_lora(benchmark_data, path, **more))


def test_a_broken_rubric_is_named_with_both_places(problem, benchmark_data, workplace):
    rubric = workplace / "rubric.yaml"
    rubric.write_text(rubric.read_text().replace("key: pc", "kye: pc, key: pc"))
    line = problem(benchmark_data)
    assert f": judge.rubric: {rubric}:4: scores.pc.kye: unknown key. Did you mean 'key'?" in line
