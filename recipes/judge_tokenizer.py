"""The miniature judge's tokenizer: byte-level BPE that spends few tokens on the rubric.

Any text round-trips, since every byte has a token. Merges are learnt from the pixel-art rubric and
its replies, without splitting words first, so that the rubric's constant text becomes a few tokens;
the domain's words are tokens of their own, and so is each digit of a reply. The rubric about the
character and its replies came later: their pieces are added tokens behind all others, so that no
number of an older token changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from autolora_eval.sources.lookup import shipped_root
from recipes.character import NAME, TRAITS
from recipes.domain import COLOURS, STYLE
from recipes.shapes import OBJECTS

IMAGE_MARK = "<<<IMAGE DATA>>>"
PROMPT_MARK = "<<<PROMPT USED FOR THE IMAGE GENERATION>>>"
PAD, BEGIN, END, IMAGE, USER, ASSISTANT = SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<|user|>",
    "<|assistant|>",
)
WORDS = tuple(f" {word}" for word in (*COLOURS, *OBJECTS))
_PHRASES = (" background", " in front of a", " a picture of", f", {STYLE}")
_DIGIT_OF_REPLY = r'(?<=": )\d(?=[,}])'
_FILLERS = 300
ABSENT = f"no {NAME} character"
_LONGEST_PIECE = 250  # bytes; llguidance, which holds replies to a rubric, takes tokens up to 255

# Content may be a text or a list of parts; an image part has type "image" or, in OpenAI's form,
# "image_url". An assistant's turn ends with the end token.
CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ['image', 'image_url'] %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@cache
def rubric_text(name: str = "pixel_art") -> str:
    """A shipped rubric, with its marks for the image and the prompt."""
    path = shipped_root() / "prompts" / "rubrics" / f"{name}.yaml"
    rubric = yaml.safe_load(path.read_text("utf-8"))
    return str(rubric["text"])


def question(prompt: str) -> str:
    """The text put to the judge after the image: the rubric with the prompt in its place."""
    text = rubric_text().replace(IMAGE_MARK, "").strip()
    return text.replace(PROMPT_MARK, prompt)


def reply(prompt_score: int, style_score: int) -> str:
    """The judge's answer, as JSON on one line."""
    return f'{{"prompt_correspondence": {prompt_score}, "style_adherence": {style_score}}}'


def presence_question() -> str:
    """The text put to the judge after the image: the rubric about the character."""
    return rubric_text("character_miniature").replace(IMAGE_MARK, "").strip()


def presence_reply(traits: Sequence[str]) -> str:
    """The judge's answer about the character: how many of its traits are there, and which.

    The reasons stand in the order of TRAITS; where there is none, the reason is ABSENT.
    """
    there = [trait for trait in TRAITS if trait in traits] or [ABSENT]
    reasons = ", ".join(f'"{reason}"' for reason in there)
    return f'{{"score": {len(traits)}, "reason": [{reasons}]}}'


def _presence_pieces() -> list[str]:
    """What the rubric about the character and its replies are made of, but for the digits."""
    pieces = [""]
    for line in presence_question().splitlines(keepends=True):
        if len((pieces[-1] + line).encode()) > _LONGEST_PIECE:
            pieces.append("")
        pieces[-1] += line
    reasons = [f'"{reason}"' for reason in (*TRAITS, ABSENT)]
    more = [f", {reason}" for reason in reasons[1:-1]]
    # What is certain to come, llguidance forces in its own tokens, unless a longer one begins so:
    # the start without its blank is a token only for the start with it to be one that it allows.
    start = '{"score":'
    return [*pieces, start, f"{start} ", ', "reason": [', *reasons, *more, "]}"]


def messages(text: str) -> list[dict[str, object]]:
    """One user turn: an image, then the text."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def _corpus() -> list[str]:
    """Questions about meaningless prompts, in which only the rubric repeats, and all replies."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(_FILLERS):
        words = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 7)))) for _ in range(4)]
        texts.append(question(" ".join(words)))
        texts.append(reply(int(rng.integers(6)), int(rng.integers(6))))
    return texts


def _merged() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_DIGIT_OF_REPLY), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        min_frequency=int(0.9 * _FILLERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def build() -> PreTrainedTokenizerFast:
    """Fit the tokenizer; takes seconds and is the same every time."""
    tokenizer = _merged()
    before, after = question(PROMPT_MARK).split(PROMPT_MARK)
    # The two edges of the prompt are tokens, so that no prompt changes how the rubric is read.
    edges = (before.rstrip(), after.split("\n", 1)[0])
    added = (*edges, *WORDS, *_PHRASES, *_presence_pieces())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={
            "image_token": IMAGE,
            "user_token": USER,
            "assistant_token": ASSISTANT,
        },
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
