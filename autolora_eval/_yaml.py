"""YAML files of the user: reading, the types of their values, and messages about problems.

Every key keeps its line number, and a key that occurs twice is refused. Numbers are those of YAML
1.2, as in editors: YAML 1.1 reads `1e-3` as text, `010` as 8 and `1:30` as 90. Dates are text.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
)

from autolora_eval._errors import UsageError, did_you_mean, validation_message

KeyPath = tuple[str | int, ...]
MAX_BYTES = 4_000_000
MAX_NODES = 1_000_000
MAX_DIGITS = 300


_INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_INT_PATTERN = re.compile(r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F]+)$")
_FLOAT_PATTERN = re.compile(
    r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(?i:inf)$|\.(?i:nan)$"
)
_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """Reads the numbers of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """Puts quotation marks around texts that would be such numbers."""


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Return a whole number. A very long one could neither be converted nor printed."""
    if len(node.value) > MAX_DIGITS:
        problem = f"a number of {len(node.value):,} characters. Put a text into quotation marks."
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return int(node.value.replace("_", ""), 16 if "x" in node.value else 10)


_Loader.yaml_implicit_resolvers = {
    start: [one for one in known if one[0] not in (_INT, _FLOAT, _DATE)]
    for start, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_INT, _integer)
_Loader.add_implicit_resolver(_INT, _INT_PATTERN, _STARTS)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT, _FLOAT_PATTERN, _STARTS)


def parse_yaml(text: str) -> Any:  # noqa: ANN401
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: if it is not one.
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(data: Any) -> str:  # noqa: ANN401
    """Return the YAML document of a value, with its keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class YamlFile:
    """A YAML document, and the line (from 1) of each key path, with its parts as text."""

    path: Path
    data: Any
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, keys: KeyPath) -> str:
        """Return `file:line: key.path` for messages; the line of the nearest key that exists."""
        parts = tuple(str(key) for key in keys)
        known = next((parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in self.lines), ())
        line = f":{self.lines[known]}" if known else ""
        dotted = ".".join(part if part.isprintable() else repr(part) for part in parts)
        return f"{self.path}{line}: {dotted}" if dotted else f"{self.path}{line}"


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file.

    Raises:
        UsageError: it is missing, too large, not UTF-8, not YAML, or has a key twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; is it a benchmark file?")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        lines: dict[tuple[str, ...], int] = {}
        _check_keys(path, yaml.compose(text, Loader=_Loader), (), lines)
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply, or an alias that holds itself.") from error
    # What PyYAML raises at '!!int' or '!!timestamp x'.
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path}: not valid YAML: {error}. Is a quotation mark missing?"
        ) from error
    return YamlFile(path, data, lines)


def _check_keys(
    path: Path, node: yaml.Node | None, at: tuple[str, ...], lines: dict[tuple[str, ...], int]
) -> None:
    """Note the line of every key below `node`, and refuse a key that occurs twice."""
    if len(lines) > MAX_NODES:
        raise UsageError(f"{path}: more than {MAX_NODES} entries, aliases written out.")
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            key = (*at, str(key_node.value))
            line = key_node.start_mark.line + 1
            if key in lines:
                raise UsageError(
                    f"{path}:{line}: {'.'.join(key)}: this key is also on line "
                    f"{lines[key]}, and YAML would use only one of them. Rename or remove one."
                )
            lines[key] = line
            _check_keys(path, value, key, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*at, str(index)] = item.start_mark.line + 1
            _check_keys(path, item, (*at, str(index)), lines)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    text = f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
    return " ".join(text.split())


# --------------------
# Types of values.

# Pydantic puts the tags of alternatives into error locations. They are not keys of the file.
FILE_TAG, ADDRESS_TAG, ENTRY_TAG, LIST_TAG = "(a file)", "(an address)", "(one)", "(a list)"
TEXT_TAG, MAP_TAG = "(a text)", "(a map)"
_NO_KEYS = (FILE_TAG, ADDRESS_TAG, ENTRY_TAG, LIST_TAG, TEXT_TAG, MAP_TAG)


def matching(pattern: str, expected: str) -> AfterValidator:
    """Return a check of a string against a pattern; `expected` describes the pattern."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
Ref = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
# The name of a model or method is a key. It is not stripped: two keys could become one.
Label = Annotated[
    str,
    StringConstraints(max_length=80),
    matching(r"\S(.*\S)?", "a name on one line, without blanks at its ends"),
]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Addresses = Annotated[
    Annotated[Ref, Tag(ADDRESS_TAG)]
    | Annotated[list[Ref], Tag(LIST_TAG), Field(min_length=1, max_length=64)],
    Discriminator(lambda value: LIST_TAG if isinstance(value, list) else ADDRESS_TAG),
]
DType = Literal["auto", "float32", "float16", "bfloat16"]


class StrictModel(BaseModel):
    """A section of a YAML file: unknown keys and wrong types are errors, values are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


# --------------------
# Problems with the content: one line for each.

_MAPPING_EXPECTED = ("dict_type", "model_type", "model_attributes_type", "mapping_type")


def explained(
    error: ValidationError, document: YamlFile, model: type[BaseModel], at: KeyPath = ()
) -> list[str]:
    """Return one line for each problem: file, line, key, what is wrong, what was expected.

    Args:
        error: what pydantic says.
        document: the file that was validated.
        model: the model of the file, or of the part at `at`.
        at: the place of that part in the file.
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
    """Return one line for each problem with values that are all at one place of the file.

    Args:
        error: what pydantic says.
        document: the file.
        at: the place of the values.
        fields: report only these fields; None stands for the check of all fields together.
    """
    problems = (
        _message(item, BaseModel, item["loc"])
        for item in error.errors()
        if fields is None or (str(item["loc"][0]) if item["loc"] else None) in fields
    )
    return list(dict.fromkeys(f"{document.where(at)}: {problem}" for problem in problems))


def _message(item: Any, model: type[BaseModel], keys: KeyPath) -> str:  # noqa: ANN401
    kind, value, message = item["type"], item["input"], validation_message(item)
    if kind == "extra_forbidden":
        return f"unknown key.{did_you_mean(str(keys[-1]), _known_keys(model, keys[:-1]))}"
    if kind == "missing":
        return "missing; this key is needed."
    if kind in _MAPPING_EXPECTED:
        known = ", ".join(_known_keys(model, keys))
        with_keys = f", with the keys {known}" if known else ""
        return f"expected 'key: value' entries{with_keys} (got {_shown(value)})."
    if kind == "string_type" and value is not None and not isinstance(value, dict | list):
        return f"expected text; put it in quotation marks (got {_shown(value)})."
    if isinstance(value, dict | list) and not kind.endswith("_type"):
        return message if message.endswith(("?", ".")) else f"{message}."
    return f"{message} (got {_shown(value)})."


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"{value!r:.80}"


def _known_keys(model: type[BaseModel], keys: KeyPath) -> list[str]:
    """Return the keys that `model` accepts below `keys`."""
    found: list[Any] = [model]
    for key in keys:
        found = [below for one in found for below in _below(one, str(key))]
    return [name for one in found if _is_model(one) for name in one.model_fields]


def _below(annotation: Any, key: str) -> list[Any]:  # noqa: ANN401
    """Return the types that a key, or any entry of a list or map, may have."""
    if _is_model(annotation):
        field = annotation.model_fields.get(key)
        return _alternatives(None if field is None else field.annotation)
    return _alternatives((typing.get_args(annotation) or (None,))[-1])


def _alternatives(annotation: Any) -> list[Any]:  # noqa: ANN401
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _alternatives(arguments[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for argument in arguments for one in _alternatives(argument)]
    return [annotation]


def _is_model(annotation: Any) -> bool:  # noqa: ANN401
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
