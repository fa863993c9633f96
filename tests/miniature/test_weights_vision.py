"""The shipped miniature DINOv2 and judge load by the Auto classes and know their world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import autolora_eval.sources.lookup as miniature
from recipes import judge_data, judge_evaluate, judge_tokenizer
from recipes.dinov2_evaluate import Extractor, diversities
from recipes.domain import held_out_scenes

pytestmark = pytest.mark.model

WEIGHTS = Path(miniature.__file__).parent / "shipped" / "miniature"


@pytest.fixture(scope="module")
def extract():
    return Extractor(WEIGHTS / "dinov2")


@pytest.fixture(scope="module")
def judge():
    return judge_evaluate.ExportedJudge(WEIGHTS / "judge")


@pytest.fixture(scope="module")
def held_out():
    return judge_data.pictures(held_out_scenes(), 120, seed=7_001, mangled_share=0.0)


def test_diversity_rises_from_one_drawing_to_different_scenes(extract):
    found = diversities(extract, seed=7_002, sets=6)
    assert found["one_scene_canonical_pixel_art"] < found["one_scene_pixel_art"]
    assert found["one_scene_canonical_pixel_art"] < found["one_scene_free"]
    assert found["one_scene_free"] < found["different_scenes_free"]
    assert found["one_scene_pixel_art"] < found["different_scenes_pixel_art"]


def test_features_share_no_large_common_part(extract, held_out):
    features = extract(list(held_out.images)).double()
    assert features.shape == (120, 128)
    unit = torch.nn.functional.normalize(features, dim=-1)
    mean_cosine = ((unit @ unit.T).sum() - 120) / (120 * 119)
    assert mean_cosine < 0.5


def test_features_of_one_picture_do_not_depend_on_its_neighbours(extract, held_out):
    images = list(held_out.images[:6])
    torch.testing.assert_close(extract(images)[:2], extract(images[:2]), rtol=1e-4, atol=1e-4)


def test_the_judge_beats_shuffled_prompts_by_far(judge, held_out):
    """Right prompts against the same prompts dealt to other pictures: a paired sign test."""
    texts = [
        judge_tokenizer.question(judge_data.worded(judge_data.scene_of(named), rng))
        for named, rng in zip(held_out.named, map(np.random.default_rng, range(120)), strict=True)
    ]
    dealt = [texts[i] for i in np.roll(np.arange(120), 17)]
    images = list(held_out.images)
    own = [judge_evaluate.parsed(text).prompt for text in judge(images, texts)]
    other = [judge_evaluate.parsed(text).prompt for text in judge(images, dealt)]
    assert min(own + other) >= 0
    assert np.mean(own) - np.mean(other) > 2
    # Without any knowledge, more than 85 wins in 120 have a probability below 1e-5.
    assert sum(a > b for a, b in zip(own, other, strict=True)) > 85


def test_the_judge_tells_crisp_pixel_art_from_free_renders(judge, held_out):
    texts = [
        judge_tokenizer.question(
            judge_data.worded(judge_data.scene_of(n), np.random.default_rng(1))
        )
        for n in held_out.named
    ]
    style = np.array([judge_evaluate.parsed(t).style for t in judge(list(held_out.images), texts)])
    grade = held_out.truth[:, 3]
    assert style[grade == 5].mean() - style[grade == 1].mean() > 2.5
    assert (np.abs(style - grade) <= 1).mean() > 0.8


def test_the_processor_puts_one_request_together_by_itself(judge, held_out):
    processor = AutoProcessor.from_pretrained(WEIGHTS / "judge")
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "judge", dtype=torch.float32)
    image = Image.fromarray(held_out.images[0]).resize((256, 256), Image.Resampling.NEAREST)
    text = judge_tokenizer.question("two zebras at a lake")
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    reply = judge_evaluate.parsed(processor.decode(output, skip_special_tokens=True))
    assert reply.prompt != judge_evaluate.INVALID
