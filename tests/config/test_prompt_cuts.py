"""Prompts that a text encoder cuts are found as transformers cuts them, without loading it."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import save_json

from autolora_eval._display import model_facts
from autolora_eval.config.plan import make_plan
from autolora_eval.config.prompt_cuts import (
    _cut,
    _readers,
    all_prompt_cuts,
    describe_cuts,
    prompt_cuts,
)
from autolora_eval.config.stage_inputs import planned_manifest
from autolora_eval.runs.folder import RunFolder
from autolora_eval.runs.manifest import PromptCuts
from autolora_eval.sources.lookup import miniature_folder
from autolora_eval.sources.model_source import Source

TAIL = " and a very long tail of words" * 4
LONG = f"a red heart{TAIL}"
TEXTS = (
    *("", "a cat", "A  CAT\n", "it's a dog's 42nd café, naïve 猫 🐱!?", LONG, f"{LONG} in blue"),
    *("<|endoftext|> a <|startoftext|> b", "e\u0301te\u0301 \u2028 ... 'll", "x" * 300),
)


def source(folder: Path) -> Source:
    return Source("mine", "folder", str(folder))


def cuts(*prompts: str, model: str = "sdxl", own: dict[str, str] | None = None) -> PromptCuts:
    pairs = [(prompt, (own or {}).get(prompt)) for prompt in prompts]
    found = prompt_cuts(source(miniature_folder(model)), pairs)
    assert found is not None
    return found


@pytest.fixture
def published(tmp_path) -> Path:
    """SDXL as it is on the hub: its tokenizers are vocab.json and merges.txt."""
    folder = shutil.copytree(miniature_folder("sdxl"), tmp_path / "sdxl")
    for name in ("tokenizer", "tokenizer_2"):
        model = json.loads((folder / name / "tokenizer.json").read_text())["model"]
        added = json.loads((folder / name / "tokenizer.json").read_text())["added_tokens"]
        vocabulary = model["vocab"] | {token["content"]: token["id"] for token in added}
        (folder / name / "vocab.json").write_text(json.dumps(vocabulary))
        merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
        (folder / name / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (folder / name / "tokenizer.json").unlink()
    return folder


@pytest.mark.model
@pytest.mark.parametrize("model", ["sdxl", "sd3", "published"])
def test_the_tokens_read_are_those_that_transformers_passes_to_the_encoder(model, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(model) if model == "published" else miniature_folder(model)
    readers = _readers(source(folder))
    assert readers is not None
    limits = [24, 24] if model != "sd3" else [24, 24, 256]
    assert [limit for _, limit in readers.values()] == limits
    for encoder, (tokenizer, limit) in readers.items():
        theirs = AutoTokenizer.from_pretrained(
            folder / encoder.replace("text_encoder", "tokenizer")
        )
        n_start = len(theirs("").input_ids) - 1
        for text in (*TEXTS, LONG * 4):
            ids, cut = _cut(tokenizer, limit, "prompt 1", text)
            whole = theirs(text).input_ids
            read = theirs(text, truncation=True, max_length=limit).input_ids
            assert read[n_start:-1] == ids
            assert (cut is not None) is (len(whole) > limit)
            assert cut is None or (cut.tokens, len(read)) == (len(whole), limit)


def test_long_prompts_are_named_with_the_place_of_the_cut():
    lines = describe_cuts(cuts(LONG, f"{LONG} but in blue"))
    assert lines == [
        *(
            f"prompt {n} is cut: text_encoder and text_encoder_2 read 24 of {tokens} tokens, up to "
            "'… a very long tail of words and'"
            for n, tokens in ((1, 77), (2, 82))
        ),
        "prompts 1 and 2 are the same to every text encoder: identical images, counted as 2 "
        "prompts",
    ]


def test_each_encoder_of_sd3_has_its_own_limit():
    found = cuts(LONG, f"{LONG} in blue", LONG * 4, f"{LONG * 4} in blue", model="sd3")
    by_name = {(cut.name, *cut.encoders): cut.limit for cut in found.cut}
    clip = ("text_encoder", "text_encoder_2")
    assert by_name == {
        **{(f"prompt {n}", *clip): 24 for n in (1, 2, 3, 4)},
        **{(f"prompt {n}", "text_encoder_3"): 256 for n in (3, 4)},
    }
    assert found.same == [[3, 4]]  # T5 reads all of the first two


def test_other_negative_prompts_make_other_images_and_may_be_cut():
    assert cuts("a cat", "A cat").same == [[1, 2]]
    found = cuts("a cat", "A cat", own={"A cat": LONG})
    assert found.same == []
    assert [cut.name for cut in found.cut] == ["negative prompt 2"]


@pytest.mark.parametrize("file", ["merges.txt", "tokenizer_config.json"])
def test_tokenizers_that_are_damaged_or_not_here_are_not_guessed(file, published):
    assert prompt_cuts(source(published), [(LONG, None)]) is not None
    (published / "tokenizer_2" / file).write_text("[1]")
    assert prompt_cuts(source(published), [(LONG, None)]) is None
    (published / "tokenizer_2" / file).unlink()
    assert prompt_cuts(source(published), [(LONG, None)]) is None


def test_the_manifest_of_a_plan_has_the_prompts_that_are_cut(planned, tmp_path):
    plan = planned(
        prompts=[LONG, "a cat"],
        models={"A": {"pipeline": "miniature:sdxl", "lora": {"path": "miniature:pixel_art_lora"}}},
    )
    (cut,) = planned_manifest(plan, RunFolder(tmp_path / "run")).prompt_cuts["A"].cut
    assert cut.name == "prompt 1"
    assert cut.read.endswith(" a very long tail of words and")
    assert planned_manifest(make_plan(plan.benchmark, 1), RunFolder(tmp_path / "run")).prompt_cuts


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("qwen", "whether any is cut is not known of a QwenImagePipeline"),
        ("somebody/sdxl", "whether any is cut is unknown until the model is downloaded"),
    ],
)
def test_a_plan_says_of_which_models_cuts_and_nfe_are_not_known(
    plan_of, with_model, workplace, pipeline, message
):
    index = {"_class_name": "QwenImagePipeline", "transformer": ["diffusers", "x"]}
    save_json(workplace / "qwen" / "model_index.json", index)
    plan = plan_of(with_model(pipeline=pipeline))
    assert all_prompt_cuts(plan) == {"A": message}
    facts = dict(model_facts(plan, plan.cells[0].model, message))
    assert facts["  Prompts"] == message
    assert ("  NFE" in facts) == (pipeline != "qwen")
