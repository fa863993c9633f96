"""Teach the miniature judge its second rubric, the presence of the character, beside the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from recipes.data import MixedSampler
from recipes.judge import (
    UNSCORED,
    Questions,
    Recipe,
    optimizer_for,
    reading_loss,
)
from recipes.judge_data import Pictures
from recipes.judge_model import Judge, prompt_prefix
from recipes.judge_tokenizer import (
    END,
    PAD,
    build,
    presence_question,
    presence_reply,
)
from recipes.presence_data import (
    PresenceData,
    names,
    without_character,
)
from recipes.training import Progress, cosine, descend


@dataclass(frozen=True)
class PresenceRecipe:
    """What decides the weights, beside the `Recipe` of the questions about prompts."""

    reading: Recipe
    head_steps: int = 150  # in which only heads and the replies' tokens learn
    steps: int = 4_000
    creatures_per_batch: int = 12
    others_per_batch: int = 4  # of the first rubric's pictures, which show no character
    given_share: float = 0.5
    trait_weight: float = 2.0
    sighting_weight: float = 1.0


class SightingBatch(NamedTuple):
    """The question about the character, with a reply, about each of some pictures.

    pixels float32 [N, 3, 64, 64]; traits bool [N, 5]; ids and labels int64 [N, L].
    """

    pixels: Tensor
    traits: Tensor
    ids: Tensor
    labels: Tensor


class Sighted:
    """Turns pictures into batches of the tokenised question and its replies."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, questions: Questions, seed: int) -> None:
        self._tokenizer, self._questions = tokenizer, questions
        self._rng = np.random.default_rng(seed)
        self._pad = int(tokenizer.convert_tokens_to_ids(PAD))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _asked(self) -> str:
        """The question, with the white space that callers may leave around it."""
        before = " " if self._rng.random() < 0.1 else ""
        return before + presence_question() + ("\n" if self._rng.random() < 0.1 else "")

    def batch(self, shown: PresenceData) -> SightingBatch:
        """Ask about each picture once; half of the pictures are mirrored."""
        # One length for all batches, since each new one costs a compilation.
        longest = len(self._tokens(prompt_prefix(f" {presence_question()}\n"))) + 10
        ids = torch.full((len(shown), longest), self._pad)
        labels = torch.full((len(shown), longest), UNSCORED)
        for row, traits in enumerate(shown.traits):
            asking = self._tokens(prompt_prefix(self._asked()))
            answer = self._tokens(presence_reply(names(traits)) + END)
            end = len(asking) + len(answer)
            ids[row, :end] = torch.tensor(asking + answer)
            labels[row, len(asking) : end] = torch.tensor(answer)
        pixels = self._questions.pixels(shown.images)
        return SightingBatch(pixels, torch.from_numpy(shown.traits), ids, labels)


def presence_loss(judge: Judge, batch: SightingBatch, recipe: PresenceRecipe) -> dict[str, Tensor]:
    """The losses of one batch by name; "total" is what is minimised."""
    tokens = judge.look(batch.pixels)
    knowing, _, last = judge.read(tokens, batch.ids)
    answered = batch.labels[:, 1:] != UNSCORED
    logits = judge.llava.lm_head(last[:, :-1][answered].float())
    target = batch.labels[:, 1:][answered]
    answer = functional.cross_entropy(logits, target, reduction="sum") / len(batch.ids)
    # At each token of the reply, the model must know all traits, including those already named.
    guessed = judge.traits(knowing[:, :-1][answered].float())
    there = batch.traits[:, None].expand(-1, answered.shape[1], -1)[answered].float()
    traits = functional.binary_cross_entropy_with_logits(guessed, there)
    seen = torch.stack(
        [
            functional.cross_entropy(logits, batch.traits[:, i].long())
            for i, logits in enumerate(judge.sightings(tokens))
        ]
    ).mean()
    total = answer + recipe.trait_weight * traits + recipe.sighting_weight * seen
    right = ((guessed > 0) == (there > 0.5)).float().mean()
    return {"total": total, "said": answer, "traits": traits, "seen": seen, "traits_right": right}


Losses = Callable[[], dict[str, Tensor]]


def _losses(
    judge: Judge,
    tokenizer: PreTrainedTokenizerFast,
    supply: MixedSampler[Pictures],
    sightings: MixedSampler[PresenceData],
    recipe: PresenceRecipe,
) -> Losses:
    """Return a function that returns the losses of a new batch of both rubrics."""
    reading = recipe.reading
    questions = Questions(tokenizer, reading.seed + 3, reading.foreign_share)
    sighted = Sighted(tokenizer, questions, reading.seed + 6)

    def losses() -> dict[str, Tensor]:
        shown = supply(reading.images_per_batch)
        batch = questions.batch(shown, reading.questions_per_image)
        found = reading_loss(judge, batch, questions.word_ids, reading)
        others = without_character(shown.images[: recipe.others_per_batch])
        about = sighted.batch(
            PresenceData.concatenate(sightings(recipe.creatures_per_batch), others)
        )
        presence = presence_loss(judge, about, recipe)
        return found | presence | {"total": found["total"] + presence["total"]}

    return losses


def learn(
    judge: Judge,
    supply: MixedSampler[Pictures],
    sightings: MixedSampler[PresenceData],
    recipe: PresenceRecipe,
) -> None:
    """Train on both rubrics at once; every batch is of new pictures or of given ones.

    First, only the new parts are trained: the heads and the tokens of the second rubric's replies.
    """
    reading, tokenizer = recipe.reading, build()
    torch.manual_seed(reading.seed)
    losses = _losses(judge, tokenizer, supply, sightings, recipe)
    new = [*judge.heads, judge.llava.lm_head]
    if recipe.head_steps:
        with _only(judge, new):
            optimizer = optimizer_for([(new, 1.0)], reading)
            _descend(optimizer, 2e-3, recipe.head_steps, losses, "judge heads")
    model = judge.llava.model
    groups = [
        ([*new, model.language_model, model.multi_modal_projector], 1.0),
        ([judge.tower], reading.tower_rate),
    ]
    optimizer = optimizer_for(groups, reading)
    _descend(optimizer, reading.read_rate, recipe.steps, losses, "judge presence")


def _descend(
    optimizer: torch.optim.Optimizer, rate: float, steps: int, losses: Losses, name: str
) -> None:
    progress = Progress(name, 0, steps)
    factor = partial(cosine, total=steps, warmup=min(150, steps // 10))
    for step in descend({optimizer: rate}, steps, factor, clip=2.0):
        found = losses()
        found["total"].backward()
        progress(step, **{name: value.item() for name, value in found.items()})


@contextmanager
def _only(judge: Judge, trained: Sequence[nn.Module]) -> Iterator[None]:
    """Train only the new parts: untrained, they must not damage the trained ones."""
    new = {id(parameter) for module in trained for parameter in module.parameters()}
    others = [p for p in judge.parameters() if p.requires_grad and id(p) not in new]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def checkpointed(judge: Judge, path: Path, run: Callable[[], None]) -> float:
    """Run a phase and keep its end at `path`, or take that if it is there; return its seconds."""
    if not path.exists():
        begun = time.monotonic()
        run()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"seconds": time.monotonic() - begun, "judge": judge.state_dict()}, path)
    kept = torch.load(path, weights_only=True)
    judge.load_state_dict(kept["judge"])
    return float(kept["seconds"])
