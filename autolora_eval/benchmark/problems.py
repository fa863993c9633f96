"""What is wrong with a YAML file's content, in the words of the file: one line a problem."""

from __future__ import annotations

import re
import typing
from collections.abc import Collection
from typing import Any

from pydantic import AfterValidator, BaseModel, ValidationError

from autolora_eval.benchmark.yaml_file import KeyPath, YamlFile
from autolora_eval.errors import did_you_mean

# Tags of alternatives, as of `prompts`: pydantic puts them into locations, and they are no keys.
FILE_TAG, ADDRESS_TAG, LIST_TAG = "(a file)", "(an address)", "(a list)"
_NO_KEYS = (FILE_TAG, ADDRESS_TAG, LIST_TAG)
_MAPPING_EXPECTED = ("dict_type", "model_type", "model_attributes_type", "mapping_type")


def matching(pattern: str, expected: str) -> AfterValidator:
    """Return a check of a string against a pattern, with words for what it wants."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


def explained(
    error: ValidationError, document: YamlFile, model: type[BaseModel], at: KeyPath = ()
) -> list[str]:
    """Return one line for each problem: file, line, key, what is wrong, what was expected.

    Args:
        error: what pydantic says.
        document: the file that was validated.
        model: what it, or the part of it at `at`, was validated as.
        at: where that part stands in the file.
    """
    lines: dict[str, None] = {}
    for item in error.errors():
        keys = tuple(part for part in item["loc"] if part not in _NO_KEYS)
        keys = keys[:-1] if keys[-1:] == ("[key]",) else keys
        lines[f"{document.where((*at, *keys))}: {_message(item, model, keys)}"] = None
    return list(lines)


def explained_at(
    error: ValidationError,
    document: YamlFile,
    at: KeyPath,
    fields: Collection[str | None] | None = None,
) -> list[str]:
    """Return one line for each problem with values that all stand at one place of the file.

    Args:
        error: what pydantic says.
        document: the file.
        at: where the values stand.
        fields: tell of these fields alone, None among them being that of the fields together.
    """
    lines: dict[str, None] = {}
    for item in error.errors():
        field = str(item["loc"][0]) if item["loc"] else None
        if fields is None or field in fields:
            lines[f"{document.where(at)}: {_message(item, BaseModel, item['loc'])}"] = None
    return list(lines)


def _message(item: Any, model: type[BaseModel], keys: KeyPath) -> str:  # noqa: ANN401
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown key.{did_you_mean(str(keys[-1]), _known_keys(model, keys[:-1]))}"
    if kind == "missing":
        return "missing; this key is needed."
    if kind in _MAPPING_EXPECTED:
        return f"expected 'key: value' entries (got {_shown(value)})."
    if kind == "string_type" and value is not None and not isinstance(value, dict | list):
        return f"expected text; put it in quotation marks (got {_shown(value)})."
    if isinstance(value, dict | list) and not kind.endswith("_type"):
        told = item["msg"].removeprefix("Value error, ")
        return told if told.endswith("?") else f"{told}."
    return f"{item['msg'].removeprefix('Value error, ')} (got {_shown(value)})."


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"{value!r:.80}"


def _known_keys(model: type[BaseModel], keys: KeyPath) -> list[str]:
    """Return the keys that `model` accepts below `keys`."""
    here: Any = model
    for key in keys:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[str(key)].annotation
        else:
            here = typing.get_args(here)[-1]
        options = [a for a in typing.get_args(here) if a is not type(None)]
        if options and typing.get_origin(here) is not dict:
            here = options[0]
    return list(here.model_fields) if hasattr(here, "model_fields") else []
