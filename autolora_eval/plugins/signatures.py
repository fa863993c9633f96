"""The signature of a third-party callable as parameters of a benchmark file.

A constructor's annotations say what it takes. Values are checked against them when the benchmark
is loaded, long before a model is. An unknown annotation leaves its value to the constructor.
"""

from __future__ import annotations

import enum
import inspect
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from autolora_eval._errors import UsageError, did_you_mean, validation_message
from autolora_eval.plugins.third_party import error_message

SCALE = "guidance_scale"
REQUIRED = inspect.Parameter.empty
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class CoercionError(ValueError):
    """A value that an annotation does not accept. The message says what it expects, and where."""


# --------------------
# Values.


def is_plain(value: object) -> bool:
    """Return whether a value can occur in a benchmark file: finite number, text, list or map."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | str)


def coerce(value: object, annotation: object) -> Any:  # noqa: ANN401
    """Return plain data as an object of an annotated type.

    Args:
        value: as YAML has it.
        annotation: a type, a generic alias or a union. An instance of another class is built from
            a map of its constructor's parameters.

    Raises:
        CoercionError: if the annotation does not accept the value.
    """
    if not is_plain(value):
        raise CoercionError("expected a finite number, text, a list or a map")
    config = ConfigDict(arbitrary_types_allowed=True)
    try:
        adapter = TypeAdapter[Any](_buildable(annotation), config=config)
    except Exception:  # not a type, such as a name that exists for type checkers only
        return value
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise CoercionError(_expected(error, value)) from error


def _buildable(annotation: Any) -> Any:  # noqa: ANN401
    """Return an annotation in which other classes are built from a map of their parameters."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _buildable(arguments[0])
    if origin in (typing.Union, types.UnionType):
        # A class checks its keys. A plain mapping as an alternative would accept any.
        others = [a for a in arguments if (typing.get_origin(a) or a) not in (dict, Mapping)]
        has_class = any(_is_other_class(a) for a in others)
        return typing.Union[tuple(map(_buildable, others if has_class else arguments))]  # noqa: UP007
    if origin in (list, tuple, dict) and arguments:
        return origin[tuple(map(_buildable, arguments))]
    if _is_other_class(annotation):
        return Annotated[Any, PlainValidator(partial(_construct, annotation))]
    return Any if getattr(annotation, "_is_protocol", False) else annotation


def _is_other_class(annotation: Any) -> bool:  # noqa: ANN401
    """Return whether an annotation is a class that pydantic cannot read from JSON as we want."""
    if not isinstance(annotation, type) or getattr(annotation, "_is_protocol", False):
        return False
    is_read = issubclass(annotation, enum.Enum | pathlib.PurePath) or typing.is_typeddict(
        annotation
    )
    return not is_read and annotation.__module__ not in ("builtins", "collections.abc", "typing")


def _construct(cls: type, value: object) -> object:
    """Return an instance of a class, such as `LayerSkipConfig`, from a map of its parameters."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a map of {cls.__name__}'s parameters")
    signature = signature_of(cls)
    for key in value:
        if key not in signature.parameters and not signature.is_open:
            near = did_you_mean(key, signature.parameters)
            raise ValueError(f"{cls.__name__} has no parameter '{key}'.{near}")
    missing = [name for name in signature.required if name not in value]
    if missing:
        raise ValueError(f"{cls.__name__} needs '{missing[0]}'")
    arguments = {}
    for key, item in value.items():
        try:
            arguments[key] = coerce(item, signature.annotation(key))
        except CoercionError as error:
            raise ValueError(f"{key}: {error}") from error
    try:
        return cls(**arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{cls.__name__} refuses it: {error_message(error)}") from error


def _expected(error: ValidationError, value: object) -> str:
    """Return pydantic's errors as one message: those of the alternative that fits best."""
    found: dict[tuple[int, bool], dict[str, None]] = {}
    for item in error.errors():
        path, inner = _path(item["loc"], value)
        message = validation_message(item).replace("Input should be", "expected")
        message = message.replace(" array", " list").replace(" null", " nothing")
        if item["type"] == "missing" and isinstance(item["loc"][-1], int):
            message = f"item {item['loc'][-1] + 1} is missing"
        is_inside = item["type"] == "value_error" and isinstance(inner, Mapping)
        got = f" (got {inner!r:.80})" if path and message.startswith("expected") else ""
        at = f"{path.removeprefix('.')}: " if path else ""
        found.setdefault((len(path), is_inside), {})[f"{at}{message}{got}"] = None
    best = list(found[max(found)])
    return " or ".join([best[0], *(message.removeprefix("expected ") for message in best[1:])])


def _path(loc: tuple[int | str, ...], value: Any) -> tuple[str, object]:  # noqa: ANN401
    """Return an error's location as text, without pydantic's names of alternatives.

    The location of an item that is missing is that of its list.
    """
    path = ""
    for part in loc:
        if isinstance(value, Mapping) and part in value:
            path, value = f"{path}.{part}", value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
    return path, value


# --------------------
# Signatures.


@dataclass(frozen=True)
class Signature:
    """The parameters of a callable that can be passed by name.

    Attributes:
        name: the name of the callable, for messages.
        parameters: by name, in order.
        annotations: by name, those that could be evaluated.
        is_open: whether it accepts any other name too (`**kwargs`).
    """

    name: str
    parameters: Mapping[str, inspect.Parameter]
    annotations: Mapping[str, object]
    is_open: bool

    @property
    def required(self) -> list[str]:
        """The parameters without a default."""
        return [name for name, p in self.parameters.items() if p.default is REQUIRED]

    def annotation(self, name: str) -> object:
        """Return a parameter's annotation; `Any` if it has none."""
        return self.annotations.get(name, Any)

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain values as objects of the annotated types.

        Raises:
            CoercionError: if a value does not fit.
        """
        return {name: coerce(value, self.annotation(name)) for name, value in values.items()}


def signature_of(call: Callable[..., Any], skip: int = 0) -> Signature:
    """Return the signature of a function or of a class's constructor.

    A constructor with `**kwargs` also accepts the parameters of the constructors that it
    overrides, since it passes them on.
    """
    if not isinstance(call, type):
        own, is_open = _named_parameters(call, skip)
        name = getattr(call, "__name__", type(call).__name__)
        return Signature(name, own, _annotations(call), is_open)
    parameters: dict[str, inspect.Parameter] = {}
    annotations: dict[str, object] = {}
    is_open = False
    for parent in (c for c in call.__mro__ if c is not object and "__init__" in vars(c)):
        own, is_open = _named_parameters(vars(parent)["__init__"], 1)
        annotations = _annotations(vars(parent)["__init__"]) | annotations
        parameters |= {name: p for name, p in own.items() if name not in parameters}
        if not is_open:
            break
    return Signature(call.__name__, parameters, annotations, is_open)


def _named_parameters(
    call: Callable[..., Any], skip: int
) -> tuple[dict[str, inspect.Parameter], bool]:
    found = list(inspect.signature(call).parameters.values())
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
    return {p.name: p for p in found[skip:] if p.kind in _BY_NAME}, is_open


def _annotations(call: Callable[..., Any]) -> dict[str, object]:
    """Return the annotations that can be evaluated, one by one.

    An annotation that only type checkers can evaluate leaves its value unchecked.
    """
    function = inspect.unwrap(call)
    if not hasattr(function, "__annotations__"):  # a callable object
        function = type(function).__call__
    found: dict[str, object] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        holder = type("Holder", (), {"__annotations__": {name: annotation}})
        try:
            found |= typing.get_type_hints(holder, getattr(function, "__globals__", {}))
        except (Exception, SystemExit):  # third-party code may raise anything
            continue
    return found


# --------------------
# Parameters.


class MethodParameters(BaseModel):
    """The parameters of a plugin, as a benchmark file sets them. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    uses_the_model: ClassVar[bool] = True
    """Whether the images are made by the benchmark's model with its LoRA."""

    def with_model_defaults(self, guidance_scale: float) -> MethodParameters:
        """Return the parameters with defaults that depend on the model filled in.

        Args:
            guidance_scale: the model's CFG scale in the benchmark file.
        """
        return self


class CallParameters(MethodParameters):
    """Parameters with the signature of a callable. The values stay plain data."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=False)
    _signature: ClassVar[Signature]
    _attempt: ClassVar[Callable[[dict[str, Any]], object] | None] = None

    @model_validator(mode="after")
    def _constructor_accepts(self) -> Self:
        """Call the constructor, which may check more than its annotations say."""
        attempt = type(self)._attempt
        if attempt is None:
            return self
        arguments = self.arguments()
        if SCALE in self._signature.required:
            arguments.setdefault(SCALE, 1.0)
        try:
            attempt(arguments)
        except (Exception, SystemExit) as error:
            if isinstance(error, UsageError):
                raise ValueError(str(error).rstrip(".")) from error
            message = error_message(error).rstrip(".") or type(error).__name__
            raise ValueError(f"{self._signature.name} refuses these values: {message}") from error
        return self

    def configured(self) -> dict[str, Any]:
        """Return the values that the benchmark sets, as plain data."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for the callable; parameters that are not set keep its defaults."""
        return self._signature.arguments(self.configured())

    def with_model_defaults(self, guidance_scale: float) -> MethodParameters:
        """Set a parameter called `guidance_scale` to the model's, unless it is set.

        Raises:
            pydantic.ValidationError: if the constructor does not accept the model's value.
        """
        if SCALE not in type(self).model_fields or SCALE in self.model_fields_set:
            return self
        return type(self).model_validate(self.configured() | {SCALE: guidance_scale})


class _OpenParameters(CallParameters):
    """Parameters of a callable that accepts any name."""

    model_config = ConfigDict(extra="allow")


def parameters_model(
    signature: Signature, attempt: Callable[[dict[str, Any]], object] | None = None
) -> type[CallParameters]:
    """Return a pydantic model of a signature's parameters.

    Raises:
        UsageError: if a required parameter has a name that a benchmark file cannot use.
    """
    fields: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name.startswith("_") or hasattr(CallParameters, name):
            if parameter.default is REQUIRED:
                raise UsageError(
                    f"{signature.name} needs a parameter called '{name}', which a benchmark file "
                    "cannot set. Rename it."
                )
            continue
        check = BeforeValidator(partial(_checked, annotation=signature.annotation(name)))
        fields[name] = (Annotated[Any, check], _default(name, parameter))
    base = _OpenParameters if signature.is_open else CallParameters
    model = create_model(f"{signature.name}Parameters", __base__=base, **fields)
    model._signature, model._attempt = signature, attempt
    return model


def _checked(value: object, annotation: object) -> object:
    made = coerce(value, annotation)
    # 5 and 5.0 are the same setting of a float.
    return made if isinstance(made, float) else value


def _default(name: str, parameter: inspect.Parameter) -> Any:  # noqa: ANN401
    if parameter.default is REQUIRED:
        return None if name == SCALE else ...
    default = parameter.default
    return Field(default=json.loads(json.dumps(default)) if is_plain(default) else None)
