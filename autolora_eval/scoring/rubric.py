"""Rubrics: the judge's question and the scores it must return, as one YAML file."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval._files import Json, sha256_bytes
from autolora_eval._yaml import StrictModel, explained, matching, read_yaml
from autolora_eval.runs.columns import is_computed

_PARAMETERS = ("start", "stop", "guidance_scale", "base_guidance_scale", "autolora_scale")


def _not_reserved(column: str) -> str:
    if column in _PARAMETERS or is_computed(column):
        raise ValueError(f"'{column}' is the name of a computed column; rename it")
    return column


ValueName = Annotated[
    str,
    matching(
        r"[a-z][a-z0-9_]{0,39}", "up to 40 lower-case letters, digits and '_', the first a letter"
    ),
]
Column = Annotated[ValueName, AfterValidator(_not_reserved)]
ReplyKey = Annotated[str, Field(min_length=1, max_length=200)]
Bound = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
MIN_RANGE = 1e-6
_PLACEHOLDER = re.compile(r"<<<[^<>\n]*>>>")
# A placeholder of another style, such as {{image}}: symbols, a name, symbols.
_STYLED = re.compile(r"([^\w\s]+)([A-Za-z_][\w ]*)([^\w\s]+)")
# Control tokens of chat templates, such as <image>, <|eot_id|>, </s>, <<SYS>>, [/INST].
_CONTROL_TOKEN = re.compile(r"<(?=[^<>\s]{1,60}>)|\[(?=/?[A-Z][A-Z0-9_]{0,59}\])")
_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Placeholders(StrictModel):
    """The placeholders in a rubric's text.

    Attributes:
        image: the placeholder of the image.
        prompt: the placeholder of the prompt that the image was generated from.
        values: the rubric's own placeholders by name; `judge.rubric_values` has their values.
        delimiters: further text that no prompt may imitate, such as the markers around the prompt.
    """

    image: str = Field(min_length=1)
    prompt: str | None = Field(default=None, min_length=1)
    values: dict[ValueName, Annotated[str, Field(min_length=1)]] = Field(default={})
    delimiters: list[Annotated[str, Field(min_length=2)]] = Field(default=[])

    @model_validator(mode="after")
    def _none_contains_another(self) -> Placeholders:
        for one, other in itertools.combinations(self.placeholders, 2):
            if one in other or other in one:
                raise ValueError(f"'{one}' and '{other}' are not distinct: one contains the other")
        return self

    @property
    def placeholders(self) -> list[str]:
        """All placeholders that are replaced in the text."""
        prompt = [] if self.prompt is None else [self.prompt]
        return [self.image, *prompt, *self.values.values()]


class Score(StrictModel):
    """One score: its key in the judge's reply, its range and its direction.

    Attributes:
        key: the key in the judge's reply.
        display_name: the name in tables and figures.
        min: the lowest value.
        max: the highest value.
        higher_is_better: the direction.
        type: whether constrained replies may have decimals (`number`) or whole numbers only
            (`integer`). An unconstrained reply may have any number of the range.
    """

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
                f"fewer than two whole numbers from {self.min:g} to {self.max:g}; widen the "
                "range, or write 'type: number'"
            )
        if self.max - self.min < MIN_RANGE:
            raise ValueError(f"expected a range of at least {MIN_RANGE:g}")
        return self


class Remark(StrictModel):
    """A part of a reply besides the scores, such as a reason. It is kept but not evaluated.

    Attributes:
        kind: `text` or a list of `keywords`; `scoring/constraint.py` limits their length.
        before_scores: whether it precedes the scores, so that the judge reasons first.
    """

    kind: Literal["text", "keywords"]
    before_scores: bool = False


class Rubric(StrictModel):
    """A rubric file.

    Attributes:
        name: the name in tables and the manifest.
        source: the origin of the text.
        placeholders: the placeholders in the text for image, prompt and further values.
        scores: the scores by column, in the order of the reply.
        remarks: further parts of the reply by key.
        text: the question to the judge.
    """

    name: str
    source: str = ""
    placeholders: Placeholders
    scores: dict[Column, Score] = Field(min_length=1)
    remarks: dict[ReplyKey, Remark] = Field(default={})
    text: str = Field(min_length=1, max_length=100_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> Rubric:
        keys: set[str] = set()
        for score in self.scores.values():
            if score.key in keys:
                raise ValueError(f"two scores have the key '{score.key}'; rename one")
            keys.add(score.key)
        for key in self.remarks:
            if key in keys:
                raise ValueError(f"a score and a remark have the key '{key}'; rename one")
        self._check_names()
        self._check_text()
        return self

    def _check_names(self) -> None:
        named: dict[str, str] = {}
        for column, score in self.scores.items():
            name = " ".join(score.display_name.lower().split())
            if not name:
                raise ValueError(f"'{column}' has an empty display name; figures need one")
            if (other := named.setdefault(name, column)) != column:
                raise ValueError(
                    f"'{other}' and '{column}' have the same display name, "
                    f"'{score.display_name}'; rename one"
                )

    def _check_text(self) -> None:
        own = self.placeholders
        for found in _PLACEHOLDER.findall(self.text):
            if found not in own.placeholders:
                raise ValueError(
                    f"the text contains '{found}', which is not a declared placeholder."
                    f"{did_you_mean(found, own.placeholders)} Declare it under "
                    "placeholders.values, or write it without '<<<'"
                )
        if (count := self.text.count(own.image)) != 1:
            raise ValueError(
                f"the text must contain the image placeholder '{own.image}' once, but contains it "
                f"{count} times"
            )
        required = {f"{name} placeholder": text for name, text in own.values.items()}
        required |= {} if own.prompt is None else {"prompt placeholder": own.prompt}
        required |= {f"delimiter no. {n}": text for n, text in enumerate(own.delimiters, 1)}
        for what, text in required.items():
            if text not in self.text:
                raise ValueError(f"the text lacks the {what} '{text}'")
        for found in _in_same_style(self.text, own.placeholders):
            if found not in (*own.placeholders, *own.delimiters):
                raise ValueError(
                    f"the text contains '{found}', which looks like a placeholder but is not "
                    f"declared.{did_you_mean(found, own.placeholders)} Declare it under "
                    "placeholders.values, or under placeholders.delimiters if it is plain text"
                )

    @property
    def sha256(self) -> str:
        """SHA-256 of everything that determines a judgement: the text and the form of replies.

        Display names and directions are not part of it, so changing them needs no new judgements.
        """
        scores = [(column, s.key, s.min, s.max, s.type) for column, s in self.scores.items()]
        remarks = [(key, r.kind, r.before_scores) for key, r in self.remarks.items()]
        parts = [self.text, self.placeholders.model_dump(), scores, remarks]
        return sha256_bytes(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode())

    @property
    def caveat(self) -> str | None:
        """Which keys of the scores the text does not mention, and what to do; None if it has all.

        A judge that is not constrained then replies with other keys, and its images are unscored.
        """
        own, keys = self.placeholders.placeholders, [score.key for score in self.scores.values()]
        text = _fill(self.text, dict.fromkeys(own, " "))
        words = {key: rf"(?<!\w){re.escape(key)}(?!\w)" for key in keys}
        missing = [f"'{key}'" for key, word in words.items() if not re.search(word, text)]
        if not missing:
            return None
        example = ", ".join(f'"{key}": N' for key in keys)
        return (
            f"the text of the rubric '{self.name}' does not mention {', '.join(missing)}, which "
            f"the judge's reply must contain. Add an example of the reply, such as {{{example}}}."
        )

    def with_values(self, values: Mapping[str, str]) -> Rubric:
        """Return the rubric with its own placeholders filled in by values, escaped like prompts.

        Raises:
            UsageError: if a value is missing or unknown.
        """
        self._check_values(values)
        declared = self.placeholders.values
        fills = {text: self._escape(values[name]) for name, text in declared.items()}
        filled = self.placeholders.model_copy(update={"values": {}})
        return self.model_copy(update={"text": _fill(self.text, fills), "placeholders": filled})

    def question(self, prompt: str) -> Question:
        """Return the question about an image that was generated from a prompt, which is escaped.

        Raises:
            UsageError: if the rubric's own placeholders have not been filled in.
        """
        self._check_values({})
        placeholder = self.placeholders.prompt
        fills = {} if placeholder is None else {placeholder: self._escape(prompt)}
        before, after = self.text.split(self.placeholders.image)
        return Question(_fill(before.strip(), fills), _fill(after.strip(), fills))

    def _check_values(self, values: Mapping[str, str]) -> None:
        declared = self.placeholders.values
        for name in values:
            if name not in declared:
                known = did_you_mean(name, declared) or " It has none; remove the value."
                raise UsageError(f"the rubric '{self.name}' has no placeholder '{name}'.{known}")
        for name in declared:
            if not values.get(name, "").strip():
                raise UsageError(
                    f"the rubric '{self.name}' needs a value for '{name}': write "
                    f"'rubric_values: {{{name}: ...}}' beside 'rubric'."
                )

    def _escape(self, text: str) -> str:
        own = self.placeholders
        return escape_prompt(text, (*own.placeholders, *own.delimiters))


def _in_same_style(text: str, placeholders: Iterable[str]) -> list[str]:
    """Return words between the same symbols, and in the same case, as a placeholder."""
    found = []
    for named in filter(None, map(_STYLED.fullmatch, placeholders)):
        left, name, right = named.groups()
        if left == "<<<":
            continue  # checked for every rubric
        inner = r"[A-Z_][A-Z0-9_ ]*" if name.isupper() else r"[a-z_][a-z0-9_]*"
        found += re.findall(f"{re.escape(left)}{inner}{re.escape(right)}", text)
    return found


def escape_prompt(text: str, reserved: Iterable[str] = ()) -> str:
    """Return a text that cannot inject parts of the question.

    Text that looks like a control token of a chat template, such as `<image>` or `[/INST]`, gets a
    blank after its first character. A tokenizer would otherwise read a second image, or the end of
    the question. The same holds for `reserved` text. Control characters become blanks. Any other
    text, including quotes, braces, YAML and `a < b`, is unchanged.

    Args:
        text: a prompt, or a value of a rubric.
        reserved: the rubric's own placeholders and delimiters.
    """
    text = _CONTROL_CHARACTER.sub(" ", text)
    text = _CONTROL_TOKEN.sub(r"\g<0> ", text)
    for word in reserved:
        text = re.sub(f"{re.escape(word[0])}(?={re.escape(word[1:])})", r"\g<0> ", text)
    return text


def _fill(text: str, fills: Mapping[str, str]) -> str:
    """Replace each key of `fills` by its value in one pass, so values are not searched for keys."""
    if not fills:
        return text
    found = re.compile("|".join(map(re.escape, fills)))
    return found.sub(lambda match: fills[match[0]], text)


@dataclass(frozen=True)
class Question:
    """A question to the judge: text, the image, text. Either text may be empty."""

    before: str
    after: str

    def parts(self, image: Json) -> list[Json]:
        """Return the question as the parts of a chat message, without empty texts."""
        before, after = (
            [{"type": "text", "text": text}] if text else [] for text in (self.before, self.after)
        )
        return [*before, image, *after]


def read_rubric(path: Path) -> Rubric:
    """Read a rubric file.

    Raises:
        UsageError: if the file is not readable or invalid, with one line for each problem.
    """
    document = read_yaml(path)
    try:
        return Rubric.model_validate(document.data)
    except ValidationError as error:
        raise UsageError("\n".join(explained(error, document, Rubric))) from error
