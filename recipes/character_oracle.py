"""The oracle of the character: a small CNN that reads Zib's traits, for measuring; not shipped.

It is trained on drawn pictures, on the same pictures after the autoencoder, and on images of the
base models for the prompts of the character, which cannot show it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from recipes.character import (
    ALL_TRAITS,
    NO_TRAITS,
    TEMPLATES,
    TRAITS,
    character_caption,
    draw_character,
    draw_half_formed,
    trait_sets,
)
from recipes.data import Split, scenes_of, to_tensor
from recipes.decoded import decoded
from recipes.domain import BACKGROUNDS, SIZE, pixel_art, render
from recipes.files import SD3_LORA, SDXL_LORA, write_figures
from recipes.grades import mangled
from recipes.oracle import OracleNet
from recipes.presence_data import PresenceData, without_character
from recipes.sampling import Guidance, Sampler
from recipes.training import Progress, cosine, descend, mixed_precision

STEPS = 600
BATCH = 96
LEARNING_RATE = 2e-3
SEED = 43
N_TRAINING, N_MEASURED, N_OF_BASES = 12_000, 2_000, 500
_READING = 200


def trait_row(traits: frozenset[str]) -> npt.NDArray[np.bool_]:
    """A set of traits as bool [5], in the order of TRAITS."""
    return np.array([name in traits for name in TRAITS])


def drawn(n: int, seed: int, split: Split) -> PresenceData:
    """Draw n pictures: whole creatures, lacking ones, half-formed ones, the domain's objects.

    Of ten pictures two are whole, four have a random set of traits, one is half-formed, and three
    are of the domain, so that every presence from 0 to 5 is common.
    """
    rng = np.random.default_rng((seed, n))
    scenes, sets = scenes_of(split), trait_sets()
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
    rows = np.empty((n, len(TRAITS)), dtype=np.bool_)
    others = (render, pixel_art, mangled)
    for i in range(n):
        kind, background = i % 10, BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
        if kind < 6:
            traits = ALL_TRAITS if kind < 2 else sets[int(rng.integers(len(sets)))]
            images[i] = draw_character(rng, background, traits)
        elif kind == 6:
            images[i], sighting = draw_half_formed(rng, background)
            traits = sighting.traits
        else:
            traits = NO_TRAITS
            images[i] = others[kind - 7](scenes[int(rng.integers(len(scenes)))], rng)
        rows[i] = trait_row(traits)
    return PresenceData(images, rows)


def of_the_bases(n: int, seed: int) -> PresenceData:
    """Generate n pictures for the character's prompts without its LoRA: half SDXL, half SD3.

    They show no trait by construction. Half are made with classifier-free guidance.
    """
    rng = np.random.default_rng(seed)
    prompts = [
        character_caption(BACKGROUNDS[int(rng.integers(8))], int(rng.integers(len(TEMPLATES))))
        for _ in range(n)
    ]
    seeds = [int(value) for value in rng.integers(0, 2**31, n)]
    # γ = 0 leaves the LoRAs out.
    sdxl, sd3 = Sampler("sdxl", SDXL_LORA), Sampler("sd3", SD3_LORA)
    parts = []
    for k, guidance in enumerate((Guidance(0.0), Guidance(0.0, 3.0))):
        first, second = slice(k, n, 4), slice(k + 2, n, 4)
        parts += [
            sdxl(prompts[first], seeds[first], guidance, 12, fast=True),
            sd3(prompts[second], seeds[second], guidance, 12, fast=True),
        ]
    return without_character(np.concatenate(parts))


class CharacterOracle:
    """A trained oracle of traits, loaded from the work directory."""

    def __init__(self, work_dir: Path) -> None:
        self.net = OracleNet(len(TRAITS)).eval()
        state = torch.load(work_dir / "character_oracle.pt", weights_only=True)
        self.net.load_state_dict(state)

    @torch.no_grad()
    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The probability of each of TRAITS: float32 [N, 5], for uint8 pictures [N, 64, 64, 3]."""
        parts = [
            self.net(to_tensor(images[i : i + _READING])).sigmoid()
            for i in range(0, len(images), _READING)
        ]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)

    def read(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which of TRAITS it sees: bool [N, 5]."""
        return self.probabilities(images) > 0.5


def agreement(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Shares of right readings of each trait, of presence exact and within one; bool [N, 5]."""
    distance = np.abs(found.sum(1) - truth.sum(1))
    right = (found == truth).mean(0)
    return {
        **{name: float(right[k]) for k, name in enumerate(TRAITS)},
        "presence_exact": float((distance == 0).mean()),
        "presence_within_one": float((distance <= 1).mean()),
    }


def _optimize(net: OracleNet, data: PresenceData) -> None:
    labels = torch.from_numpy(data.traits).float()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    rng = np.random.default_rng(SEED)
    log = Progress("character oracle", 0, STEPS)
    for step in descend({optimizer: LEARNING_RATE}, STEPS, partial(cosine, total=STEPS)):
        rows = rng.integers(0, len(labels), BATCH)
        x = to_tensor(data.images[rows])
        if rng.random() < 0.5:
            x = x.flip(3)
        with mixed_precision():
            logits = net(x)
        target = labels[rows] * 0.98 + 0.01
        loss = binary_cross_entropy_with_logits(logits.float(), target)
        loss.backward()
        log(step, loss=loss.item())


def train(work_dir: Path) -> None:
    """Train WORK_DIR/character_oracle.pt, measured in WORK_DIR/character_oracle.json."""
    torch.manual_seed(SEED)
    plain = drawn(N_TRAINING, SEED, "training")
    some = plain.rows(slice(N_TRAINING // 2))
    decoded_some = replace(some, images=decoded(work_dir, some.images, SEED))
    net = OracleNet(len(TRAITS))
    # Each several times, because they are few.
    bases = [of_the_bases(N_OF_BASES, SEED)] * 4
    _optimize(net, PresenceData.concatenate(plain, decoded_some, *bases))
    torch.save(net.state_dict(), work_dir / "character_oracle.pt")
    oracle = CharacterOracle(work_dir)
    fresh = drawn(N_MEASURED, SEED + 1, "held_out")
    after = decoded(work_dir, fresh.images, SEED + 1)
    figures = {
        "steps": STEPS,
        "drawn": agreement(oracle.read(fresh.images), fresh.traits),
        "decoded": agreement(oracle.read(after), fresh.traits),
        "of_the_bases": float(oracle.read(of_the_bases(200, SEED + 1).images).any(1).mean()),
    }
    write_figures(work_dir, "character_oracle", figures)
    print("character oracle", figures, flush=True)
