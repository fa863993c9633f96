"""Rubrics: the text put to the judge and the scores it must return, as one YAML file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from autolora_eval.benchmark.problems import explained, matching
from autolora_eval.benchmark.yaml_file import read_yaml
from autolora_eval.errors import UsageError
from autolora_eval.files import sha256_bytes

_OURS = frozenset(
    (
        *("cell", "model", "method", "guider", "prompt", "prompt_index", "seed", "image_id"),
        *("file", "sha256", "nfe", "unscored_reason", "image_error", "n_images", "n_missing"),
        *("n_unscored", "n_undefined_prompts", "diversity", "reason", "start", "stop"),
        *("lora_scale", "num_inference_steps", "guidance_scale", "base_guidance_scale"),
        "autolora_scale",
    )
)
_OUR_ENDINGS = ("_low", "_high", "_reference", "_prompt_mean")


def _no_column_of_ours(column: str) -> str:
    if column in _OURS or column.startswith("div_") or column.endswith(_OUR_ENDINGS):
        raise ValueError(f"'{column}' would be taken for a column that is computed: rename it")
    return column


Column = Annotated[
    str,
    matching(
        r"[a-z][a-z0-9_]{0,39}",
        "up to 40 small letters, digits and '_', the first a letter, as the name of a column",
    ),
    AfterValidator(_no_column_of_ours),
]
ReplyKey = Annotated[str, Field(min_length=1, max_length=200)]
Bound = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
NARROWEST = 1e-6


class Placeholders(BaseModel):
    """What stands in the text for the image, and for the prompt it was generated from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    image: str = Field(min_length=1)
    prompt: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _neither_holds_the_other(self) -> Placeholders:
        if self.prompt is not None and (self.prompt in self.image or self.image in self.prompt):
            raise ValueError(f"'{self.image}' and '{self.prompt}' cannot be told apart")
        return self


class Score(BaseModel):
    """One score: the key of the judge's reply, its range and its direction.

    Attributes:
        key: of the judge's reply.
        display_name: in tables and figures.
        min: lowest value.
        max: highest value.
        higher_is_better: its direction.
        type: what a reply that is held to the rubric can be: whole numbers of the range only, or
            decimals as well. A free reply may have any number of the range, whatever this says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    key: ReplyKey
    display_name: str
    min: Bound = 0.0
    max: Bound = 5.0
    higher_is_better: bool = True
    type: Literal["integer", "number"] = "integer"

    @model_validator(mode="after")
    def _range_has_values(self) -> Score:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) must be less than max ({self.max:g})")
        if self.type == "integer" and math.floor(self.max) <= math.ceil(self.min):
            raise ValueError(
                f"fewer than two whole numbers from {self.min:g} to {self.max:g}: widen the "
                "range, or write 'type: number'"
            )
        if self.max - self.min < NARROWEST:
            raise ValueError(f"expected a range of at least {NARROWEST:g}")
        return self


class Remark(BaseModel):
    """What a reply may hold beside the scores. It is kept with the reply, and decides nothing.

    Attributes:
        kind: `text`, or a list of `keywords`; how long each may be is in `scoring/constraint.py`.
        before_scores: it comes before the scores, so that the judge reasons first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    kind: Literal["text", "keywords"]
    before_scores: bool = False


class Rubric(BaseModel):
    """A rubric file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str
    source: str = ""
    placeholders: Placeholders
    scores: dict[Column, Score] = Field(min_length=1)
    remarks: dict[ReplyKey, Remark] = {}
    text: str = Field(min_length=1, max_length=100_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> Rubric:
        keys = [score.key for score in self.scores.values()]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ValueError(f"two scores read the reply's key '{twice[0]}'; rename one")
        both = [key for key in self.remarks if key in keys]
        if both:
            raise ValueError(f"a score and a remark have the reply's key '{both[0]}'; rename one")
        if self.text.count(self.placeholders.image) != 1:
            raise ValueError(
                f"the text must have the image placeholder '{self.placeholders.image}' once, "
                f"and has it {self.text.count(self.placeholders.image)} times"
            )
        prompt = self.placeholders.prompt
        if prompt is not None and prompt not in self.text:
            raise ValueError(f"the text lacks the prompt placeholder '{prompt}'")
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 of what decides a judgement: the text, and which scores are read from a reply.

        Display names and directions decide none: a better name judges nothing anew.
        """
        scores = {column: (s.key, s.min, s.max) for column, s in self.scores.items()}
        said = [self.text, self.placeholders.image, self.placeholders.prompt, scores]
        return sha256_bytes(json.dumps(said, ensure_ascii=False, sort_keys=True).encode())

    def question(self, prompt: str) -> Question:
        """Return what is put to the judge about one image.

        Args:
            prompt: the prompt the image was generated from. It is put in as it is, once, and not
                searched for placeholders.
        """
        before, after = self.text.split(self.placeholders.image)
        return Question(self._fill(before, prompt), self._fill(after, prompt))

    def _fill(self, text: str, prompt: str) -> str:
        placeholder = self.placeholders.prompt
        text = text.strip()
        return text if placeholder is None else prompt.join(text.split(placeholder))


@dataclass(frozen=True)
class Question:
    """What is put to the judge: text, the image, text. Either text may be empty."""

    before: str
    after: str


def read_rubric(path: Path) -> Rubric:
    """Read a rubric file.

    Raises:
        UsageError: not readable, or one line for each thing wrong with it.
    """
    document = read_yaml(path)
    try:
        return Rubric.model_validate(document.data)
    except ValidationError as error:
        raise UsageError("\n".join(explained(error, document, Rubric))) from error
