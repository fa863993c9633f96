"""Rubrics: the text put to the judge and the scores it must return, as one YAML file."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
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

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import sha256_bytes
from autolora_eval._yaml import explained, matching, read_yaml
from autolora_eval.runs.columns import is_computed

_PARAMETERS = frozenset(
    ("start", "stop", "guidance_scale", "base_guidance_scale", "autolora_scale")
)


def _no_column_of_ours(column: str) -> str:
    if column in _PARAMETERS or is_computed(column):
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
ValueName = Annotated[
    str,
    matching(r"[a-z][a-z0-9_]{0,39}", "small letters, digits and '_', as the name of a value"),
]
NARROWEST = 1e-6
_MARK = re.compile(r"<<<[^<>\n]*>>>")
# A placeholder of another style, such as {{image}}: signs, a name, signs.
_NAMED = re.compile(r"([^\w\s]+)([A-Za-z_][\w ]*)([^\w\s]+)")
# What chat templates use as control tokens, such as <image>, <|eot_id|>, </s>, <<SYS>>, [/INST].
_CONTROL_TOKEN = re.compile(r"<(?=[^<>\s]{1,60}>)|\[(?=/?[A-Z][A-Z0-9_]{0,59}\])")
_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Placeholders(BaseModel):
    """What stands in the text for what each question puts there.

    Attributes:
        image: stands for the image.
        prompt: stands for the prompt that the image was generated from.
        values: name → what stands for it; the benchmark's `judge.rubric_values` says what it is.
        delimiters: further words of the text that no prompt may imitate, such as those that tell
            where the prompt begins and ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    image: str = Field(min_length=1)
    prompt: str | None = Field(default=None, min_length=1)
    values: dict[ValueName, Annotated[str, Field(min_length=1)]] = {}
    delimiters: list[Annotated[str, Field(min_length=2)]] = []

    @model_validator(mode="after")
    def _none_holds_another(self) -> Placeholders:
        for one, other in itertools.combinations(self.marks, 2):
            if one in other or other in one:
                raise ValueError(f"'{one}' and '{other}' cannot be told apart")
        return self

    @property
    def marks(self) -> list[str]:
        """What is replaced in the text."""
        prompt = [] if self.prompt is None else [self.prompt]
        return [self.image, *prompt, *self.values.values()]


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
    """A rubric file.

    Attributes:
        name: in tables and the manifest.
        source: where the text comes from.
        placeholders: what stands in the text for image, prompt and values of the rubric's own.
        scores: column → score, in the order of the reply.
        remarks: key of the reply → what it may hold there beside the scores.
        text: what is put to the judge.
    """

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
        self._check_names()
        self._check_text()
        return self

    def _check_names(self) -> None:
        """See that no two scores look the same in tables and figures."""
        named: dict[str, str] = {}
        for column, score in self.scores.items():
            name = " ".join(score.display_name.lower().split())
            if not name:
                raise ValueError(f"'{column}' has no display name, which figures show; give it one")
            if (other := named.setdefault(name, column)) != column:
                raise ValueError(
                    f"'{other}' and '{column}' have the display name '{score.display_name}', and "
                    "could not be told apart; rename one"
                )

    def _check_text(self) -> None:
        marks = self.placeholders
        for found in _MARK.findall(self.text):
            if found not in marks.marks:
                raise ValueError(
                    f"the text has '{found}', which is none of the rubric's placeholders."
                    f"{did_you_mean(found, marks.marks)} Declare it under placeholders.values, "
                    "or write it without '<<<'"
                )
        if self.text.count(marks.image) != 1:
            raise ValueError(
                f"the text must have the image placeholder '{marks.image}' once, "
                f"and has it {self.text.count(marks.image)} times"
            )
        named = {f"{name} placeholder": mark for name, mark in marks.values.items()}
        named |= {} if marks.prompt is None else {"prompt placeholder": marks.prompt}
        named |= {f"delimiter no. {n}": mark for n, mark in enumerate(marks.delimiters, 1)}
        for what, mark in named.items():
            if mark not in self.text:
                raise ValueError(f"the text lacks the {what} '{mark}'")
        for found in _of_their_style(self.text, marks.marks):
            if found not in (*marks.marks, *marks.delimiters):
                raise ValueError(
                    f"the text has '{found}', which is none of the rubric's placeholders though "
                    f"it looks like one.{did_you_mean(found, marks.marks)} Declare it under "
                    "placeholders.values; if it is plain text, under placeholders.delimiters"
                )

    @property
    def sha256(self) -> str:
        """SHA-256 of what decides a judgement: the text, and the replies that are asked for.

        Display names and directions decide none: a better name judges nothing anew.
        """
        scores = [(column, s.key, s.min, s.max, s.type) for column, s in self.scores.items()]
        remarks = [(key, r.kind, r.before_scores) for key, r in self.remarks.items()]
        said = [self.text, self.placeholders.model_dump(), scores, remarks]
        return sha256_bytes(json.dumps(said, ensure_ascii=False, sort_keys=True).encode())

    def with_values(self, values: Mapping[str, str]) -> Rubric:
        """Return the rubric with its own placeholders filled in.

        Args:
            values: by name, one for each of `placeholders.values`. They are put in as data, as
                prompts are.

        Raises:
            UsageError: one is missing, or is none of the rubric's.
        """
        self._check_values(values)
        declared = self.placeholders.values
        fills = {mark: self._as_data(values[name]) for name, mark in declared.items()}
        filled = self.placeholders.model_copy(update={"values": {}})
        return self.model_copy(update={"text": _fill(self.text, fills), "placeholders": filled})

    def question(self, prompt: str) -> Question:
        """Return what is put to the judge about one image.

        Args:
            prompt: the prompt the image was generated from. It is put in once, as data (see
                `as_data`), and not searched for placeholders.

        Raises:
            UsageError: a placeholder of the rubric's own has not been filled in.
        """
        self._check_values({})
        mark = self.placeholders.prompt
        fills = {} if mark is None else {mark: self._as_data(prompt)}
        before, after = self.text.split(self.placeholders.image)
        return Question(_fill(before.strip(), fills), _fill(after.strip(), fills))

    def _check_values(self, values: Mapping[str, str]) -> None:
        declared = self.placeholders.values
        for name in values:
            if name not in declared:
                known = did_you_mean(name, declared) or " It has none of its own: remove it."
                raise UsageError(f"the rubric '{self.name}' has no placeholder '{name}'.{known}")
        for name in declared:
            if not values.get(name, "").strip():
                raise UsageError(
                    f"the rubric '{self.name}' needs a value for '{name}': write "
                    f"'rubric_values: {{{name}: ...}}' beside 'rubric'."
                )

    def _as_data(self, text: str) -> str:
        return as_data(text, (*self.placeholders.marks, *self.placeholders.delimiters))


def _of_their_style(text: str, marks: Iterable[str]) -> list[str]:
    """Return what stands in a text between the same signs as a placeholder, in the same case."""
    found = []
    for named in filter(None, map(_NAMED.fullmatch, marks)):
        left, name, right = named.groups()
        if left == "<<<":
            continue  # these are searched for in any rubric
        inner = r"[A-Z_][A-Z0-9_ ]*" if name.isupper() else r"[a-z_][a-z0-9_]*"
        found += re.findall(f"{re.escape(left)}{inner}{re.escape(right)}", text)
    return found


def as_data(text: str, marks: Iterable[str] = ()) -> str:
    """Return a text that no part of the question can be mistaken for.

    What looks like a control token of a chat template, such as `<image>` or `[/INST]`, gets a
    blank after its first character: a tokenizer would otherwise read an image that is not there,
    or the end of the question. So do the `marks`. Control characters become blanks. Other text,
    quotes, braces, YAML and `a < b` among it, stays as it is.

    Args:
        text: a prompt, or a value of a rubric.
        marks: the rubric's own placeholders and delimiters.
    """
    text = _CONTROL_CHARACTER.sub(" ", text)
    text = _CONTROL_TOKEN.sub(r"\g<0> ", text)
    for mark in marks:
        text = re.sub(f"{re.escape(mark[0])}(?={re.escape(mark[1:])})", r"\g<0> ", text)
    return text


def _fill(text: str, fills: Mapping[str, str]) -> str:
    """Replace each key of `fills` by its value, in one pass: no value is searched for a key."""
    if not fills:
        return text
    found = re.compile("|".join(map(re.escape, fills)))
    return found.sub(lambda match: fills[match[0]], text)


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
