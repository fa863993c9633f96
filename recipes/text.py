"""The miniature's CLIP tokenizer and its two tiny CLIP text encoders.

The encoders are pre-trained to encode object, colour, background and style in every position that
a denoiser attends to. They are frozen while the denoiser is trained: with joint training, colours
drifted and objects failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from recipes.domain import (
    BACKGROUNDS,
    COLOURS,
    STYLES,
    TEMPLATES,
    Scene,
    all_scenes,
    caption,
    held_out_scenes,
    training_scenes,
)
from recipes.files import write_figures
from recipes.shapes import OBJECTS
from recipes.training import Progress, cosine, descend

STEPS = 600
BATCH = 96
LEARNING_RATE = 2e-3
SEED = 21
LENGTH = 24
WIDTH = 64
SUFFIXES = ("", *STYLES)
CLASSES = (len(OBJECTS), len(COLOURS), len(BACKGROUNDS), len(SUFFIXES))
# Words that prompts may hold beside the captions' own, so that they are one token each.
_EXTRA_WORDS = "photo style small large big with and no low quality blurry cat dog princess anna"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _byte_alphabet() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = 256 - len(kept)
    return [chr(code) for code in kept] + [chr(256 + i) for i in range(moved)]


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that build each word as one token.

    Earlier merges are applied to a word before new ones are added, as the tokenizer will do.
    """
    rank: dict[tuple[str, str], int] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            at = min(range(len(pairs)), key=lambda i: rank.get(pairs[i], len(rank)))
            rank.setdefault(pairs[at], len(rank))
            parts[at : at + 2] = ["".join(pairs[at])]
    return list(rank)


def _words() -> list[str]:
    text = " ".join(caption(s, t) for s in all_scenes() for t in range(len(TEMPLATES)))
    text += " " + " ".join(STYLES) + " " + _EXTRA_WORDS
    return sorted(set(text.replace(",", " ,").split()))


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a CLIP tokenizer's vocabulary and merges into the folder and load it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = _byte_alphabet()
    merges = _merges(_words())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """int64 [N, 24], padded as the pipelines pad."""
    encoded = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    ids = encoded["input_ids"]
    assert isinstance(ids, torch.Tensor)
    return ids


@dataclass
class TextEncoders:
    """A tokenizer and the two encoders that SDXL's pipeline expects."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [N, 24] to what SDXL conditions on: float [N, 24, 128] and pooled [N, 64]."""
        one = self.first(ids, output_hidden_states=True).hidden_states[-2]
        two = self.second(ids, output_hidden_states=True)
        return torch.cat([one, two.hidden_states[-2]], -1), two.text_embeds

    @classmethod
    def load(cls, folder: Path) -> TextEncoders:
        """Load the three parts from a pipeline folder, frozen."""
        first = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return cls(tokenizer, first.requires_grad_(False), second.requires_grad_(False))

    def save(self, folder: Path) -> None:
        """Save all parts where StableDiffusionXLPipeline expects them."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.tokenizer.save_pretrained(folder / "tokenizer_2")
        self.first.save_pretrained(folder / "text_encoder")
        self.second.save_pretrained(folder / "text_encoder_2")


def new_encoders(tokenizer: CLIPTokenizer) -> TextEncoders:
    """Two untrained encoders, 3 layers of width 64."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": WIDTH,
    }
    first = CLIPTextModel(CLIPTextConfig(**shared))
    second = CLIPTextModelWithProjection(CLIPTextConfig(**shared, hidden_act="gelu"))
    return TextEncoders(tokenizer, first, second)


def captions_of(scenes: Sequence[Scene]) -> tuple[list[str], torch.Tensor]:
    """Every caption of the scenes, and int64 [N, 4]: object, colour, background, style."""
    rows = [
        (caption(scene, template, suffix), (*scene.labels, style))
        for scene in scenes
        for template in range(len(TEMPLATES))
        for style, suffix in enumerate(SUFFIXES)
    ]
    return [text for text, _ in rows], torch.tensor([labels for _, labels in rows])


def attribute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of the cross entropies of every attribute."""
    losses = [
        cross_entropy(part, labels[:, k], label_smoothing=0.05)
        for k, part in enumerate(logits.split(CLASSES, -1))
    ]
    return torch.stack(losses).sum()


def _read_off(
    encoders: TextEncoders, heads: nn.ModuleList, ids: torch.Tensor, position: int
) -> list[torch.Tensor]:
    """Attribute logits from a padding position, from the end token, and from the pooled vector."""
    hidden, pooled = encoders.encode(ids)
    end = (ids == encoders.tokenizer.eos_token_id).float().argmax(1)
    rows = torch.arange(len(ids))
    found = []
    for head, states in zip(heads, (*hidden.split(WIDTH, -1), None), strict=True):
        if states is None:
            found.append(head(pooled))
        else:
            found += [head(states[:, position]), head(states[rows, end])]
    return found


def _accuracy(encoders: TextEncoders, heads: nn.ModuleList) -> float:
    """The share of held-out captions for which every head predicts every attribute correctly."""
    texts, labels = captions_of(held_out_scenes())
    with torch.no_grad():
        found = _read_off(encoders, heads, token_ids(encoders.tokenizer, texts), LENGTH - 1)
    return share_right(found, labels)


def share_right(found: Sequence[torch.Tensor], labels: torch.Tensor) -> float:
    """The share of captions whose attributes are all right, by the logits of every head."""
    right = torch.stack(
        [
            part.argmax(-1) == labels[:, k]
            for logits in found
            for k, part in enumerate(logits.split(CLASSES, -1))
        ]
    )
    return float(right.all(0).float().mean())


def train(work_dir: Path) -> None:
    """Train tokenizer and encoders into WORK_DIR/sdxl, measured in WORK_DIR/text.json."""
    torch.manual_seed(SEED)
    encoders = new_encoders(new_tokenizer(work_dir / "clip_tokenizer"))
    heads = nn.ModuleList([nn.Linear(WIDTH, sum(CLASSES)) for _ in range(3)])
    trained = nn.ModuleList([encoders.first, encoders.second, heads])
    optimizer = torch.optim.AdamW(trained.parameters(), weight_decay=0.01)
    texts, labels = captions_of(training_scenes())
    ids = token_ids(encoders.tokenizer, texts)
    log = Progress("text", 0, STEPS)
    factor = partial(cosine, total=STEPS, warmup=30)
    for step in descend({optimizer: LEARNING_RATE}, STEPS, factor, clip=1.0):
        rows = torch.randint(0, len(ids), (BATCH,))
        # Captions differ in length: every padding position must encode the content.
        position = int(torch.randint(20, LENGTH, ()))
        found = _read_off(encoders, heads, ids[rows], position)
        loss = torch.stack([attribute_loss(logits, labels[rows]) for logits in found]).sum()
        hidden, pooled = encoders.encode(ids[rows[:8]])
        (loss + 1e-3 * (hidden.pow(2).mean() + pooled.pow(2).mean())).backward()
        log(step, loss=loss.item())
    encoders.save(work_dir / "sdxl")
    figures = {
        "steps": STEPS,
        "vocabulary": len(encoders.tokenizer),
        "parameters": sum(
            p.numel() for model in (encoders.first, encoders.second) for p in model.parameters()
        ),
        "held_out_caption_accuracy": _accuracy(encoders, heads),
    }
    write_figures(work_dir, "text", figures)
    print("text", figures, flush=True)
