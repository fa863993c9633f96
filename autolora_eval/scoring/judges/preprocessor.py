"""What a judge in this process needs besides its weights: packages, processor, constraint.

This module does not import torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autolora_eval._devices import require
from autolora_eval._errors import AutoLoRAEvalError
from autolora_eval._progress import quiet_libraries
from autolora_eval.scoring.constraint import reply_pattern
from autolora_eval.scoring.judges.config import JudgeConfig
from autolora_eval.scoring.rubric import Rubric
from autolora_eval.sources.model_source import (
    LOADING_ERRORS,
    Source,
    cached,
    loading_options,
    unloadable,
)

if TYPE_CHECKING:
    from autolora_eval.scoring.judges.logits_processors import Grammar

EXTRA = "judges"
PACKAGES = ("torchvision", "num2words")
# Families by what `model_type` in config.json, or a name on the hub, contains. Most processors hold
# one for videos, which needs torchvision even if it gets only images.
_NEED_TORCHVISION = (
    *("qwen2vl", "qwen25vl", "qwen3vl", "llavaonevision", "smolvlm", "internvl"),
    *("pixtral", "mistral3", "mistralsmall3"),
)
_NEED_NUM2WORDS = ("smolvlm",)


def needed_packages(source: Source) -> tuple[str, ...]:
    """Return the packages of the extra `judges` that a model's processor needs.

    A hub model that is not in the cache is known by its name.
    """
    kinds = [re.sub(r"[^a-z0-9]", "", kind.lower()) for kind in _model_types(source)]
    if any(family in kind for kind in kinds for family in _NEED_NUM2WORDS):
        return PACKAGES
    if any(family in kind for kind in kinds for family in _NEED_TORCHVISION):
        return PACKAGES[:1]
    return ()


def _model_types(source: Source) -> list[str]:
    file = cached(source, "config.json")
    if file is None:
        return [source.name]
    try:
        config = json.loads(file.read_bytes())
        vision = config.get("vision_config") or {}  # Pixtral is a LLaVA with its own vision model
        return [str(config.get("model_type")), str(vision.get("model_type"))]
    except (OSError, ValueError, AttributeError):
        return []


@dataclass(frozen=True)
class Preprocessor:
    """Everything of a model that is available without loading its weights.

    Attributes:
        processor: converts conversations to tokens and pixels.
        eos_token_ids: the tokens that end a reply.
        grammar: the constraint on replies, or the reason why there is none.
    """

    processor: Any
    eos_token_ids: tuple[int, ...]
    grammar: Grammar | str


def load_preprocessor(spec: JudgeConfig, source: Source, rubric: Rubric) -> Preprocessor:
    """Load everything of a judge's model but its weights.

    Raises:
        AutoLoRAEvalError: if it cannot be loaded, a package that it needs is missing, or
            `judge.constraint` is 'regex' and the model does not support it.
    """
    from transformers import AutoProcessor

    for package in needed_packages(source):
        require(package, EXTRA)
    with quiet_libraries():
        try:
            processor = AutoProcessor.from_pretrained(source.location, **loading_options(source))
            ends = _eos_token_ids(source, processor.tokenizer)
        except LOADING_ERRORS as error:
            raise unloadable("judge", source, error) from error
    processor.tokenizer.padding_side = "left"
    return Preprocessor(processor, ends, _grammar(spec, source, rubric, processor.tokenizer, ends))


def _eos_token_ids(source: Source, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return the tokens that end a reply, from the generation config or the tokenizer."""
    from transformers import AutoConfig, GenerationConfig

    location = source.location
    try:
        settings = GenerationConfig.from_pretrained(location, **loading_options(source))
    except OSError:
        config = AutoConfig.from_pretrained(location, **loading_options(source))
        settings = GenerationConfig.from_model_config(config)
    ends = settings.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError("neither its generation config nor its tokenizer has an end token")
    return tuple(ends if isinstance(ends, list) else [ends])


def _grammar(
    spec: JudgeConfig,
    source: Source,
    rubric: Rubric,
    tokenizer: Any,  # noqa: ANN401
    ends: tuple[int, ...],
) -> Grammar | str:
    """Return the constraint on replies, or the reason why there is none."""
    from autolora_eval.scoring.judges.logits_processors import Grammar, UnsupportedConstraintError

    constraint = spec.constraint
    if constraint == "plain":
        return "the benchmark says so"
    try:
        return Grammar(reply_pattern(rubric), tokenizer, ends)
    except UnsupportedConstraintError as error:
        if constraint == "auto":
            return str(error)
        raise AutoLoRAEvalError(
            f"the replies of the judge '{source.name}' cannot be constrained by a regular "
            f"expression: {error}. Fix that, or set judge.constraint to 'plain'."
        ) from error
