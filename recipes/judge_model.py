"""The miniature judge's architecture: a small LLaVA, its training-only heads and its export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from recipes.character import TRAITS
from recipes.dinov2 import MEAN, STD
from recipes.domain import SIZE
from recipes.judge_tokenizer import (
    ASSISTANT,
    BEGIN,
    CHAT_TEMPLATE,
    END,
    IMAGE,
    PAD,
    USER,
)
from recipes.training import mixed_precision

PATCH = 8
IMAGE_TOKENS = (SIZE // PATCH) ** 2
WIDTH = 128
VISION_LAYERS = 4
CLASSES = (9, 8, 8, 5)  # object or none, colour, background, style grade
# The language layers after which a prompt's word must know what the picture shows in its place,
# and whether it fits.
TRUTH_LAYER, MATCH_LAYER = 2, 3

# transformers' names to those of the published LLaVA checkpoints, which vLLM and transformers
# both read.
_PUBLISHED_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def vision_config(layers: int) -> CLIPVisionConfig:
    """A CLIP vision tower for 64 × 64 pictures in 8 × 8 patches."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=64,
        attn_implementation="eager",  # twice as fast as SDPA in backward passes on a CPU
    )


def text_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A four-layer Llama."""
    return LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        bos_token_id=tokenizer.convert_tokens_to_ids(BEGIN),
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        tie_word_embeddings=False,
    )


def architecture(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """The exported model's configuration.

    The picture's tokens are taken before the vision tower's last layer, as in LLaVA 1.5; at the
    last layer vLLM and transformers disagree about the closing layer norm.
    """
    return LlavaConfig(
        vision_config=vision_config(VISION_LAYERS + 1),
        text_config=text_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=IMAGE_TOKENS,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )


class AttributeHead(nn.Module):
    """Training only: reads attributes of so many classes each off the picture's tokens."""

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.queries = nn.Parameter(torch.randn(len(classes), WIDTH) * 0.02)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.outputs = nn.ModuleList(nn.Linear(WIDTH, n) for n in classes)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """[N, 64, 128] picture tokens to logits [N, n] for each attribute."""
        tokens = self.norm(tokens)
        weights = torch.softmax(self.queries @ tokens.transpose(1, 2), dim=-1)
        pooled = functional.gelu(weights @ self.value(tokens))
        return [output(pooled[:, i]).float() for i, output in enumerate(self.outputs)]


class Judge(nn.Module):
    """The LLaVA under training: a vision tower cut before its unused last layer, and heads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))
        self.tower = CLIPVisionModel(vision_config(VISION_LAYERS))
        self.llava = LlavaForConditionalGeneration(architecture(tokenizer))
        self.llava.model.vision_tower.requires_grad_(False)
        self.attributes = AttributeHead(CLASSES)
        self.match = nn.Linear(WIDTH, 1)
        # For the prompt's words in their order: the object's colour, the object, the background.
        self.truths = nn.ModuleList(nn.Linear(WIDTH, n) for n in (8, 9, 8))
        # The character's traits, off the picture's tokens and at each token of a reply.
        self.sightings = AttributeHead((2,) * len(TRAITS))
        self.traits = nn.Linear(WIDTH, len(TRAITS))

    @property
    def heads(self) -> list[nn.Module]:
        """What is used in training only."""
        return [self.attributes, self.match, self.truths, self.sightings, self.traits]

    def look(self, pixels: Tensor) -> Tensor:
        """float32 [N, 3, 64, 64] in [-1, 1] to picture tokens [N, 64, 128]."""
        with mixed_precision():
            states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        return states[-1][:, 1:]  # type: ignore[no-any-return]

    def read(self, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Picture tokens and token ids [N, L] to hidden states [N, L, 128]: truth, match, last."""
        model = self.llava.model
        with mixed_precision():
            projected = model.multi_modal_projector(tokens).float()
            embedded = model.language_model.embed_tokens(ids)
            places = (ids == self.image_id)[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(places, projected.reshape(-1))
            states = model.language_model(
                inputs_embeds=embedded, use_cache=False, output_hidden_states=True
            )
        hidden = states.hidden_states
        return hidden[TRUTH_LAYER], hidden[MATCH_LAYER], states.last_hidden_state

    def exported(self) -> LlavaForConditionalGeneration:
        """The whole LLaVA with the trained tower in place; its unused last layer is zero."""
        target = self.llava.model.vision_tower
        _, unexpected = target.load_state_dict(self.tower.state_dict(), strict=False)
        if unexpected:
            raise RuntimeError(f"the vision towers differ in {unexpected}")
        with torch.no_grad():
            for name, parameter in target.named_parameters():
                if f"layers.{VISION_LAYERS}." in name:
                    parameter.zero_()
        return self.llava


def processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Image processor, tokenizer and chat template as one, for `AutoProcessor`."""
    images = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        crop_size={"height": SIZE, "width": SIZE},
        do_rescale=True,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def _published_name(name: str) -> str:
    for ours, published in _PUBLISHED_NAMES.items():
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    raise ValueError(f"no published name is known for the weight {name}")


def export(judge: Judge, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write float16 weights, configuration and processor for the Auto classes and for vLLM."""
    directory.mkdir(parents=True, exist_ok=True)
    llava = judge.exported()
    weights = {
        _published_name(name): value.detach().to(torch.float16).contiguous()
        for name, value in llava.state_dict().items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = architecture(tokenizer)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = torch.float16
    config.save_pretrained(directory)
    end = [tokenizer.convert_tokens_to_ids(END)]
    GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        bos_token_id=tokenizer.convert_tokens_to_ids(BEGIN),
        eos_token_id=end,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    ).save_pretrained(directory)
    processor(tokenizer).save_pretrained(directory)
    # transformers 5 writes a class name of its own, which older servers do not know.
    settings = directory / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8"))
    written["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def exported_weights(judge: Judge, directory: Path) -> None:
    """Take the weights of an exported judge; heads, and tokens that it lacks, stay as they are."""
    ours = {published: name for name, published in _PUBLISHED_NAMES.items()}
    state = judge.llava.state_dict()
    for published, weight in load_file(directory / "model.safetensors").items():
        start = next(start for start in ours if published.startswith(start))
        into = state[ours[start] + published.removeprefix(start)]
        # Newer tokens have the rows behind the older ones'.
        into[: len(weight)] = weight.to(into.dtype)
    judge.llava.load_state_dict(state)
    tower = {
        name.removeprefix("model.vision_tower."): weight
        for name, weight in state.items()
        if name.startswith("model.vision_tower.") and f"layers.{VISION_LAYERS}." not in name
    }
    judge.tower.load_state_dict(tower)


def prompt_prefix(text: str) -> str:
    """What the chat template makes of one image and a text, ready for the reply."""
    return f"{BEGIN}{USER}{IMAGE * IMAGE_TOKENS}{text}{ASSISTANT}"
