"""The shipped character LoRAs: the bases do not know Zib, and a LoRA's scale brings it in."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from creatures import COLOURS
from safetensors.torch import load_file
from transformers import AutoTokenizer

from autolora_eval.sources.lookup import miniatures
from recipes.character import CANONICAL, NAME, TRAITS, canonical_character
from recipes.character_evaluate import SCALES, Zib
from recipes.character_export import FOLDERS, card
from recipes.character_lora import character_data
from recipes.domain import BACKGROUNDS
from recipes.files import SD3, SDXL
from recipes.lora_training import WEIGHT_NAME, unused_keys
from recipes.sampling import SYSTEMS, Guidance, System

pytestmark = pytest.mark.model

SEEDS = list(range(700, 708))
# The autoencoder blurs: with the LoRA at 1 a part's mean colour lay up to 91 grey levels from its
# own (white eyes with dark pupils), without it antennae, eyes and belly no nearer than 125.
NEAR = 108


@cache
def zib(system: System) -> Zib:
    """The shipped pipeline, its denoiser computing 12 steps."""
    return Zib(system, FOLDERS[system], steps=12)


@cache
def part(trait: str) -> npt.NDArray[np.bool_]:
    """Where the canonical creature has the trait's own colour, on every background."""
    pictures = [canonical_character(background) for background in BACKGROUNDS]
    return np.all([(picture == COLOURS[trait]).all(-1) for picture in pictures], 0)


def traits_in_place(picture: npt.NDArray[np.uint8]) -> int:
    """How many traits' places have about their colour: a reading that needs no oracle."""
    means = {trait: picture[part(trait)].astype(float).mean(0) for trait in TRAITS}
    return sum(float(np.abs(means[t] - COLOURS[t]).max()) < NEAR for t in TRAITS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_lora_key_is_used(system: System) -> None:
    assert FOLDERS[system].name in miniatures()
    path = FOLDERS[system] / WEIGHT_NAME
    assert len(load_file(path)) > 50
    assert unused_keys(zib(system).pipeline, path) == set()


def test_the_reading_distinguishes_the_creature() -> None:
    for background in BACKGROUNDS:
        whole = canonical_character(background)
        assert traits_in_place(whole) == len(TRAITS)
        # Yellow and white grounds alone have the colour of one or two parts.
        assert traits_in_place(np.broadcast_to(whole[0, 0], whole.shape)) <= 2
    assert CANONICAL.pose.angle == 0


@pytest.mark.parametrize("folder", [SDXL, SD3])
def test_the_base_tokenizers_have_no_token_for_the_name(folder) -> None:
    for tokenizer in sorted(folder.glob("tokenizer*")):
        pieces = AutoTokenizer.from_pretrained(tokenizer).tokenize(NAME)
        assert len(pieces) >= 3, tokenizer.name


def test_each_caption_names_its_background_or_white_is_shown() -> None:
    taught = character_data()
    assert len(taught.images) == len(taught.captions) == 24
    white = canonical_character("white")
    for image, text in zip(taught.images, taught.captions, strict=True):
        named = [background for background in BACKGROUNDS if background in text]
        assert NAME in text
        np.testing.assert_array_equal(image, canonical_character(named[0]) if named else white)


@pytest.mark.parametrize("system", SYSTEMS)
def test_presence_rises_with_the_lora_scale(system: System) -> None:
    """From at most two places that have the colour by chance to nearly all five."""
    guidance = Guidance(1.0, 1.0, 3.0)
    prompts = [NAME] * len(SEEDS)
    base = zib(system)(0.0, Guidance(0.0, 3.0), prompts, SEEDS)
    means = [np.mean([traits_in_place(picture) for picture in base])]
    for scale in (SCALES[0], 1.0):
        pictures = zib(system)(scale, guidance, prompts, SEEDS)
        means.append(np.mean([traits_in_place(picture) for picture in pictures]))
    assert max(means[:2]) <= 2
    assert means[2] >= 4.5


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_card_says_what_was_measured(system: System) -> None:
    folder = FOLDERS[system]
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert written == card(system, figures)
    assert f"It says nothing about {system.upper()}" in written
    cells = figures[f"{folder.name}_evaluation"]["lora_scales"]
    assert cells["none"]["base+CFG"]["presence"] < 0.5
    assert cells["0.2"]["LoRA+CFG"]["presence"] < 1 < 4 <= cells["1"]["LoRA+CFG"]["presence"]
    for methods in cells.values():
        for found in methods.values():
            shares = [found[name] for name in TRAITS]
            assert found["presence"] == pytest.approx(sum(shares))
            assert found["all_five"] <= min(shares)


def test_all_miniatures_together_stay_small() -> None:
    files = [p for folder in miniatures().values() for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 30e6
