"""The text encoders of the SD3 miniature: the two CLIP encoders of SDXL's, and a tiny T5.

The pipeline pads T5's prompt to 256 tokens without a mask. This T5 distinguishes positions only up
to two tokens away. All padding tokens except a few at both ends therefore have exactly the same
value, also in every layer of the denoiser. Attending to one of n equal tokens with log n added to
its score is the same as attending to all n. Training does this: it gets the same predictions from
47 tokens instead of 280.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from recipes.domain import (
    TEMPLATES,
    all_scenes,
    caption,
    held_out_scenes,
    training_scenes,
)
from recipes.files import write_figures
from recipes.text import (
    CLASSES,
    SUFFIXES,
    WIDTH,
    attribute_loss,
    captions_of,
    share_right,
    token_ids,
)
from recipes.training import Progress, cosine, descend, mixed_precision

STEPS = 1500
SHORT_STEPS = 1350  # of them with few paddings, for speed
SHORT_LENGTH = 64
BATCH = 32
LEARNING_RATE = 2e-3
SEED = 71
T5_WIDTH = 128
T5_LENGTH = 256  # what StableDiffusion3Pipeline pads to
LAYERS = 2
REACH = 2  # tokens up to which T5 distinguishes positions
_FAR = (3, 7)  # the buckets of its relative positions beyond that, backward and forward
_BEFORE, _AFTER = 1, 5  # the buckets of the neighbouring words
_TEXT = 14  # tokens of the longest caption
_HEAD = _TEXT + LAYERS * REACH  # positions kept at the start
_TAIL = LAYERS * REACH  # positions kept at the end


def _words() -> list[str]:
    """All words of the captions."""
    texts = [caption(s, t) for s in all_scenes() for t in range(len(TEMPLATES))]
    return sorted(set(" ".join([*texts, *SUFFIXES]).replace(",", " ,").split()))


def new_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer with one token a word of the domain, and characters for all else."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}" if word != "," else ",", -2.0) for word in _words()]
    known = {piece for piece, _ in pieces}
    pieces += [(c, -8.0) for c in characters if c not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def new_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """An untrained T5 encoder of 0.2 M parameters."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=LAYERS,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    t5 = T5EncoderModel(config)
    # Otherwise it does not learn which colour is the object's and which the background's.
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    with torch.no_grad():
        for head, bucket in enumerate((_BEFORE, _AFTER)):
            bias.weight[bucket, head] = 4.0
    return t5


def forget_far_positions(t5: T5EncoderModel) -> None:
    """Make T5 ignore positions beyond REACH: their bias is zero."""
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    with torch.no_grad():
        bias.weight[list(_FAR)] = 0.0


def t5_ids(tokenizer: T5Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """int64 [N, 256], padded as the pipelines pad."""
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        max_length=T5_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    ids = encoded["input_ids"]
    assert isinstance(ids, torch.Tensor)
    return ids


def _read_off(
    t5: T5EncoderModel, heads: nn.ModuleList, ids: torch.Tensor, position: int
) -> list[torch.Tensor]:
    """Attribute logits from the end token and from a padding position."""
    hidden = t5(ids)[0]
    end = (ids == 1).float().argmax(1)
    return [heads[0](hidden[torch.arange(len(ids)), end]), heads[1](hidden[:, position])]


@torch.no_grad()
def _accuracy(t5: T5EncoderModel, heads: nn.ModuleList, tokenizer: T5Tokenizer) -> float:
    """The share of held-out captions for which both heads predict every attribute correctly."""
    texts, labels = captions_of(held_out_scenes()[::4])
    found = _read_off(t5, heads, t5_ids(tokenizer, texts), 100)
    return share_right(found, labels)


def train(work_dir: Path) -> None:
    """Train the T5 and gather all text encoders in WORK_DIR/sd3, measured in sd3_text.json."""
    torch.manual_seed(SEED)
    folder = work_dir / "sd3"
    tokenizer = new_tokenizer()
    t5 = new_t5(tokenizer)
    heads = nn.ModuleList([nn.Linear(T5_WIDTH, sum(CLASSES)) for _ in range(2)])
    trained = nn.ModuleList([t5, heads])
    optimizer = torch.optim.AdamW(trained.parameters(), weight_decay=0.01)
    texts, labels = captions_of(training_scenes())
    ids = t5_ids(tokenizer, texts)
    log = Progress("sd3 text", 0, STEPS)
    factor = partial(cosine, total=STEPS, warmup=30)
    for step in descend({optimizer: LEARNING_RATE}, STEPS, factor, clip=1.0):
        forget_far_positions(t5)
        rows = torch.randint(0, len(ids), (BATCH,))
        length = SHORT_LENGTH if step < SHORT_STEPS else T5_LENGTH
        position = int(torch.randint(_TEXT, length, ()))
        with mixed_precision():
            found = _read_off(t5, heads, ids[rows, :length], position)
        loss = torch.stack([attribute_loss(logits.float(), labels[rows]) for logits in found]).sum()
        loss.backward()
        log(step, loss=loss.item())
    forget_far_positions(t5)
    t5.eval()
    t5.save_pretrained(folder / "text_encoder_3")
    tokenizer.save_pretrained(folder / "tokenizer_3")
    figures = {
        "steps": STEPS,
        "vocabulary": len(tokenizer),
        "parameters": sum(p.numel() for p in t5.parameters()),
        "held_out_caption_accuracy": _accuracy(t5, heads, tokenizer),
    }
    write_figures(work_dir, "sd3_text", figures)
    print("sd3 text", figures, flush=True)


def with_projection(first: CLIPTextModel) -> CLIPTextModelWithProjection:
    """SDXL's first text encoder as the class that SD3 wants; its projection changes nothing."""
    model = CLIPTextModelWithProjection(first.config)
    missing, unexpected = model.load_state_dict(
        {
            key if key.startswith("text_model.") else f"text_model.{key}": value
            for key, value in first.state_dict().items()
        },
        strict=False,
    )
    if missing != ["text_projection.weight"] or unexpected:
        raise RuntimeError(f"text encoders differ: {missing}, {unexpected}")
    with torch.no_grad():
        model.text_projection.weight.copy_(torch.eye(WIDTH))
    return model


@dataclass
class Sd3Encoders:
    """The tokenizers and encoders that SD3's pipeline expects."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModelWithProjection
    second: CLIPTextModelWithProjection
    t5_tokenizer: T5Tokenizer
    t5: T5EncoderModel

    @classmethod
    def load(cls, work_dir: Path) -> Sd3Encoders:
        """Load the CLIP encoders trained for SDXL and the T5 trained for SD3, frozen."""
        sdxl, sd3 = work_dir / "sdxl", work_dir / "sd3"
        first = with_projection(CLIPTextModel.from_pretrained(sdxl / "text_encoder"))
        second = CLIPTextModelWithProjection.from_pretrained(sdxl / "text_encoder_2")
        t5 = T5EncoderModel.from_pretrained(sd3 / "text_encoder_3")
        return cls(
            CLIPTokenizer.from_pretrained(sdxl / "tokenizer"),
            first.eval().requires_grad_(False),
            second.eval().requires_grad_(False),
            T5Tokenizer.from_pretrained(sd3 / "tokenizer_3"),
            t5.eval().requires_grad_(False),
        )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What SD3 conditions on, brief: float [N, 47, 128] and pooled [N, 128]."""
        hidden, pooled = [], []
        for start in range(0, len(texts), 200):
            part = texts[start : start + 200]
            ids = token_ids(self.tokenizer, part)
            one = self.first(ids, output_hidden_states=True)
            two = self.second(ids, output_hidden_states=True)
            clip = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
            t5 = self.t5(t5_ids(self.t5_tokenizer, part))[0]
            clip = pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
            hidden.append(brief(torch.cat([clip, t5], 1)))
            pooled.append(torch.cat([one.text_embeds, two.text_embeds], -1))
        return torch.cat(hidden), torch.cat(pooled)


def brief(hidden: torch.Tensor) -> torch.Tensor:
    """Keep one of the equal paddings: [N, L + 256, D] to [N, L + 23, D], L the CLIP tokens."""
    clip = hidden.shape[1] - T5_LENGTH
    end = hidden.shape[1]
    kept = [*range(clip + _HEAD + 1), *range(end - _TAIL, end)]
    return hidden[:, kept]


def brief_scores(n_pixels: int, n_clip: int) -> torch.Tensor:
    """What to add to attention's scores of the keys, float [n_pixels + L + 23]."""
    scores = torch.zeros(n_pixels + n_clip + _HEAD + 1 + _TAIL)
    scores[n_pixels + n_clip + _HEAD] = math.log(T5_LENGTH - _HEAD - _TAIL)
    return scores


@dataclass(frozen=True)
class Conditions:
    """Brief text conditions of every caption of every training scene, and the null prompt's.

    hidden: [scene, template, suffix, 47, 128]; pooled: [scene, template, suffix, 128];
    null_hidden [47, 128] and null_pooled [128] hold the empty prompt's.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    null_hidden: torch.Tensor
    null_pooled: torch.Tensor

    def draw(
        self, scenes: torch.Tensor, styled: float, dropped: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A random caption of each scene [B]; a share is styled, a share is dropped."""
        n = len(scenes)
        # Template 0 is the one that prompts use most.
        template = (torch.randint(0, len(TEMPLATES) + 1, (n,)) - 1).clamp(min=0)
        suffix = torch.randint(1, len(SUFFIXES), (n,)) * (torch.rand(n) < styled)
        hidden = self.hidden[scenes, template, suffix].clone()
        pooled = self.pooled[scenes, template, suffix].clone()
        empty = torch.rand(n) < dropped
        hidden[empty], pooled[empty] = self.null_hidden, self.null_pooled
        return hidden, pooled


def conditions(encoders: Sd3Encoders) -> Conditions:
    """Encode all captions of the training scenes."""
    texts, _ = captions_of(training_scenes())
    hidden, pooled = encoders.encode(texts)
    shape = (len(training_scenes()), len(TEMPLATES), len(SUFFIXES))
    null_hidden, null_pooled = encoders.encode([""])
    return Conditions(
        hidden.unflatten(0, shape), pooled.unflatten(0, shape), null_hidden[0], null_pooled[0]
    )
