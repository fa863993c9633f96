"""Train the miniature vision-language judge: first its vision tower, then the whole model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from recipes.data import MixedSampler
from recipes.dinov2 import as_pixel_values
from recipes.domain import training_scenes
from recipes.grades import prompt_score
from recipes.judge_data import (
    Pictures,
    asked,
    drawn_prompt_scene,
    foreign_prompt,
    matches,
    picture_sampler,
    pictures,
    true_scores,
    worded,
)
from recipes.judge_model import Judge, export, prompt_prefix
from recipes.judge_tokenizer import END, PAD, WORDS, build, reply
from recipes.training import Progress, cosine, descend

UNSCORED = -100  # the label that cross-entropy leaves out


@dataclass(frozen=True)
class Recipe:
    """What decides the weights."""

    seed: int = 30
    pictures: int = 80_000
    look_steps: int = 5_000
    look_batch: int = 64
    look_rate: float = 1.2e-3
    read_steps: int = 7_000
    read_rate: float = 1.2e-3
    images_per_batch: int = 24
    questions_per_image: int = 2
    tower_rate: float = 0.5  # the tower's learning rate while reading, relative to the rest
    match_weight: float = 3.0
    truth_weight: float = 2.0
    foreign_share: float = 0.0  # share of prompts with invented words, which no picture shows
    attribute_weight: float = 1.0
    given_share: float = 0.4  # of each batch of the fine-tuning
    weight_decay: float = 0.03


class Batch(NamedTuple):
    """Questions with replies about each of some pictures.

    pixels float32 [B, 3, 64, 64]; truth int64 [B, 4]; ids and labels int64 [B·Q, L]; worded bool
    [B·Q], whether the prompt is of the domain's words; fits float32 [W, 3], for each such
    prompt whether its colour, object and background word fit the picture.
    """

    pixels: Tensor
    truth: Tensor
    ids: Tensor
    labels: Tensor
    worded: Tensor
    fits: Tensor


class Questions:
    """Turns pictures into batches of tokenised questions and replies."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, foreign_share: float = 0.0
    ) -> None:
        self._tokenizer = tokenizer
        self._foreign_share = foreign_share
        self._rng = np.random.default_rng(seed)
        self._pad = int(tokenizer.convert_tokens_to_ids(PAD))
        self.word_ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(WORDS)))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return list(self._tokenizer(texts, add_special_tokens=False).input_ids)

    def batch(self, shown: Pictures, per_image: int) -> Batch:
        """Ask `per_image` questions about each picture; half of the pictures are mirrored."""
        questions, replies, fits, has_words = [], [], [], []
        for named, truth in zip(shown.named, shown.truth, strict=True):
            for _ in range(per_image):
                prompt, scores, fit = self._prompt(named, truth)
                questions.append(prompt_prefix(asked(prompt, self._rng)))
                replies.append(reply(*scores) + END)
                has_words.append(fit is not None)
                if fit is not None:
                    fits.append(fit)
        pairs = list(zip(self._tokens(questions), self._tokens(replies), strict=True))
        longest = max(len(q) + len(r) for q, r in pairs)
        length = math.ceil(longest / 8) * 8  # few shapes, since each costs a compilation
        ids = torch.full((len(pairs), length), self._pad)
        labels = torch.full((len(pairs), length), UNSCORED)
        for row, (asking, answer) in enumerate(pairs):
            end = len(asking) + len(answer)
            ids[row, :end] = torch.tensor(asking + answer)
            labels[row, len(asking) : end] = torch.tensor(answer)
        return Batch(
            self.pixels(shown.images),
            torch.from_numpy(shown.truth),
            ids,
            labels,
            torch.tensor(has_words),
            torch.tensor(fits, dtype=torch.float32),
        )

    def _prompt(
        self, named: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]
    ) -> tuple[str, tuple[int, int], tuple[bool, bool, bool] | None]:
        """A prompt, the scores it deserves and, for the domain's words, which of them fit."""
        if self._rng.random() < self._foreign_share:
            return foreign_prompt(self._rng), (prompt_score(0), int(truth[3])), None
        thing, colour, background = (int(value) for value in named)
        scene = drawn_prompt_scene((thing, colour, background), self._rng)
        shown, coloured, behind = matches(scene, truth)
        return worded(scene, self._rng), true_scores(scene, truth), (coloured, shown, behind)

    def pixels(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """The pictures as pixel values, each mirrored with probability one half."""
        values = as_pixel_values(images)
        mirrored = torch.from_numpy(self._rng.random(len(values)) < 0.5)
        return torch.where(mirrored[:, None, None, None], values.flip(3), values)


def attribute_loss(judge: Judge, tokens: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of object, colour, background and style; the object counts most."""
    target = truth - torch.tensor([0, 0, 0, 1])  # style grades start at 1
    losses = [
        functional.cross_entropy(logits, target[:, i])
        for i, logits in enumerate(judge.attributes(tokens))
    ]
    return 0.5 * losses[0] + 0.15 * losses[1] + 0.15 * losses[2] + 0.2 * losses[3]


def truth_loss(judge: Judge, states: Tensor, truth: Tensor) -> Tensor:
    """Predict, at each prompt's three words, [3·N, 128], what the picture shows instead."""
    words = states.view(-1, 3, states.shape[-1])
    losses = [
        functional.cross_entropy(head(words[:, place]), truth[:, column])
        for place, (head, column) in enumerate(zip(judge.truths, (1, 0, 2), strict=True))
    ]
    return torch.stack(losses).mean()


def reading_loss(judge: Judge, batch: Batch, word_ids: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """The losses of one batch by name; "total" is what is minimised."""
    tokens = judge.look(batch.pixels)
    per_image = len(batch.ids) // len(batch.pixels)
    knowing, matching, last = judge.read(tokens.repeat_interleave(per_image, 0), batch.ids)
    answered = batch.labels[:, 1:] != UNSCORED
    logits = judge.llava.lm_head(last[:, :-1][answered].float())
    target = batch.labels[:, 1:][answered]
    answer = functional.cross_entropy(logits, target, reduction="sum") / len(batch.ids)
    is_word = torch.isin(batch.ids, word_ids) & (batch.labels == UNSCORED)
    guessed = judge.match(matching[is_word].float()).view(-1, 3)
    match = functional.binary_cross_entropy_with_logits(guessed, batch.fits)
    shown = batch.truth.repeat_interleave(per_image, 0)[batch.worded]
    truth = truth_loss(judge, knowing[is_word].float(), shown)
    attribute = attribute_loss(judge, tokens, batch.truth)
    total = (
        answer
        + recipe.match_weight * match
        + recipe.truth_weight * truth
        + recipe.attribute_weight * attribute
    )
    right = ((guessed > 0) == (batch.fits > 0.5)).float().mean()
    return {
        "total": total,
        "answer": answer,
        "match": match,
        "truth": truth,
        "attribute": attribute,
        "match_right": right,
    }


def optimizer_for(groups: list[tuple[list[nn.Module], float]], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over modules with their relative learning rates; vectors are not decayed."""
    parameters = []
    for modules, relative in groups:
        trained = [p for m in modules for p in m.parameters() if p.requires_grad]
        for decay, part in (
            (recipe.weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim <= 1]),
        ):
            parameters.append({"params": part, "weight_decay": decay, "relative": relative})
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98))


def learn_to_look(judge: Judge, shown: Pictures, recipe: Recipe) -> None:
    """Train the vision tower to classify object or none, colour, background and style."""
    questions = Questions(build(), recipe.seed + 1)
    rng = np.random.default_rng(recipe.seed + 2)
    optimizer = optimizer_for([([judge.tower, judge.attributes], 1.0)], recipe)
    progress = Progress("judge look", 0, recipe.look_steps, every=250)
    rates, factor = (
        {optimizer: recipe.look_rate},
        partial(cosine, total=recipe.look_steps, warmup=150),
    )
    for step in descend(rates, recipe.look_steps, factor, clip=2.0):
        part = shown.rows(rng.integers(0, len(shown), recipe.look_batch))
        tokens = judge.look(questions.pixels(part.images))
        loss = attribute_loss(judge, tokens, torch.from_numpy(part.truth))
        loss.backward()
        progress(step, attribute=loss.item())


def learn_to_read(
    judge: Judge, tokenizer: PreTrainedTokenizerFast, supply: MixedSampler[Pictures], recipe: Recipe
) -> None:
    """Train the whole model to reply, with the match head from the first step.

    Every batch has new pictures: on a fixed set, the tower memorizes them.
    """
    questions = Questions(tokenizer, recipe.seed + 3, recipe.foreign_share)
    model = judge.llava.model
    language = [model.language_model, model.multi_modal_projector, judge.llava.lm_head]
    optimizer = optimizer_for(
        [
            ([*language, judge.match, judge.truths, judge.attributes], 1.0),
            ([judge.tower], recipe.tower_rate),
        ],
        recipe,
    )
    progress = Progress("judge read", 0, recipe.read_steps, every=250)
    rates, factor = (
        {optimizer: recipe.read_rate},
        partial(cosine, total=recipe.read_steps, warmup=150),
    )
    for step in descend(rates, recipe.read_steps, factor, clip=2.0):
        batch = questions.batch(supply(recipe.images_per_batch), recipe.questions_per_image)
        losses = reading_loss(judge, batch, questions.word_ids, recipe)
        losses["total"].backward()
        progress(step, **{name: value.item() for name, value in losses.items()})


def train(recipe: Recipe, directory: Path, scratch: Path) -> Judge:
    """Train on drawn pictures and export; each phase's end is kept in `scratch` and not redone."""
    torch.manual_seed(recipe.seed)
    tokenizer = build()
    judge = Judge(tokenizer)
    scratch.mkdir(parents=True, exist_ok=True)
    looked, read = scratch / "judge_look.pt", scratch / "judge_read.pt"
    if looked.exists():
        judge.load_state_dict(torch.load(looked), strict=False)
    else:
        learn_to_look(judge, pictures(training_scenes(), recipe.pictures, recipe.seed), recipe)
        torch.save(judge.state_dict(), looked)
    learn_to_read(judge, tokenizer, picture_sampler(recipe.seed + 4), recipe)
    torch.save(judge.state_dict(), read)
    export(judge, tokenizer, directory)
    return judge


def fine_tune(
    recipe: Recipe, given: Pictures, source: Path, target: Path, directory: Path
) -> Judge:
    """Go on from the checkpoint `source` to `target`, on new drawn and given pictures; export."""
    torch.manual_seed(recipe.seed)
    tokenizer = build()
    judge = Judge(tokenizer)
    judge.load_state_dict(torch.load(source))
    learn_to_read(
        judge, tokenizer, picture_sampler(recipe.seed + 4, given, recipe.given_share), recipe
    )
    torch.save(judge.state_dict(), target)
    export(judge, tokenizer, directory)
    return judge
