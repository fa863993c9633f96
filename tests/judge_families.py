"""Ask tiny models with random weights of current families, and print what the judge makes of them.

For an environment with torchvision and num2words: `python judge_families.py FOLDER [FAMILY …]`.
Processors and chat templates are the families' own, configurations and tokenizers are made here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t
from PIL import Image
from rubrics import shipped
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from autolora_eval.scoring.judge import Reply, Request
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.judges.transformers_judge import TransformersJudge, conversation
from autolora_eval.scoring.rubric import Question, Rubric
from autolora_eval.sources.model_source import Source

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
HEAD = {"head_dim": 16}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIGLIP |= {"num_attention_heads": 2, "patch_size": 8, "image_size": 32}
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN = (*CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for block in message['content'] %}{% if block['type'] == 'text' %}{{ block['text'] }}"
    "{% elif block['type'] == 'image' %}[IMG]{% endif %}{% endfor %}[/INST]{% endif %}{% endfor %}"
)
Made = tuple[Any, Any]  # a processor, and the configuration of its model


def tokenizer(specials: tuple[str, ...], end: str, **named: str) -> t.PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a family's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({text: n for n, text in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return t.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=specials[-1], **named
    )


def qwen(version: str, vision: dict[str, Any], text: dict[str, Any]) -> Callable[[], Made]:
    """Qwen2-VL, 2.5-VL and 3-VL: images of any size, as patches in one sequence."""

    def make() -> Made:
        words = tokenizer((*QWEN, "<|pad|>"), "<|im_end|>")
        patches = {"patch_size": vision["patch_size"]}
        third = version == "Qwen3"
        videos = t.Qwen3VLVideoProcessor if third else t.Qwen2VLVideoProcessor
        processor = getattr(t, f"{version}VLProcessor")(
            image_processor=t.Qwen2VLImageProcessor(
                min_pixels=32 * 32, max_pixels=64 * 64, **patches
            ),
            tokenizer=words,
            video_processor=videos(**patches),
            chat_template=QWEN_TEMPLATE,
        )
        tokens = {"vision_start": 3, "vision_end": 4, "image": 5, "video": 6}
        ids = {
            f"{name}_token_id": words.convert_tokens_to_ids(QWEN[n]) for name, n in tokens.items()
        }
        config = getattr(t, f"{version}VLConfig")(
            text_config=TEXT | text | {"vocab_size": len(words), **_ends(words)},
            vision_config=vision,
            **ids,
        )
        return processor, config

    return make


def onevision() -> Made:
    words = tokenizer((*CHATML, "<image>", "<video>", "<|pad|>"), "<|im_end|>")
    grids = [[32, 32], [32, 64], [64, 32], [64, 64]]
    side = {"height": 32, "width": 32}
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=grids),
        tokenizer=words,
        video_processor=t.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )
    config = t.LlavaOnevisionConfig(
        text_config=t.Qwen2Config(**TEXT, vocab_size=len(words), **_ends(words)),
        vision_config=t.SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        image_grid_pinpoints=grids,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
    )
    return processor, config


def smolvlm() -> Made:
    marks = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
    places = tuple(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5))
    words = tokenizer((*CHATML, *marks, *places, "<|pad|>"), "<end_of_utterance>")
    size = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = t.SmolVLMProcessor(
        image_processor=t.SmolVLMImageProcessor(**size),
        tokenizer=words,
        video_processor=t.SmolVLMVideoProcessor(**size),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    config = t.SmolVLMConfig(
        text_config=t.LlamaConfig(**TEXT, vocab_size=len(words), **_ends(words)),
        vision_config=SIGLIP | {"model_type": "smolvlm_vision"},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return processor, config


def internvl() -> Made:
    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    words = tokenizer((*CHATML, *named.values(), "<|pad|>"), "<|im_end|>", **named)
    processor = t.InternVLProcessor(
        image_processor=t.GotOcr2ImageProcessor(
            size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4
        ),
        tokenizer=words,
        video_processor=t.InternVLVideoProcessor(size={"height": 32, "width": 32}),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    vision = SIGLIP | {"patch_size": [8, 8], "image_size": [32, 32]}
    config = t.InternVLConfig(
        text_config=t.Qwen2Config(**TEXT, vocab_size=len(words), **_ends(words)),
        vision_config=t.InternVLVisionConfig(**vision),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return processor, config


def mistral(merge: int) -> Callable[[], Made]:
    """Pixtral, which is a LLaVA, and Mistral3, which merges patches."""

    def make() -> Made:
        marks = ("<s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "</s>", "<pad>")
        words = tokenizer(marks, "</s>", bos_token="<s>")
        processor = t.PixtralProcessor(
            image_processor=t.PixtralImageProcessor(
                size={"longest_edge": 64}, patch_size={"height": 8 * merge, "width": 8 * merge}
            ),
            tokenizer=words,
            patch_size=8,
            spatial_merge_size=merge,
            chat_template=MISTRAL_TEMPLATE,
        )
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        vision |= {"num_attention_heads": 2, "head_dim": 16, "patch_size": 8, "image_size": 64}
        text = t.MistralConfig(**TEXT, **HEAD, vocab_size=len(words), **_ends(words))
        own = {"vision_config": t.PixtralVisionConfig(**vision), "text_config": text}
        own |= {"image_token_index": words.convert_tokens_to_ids("[IMG]")}
        if merge > 1:
            return processor, t.Mistral3Config(**own, spatial_merge_size=merge)
        strategy = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        return processor, t.LlavaConfig(**own, **strategy)

    return make


def _ends(words: t.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}


ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
BLOCKS = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN2 = BLOCKS | {"embed_dim": 32, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2}
QWEN25 = BLOCKS | {"hidden_size": 32, "intermediate_size": 48, "patch_size": 14}
QWEN25 |= {"out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 56}
QWEN3 = BLOCKS | {"hidden_size": 32, "intermediate_size": 48, "patch_size": 16}
QWEN3 |= {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
FAMILIES: dict[str, Callable[[], Made]] = {
    "Qwen2-VL": qwen("Qwen2", QWEN2, ROPE),
    "Qwen2.5-VL": qwen("Qwen2_5_", QWEN25, ROPE),
    "Qwen3-VL": qwen("Qwen3", QWEN3, ROPE | HEAD),
    "LLaVA-OneVision": onevision,
    "SmolVLM": smolvlm,
    "InternVL": internvl,
    "Pixtral": mistral(1),
    "Mistral3": mistral(2),
}


def written(name: str, folder: Path) -> tuple[Path, Any]:
    """Write a family's model with random weights, and return the folder and the processor."""
    torch.manual_seed(0)
    processor, config = FAMILIES[name]()
    model = t.AutoModelForImageTextToText.from_config(config)
    for weights in model.parameters():
        if weights.dim() > 1:  # larger than the families' own, so that the image matters
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, processor


def pictures(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{n}.png" for n in range(4)]
    for path, side in zip(paths, ((64, 64), (40, 64), (64, 64), (48, 32)), strict=True):
        Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8)).save(path)
    return paths


def answers(folder: Path, rubric: Rubric, requests: list[Request], batch: int) -> list[Reply]:
    spec = JudgeConfig(
        rubric="r", model="m", backend="transformers", batch_size=batch, max_tokens=96,
        logprobs=True, constraint="regex",
    )  # fmt: skip
    asked = TransformersJudge(spec, Source("m", "folder", str(folder)), torch.device("cpu"), rubric)
    return [reply for group in asked.replies(requests) for _, reply in group]


def probabilities(replies: list[Reply]) -> list[list[list[float]]]:
    """Return the log-probabilities of the tokens of each reply, in the order of their texts."""
    return [
        [[token.alternatives[text] for text in sorted(token.alternatives)] for token in one.tokens]
        for one in replies
    ]


def special_tokens(processor: Any, question: Question) -> list[int]:
    """Return the special tokens of a question, in order."""
    chat = conversation(question, Image.new("RGB", (64, 64), (200, 30, 60)))
    inputs = processor.apply_chat_template(
        [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    special = processor.tokenizer.added_tokens_decoder
    return [token for token in inputs["input_ids"][0].tolist() if token in special]


def examined(name: str, place: Path) -> dict[str, Any]:
    folder, processor = written(name, place / name)
    rubric = shipped("prompt_only")
    special = " ".join(processor.tokenizer.added_tokens_encoder)
    prompts = ["a red house", "a", special, "a green tree, pixel art " * 3]
    paths = pictures(place)
    requests = [
        Request(path, rubric.question(text)) for path, text in zip(paths, prompts, strict=True)
    ]
    together = answers(folder, rubric, requests, 4)
    other_picture = Request(paths[2], requests[0].question)
    *alone, other = answers(folder, rubric, [*requests, other_picture], 1)
    plain, hostile = (rubric.question(text) for text in (prompts[0], special))
    return {
        "together": [reply.text for reply in together],
        "alone": [reply.text for reply in alone],
        "probabilities": [probabilities(together), probabilities(alone)],
        "other picture": [probabilities(alone[:1]), probabilities([other])],
        "special tokens": [special_tokens(processor, one) for one in (plain, hostile)],
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps({name: examined(name, place) for name in sys.argv[2:] or FAMILIES}))
