"""Plain data of a benchmark file (numbers, text, lists, maps) as what an annotation asks for.

A guider's constructor says by its annotations what it takes; nothing else in it is checked before
a model is loaded. What an annotation does not say, or says in a way that is not known here, is
left to the constructor.
"""

from __future__ import annotations

import collections.abc
import enum
import inspect
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from autolora_eval._errors import UsageError, did_you_mean

_NUMBERS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
_LISTS = (list, set, frozenset, *(getattr(collections.abc, n) for n in ("Sequence", "Iterable")))
_MAPS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_ANYTHING = (Any, object, inspect.Parameter.empty)


class UnfitError(ValueError):
    """A value that an annotation does not admit; the message says where in it, and what would."""


def is_plain(value: object) -> bool:
    """Tell whether a value can stand in a benchmark file: a finite number, text, list or map."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | str)


def fitted(value: object, annotation: object, at: str = "") -> Any:  # noqa: ANN401
    """Return plain data as what an annotation asks for.

    Args:
        value: as it was read from YAML.
        annotation: a type, a generic alias or a union; a class is made from a map of its
            constructor's parameters.
        at: where the value stands below the parameter, as `.dropout` or `[2]`.

    Raises:
        UnfitError: the annotation does not admit the value.
    """
    if not is_plain(value):
        raise _unfit(at, "a finite number, text, a list or a map", value)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return fitted(value, arguments[0], at)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, at)
    if origin is typing.Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
        raise _unfit(at, described(annotation), value)
    if annotation in (None, types.NoneType):
        if value is not None:
            raise _unfit(at, "nothing", value)
        return None
    plain = origin or annotation
    if plain in _ANYTHING or not isinstance(plain, type):
        return value
    return _of_class(value, plain, arguments, at)


def _of_class(value: object, wanted: type, arguments: tuple[Any, ...], at: str) -> Any:  # noqa: ANN401
    if wanted in _NUMBERS:
        return _scalar(value, wanted, at)
    if wanted is tuple:
        return _tuple(value, arguments, at)
    if wanted in _LISTS:
        entries = _entries(value, arguments[:1] * _length(value), at, described(wanted))
        return entries if wanted not in (set, frozenset) else wanted(entries)
    if wanted in _MAPS:
        if not isinstance(value, Mapping):
            raise _unfit(at, "a map", value)
        entry = arguments[1] if len(arguments) == 2 else Any
        return {key: fitted(item, entry, f"{at}.{key}") for key, item in value.items()}
    if issubclass(wanted, enum.Enum):
        choices = {member.value: member for member in wanted}
        if not isinstance(value, str | int) or value not in choices:
            raise _unfit(at, f"one of {', '.join(map(repr, choices))}", value)
        return choices[value]
    if issubclass(wanted, pathlib.PurePath) and isinstance(value, str):
        return wanted(value)
    if typing.is_typeddict(wanted) or getattr(wanted, "_is_protocol", False):
        return value
    return _made(value, wanted, at)


def _scalar(value: object, wanted: type, at: str) -> Any:  # noqa: ANN401
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    expected = _NUMBERS[wanted]
    if isinstance(value, str) and (number := _number_in(value)) is not None:
        expected += f", and YAML takes this for text: write {number!r}"
    raise _unfit(at, expected, value)


def _number_in(text: str) -> float | None:
    """Return the number that a text is meant to be: YAML takes 1e-3 for a text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _tuple(value: object, arguments: tuple[Any, ...], at: str) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = arguments[:1] * _length(value)
    elif arguments and _length(value) != len(arguments):
        raise _unfit(at, f"a list of {len(arguments)}", value)
    return tuple(_entries(value, arguments, at, "a list"))


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def _entries(value: object, annotations: Iterable[object], at: str, expected: str) -> list[Any]:
    if not isinstance(value, list):
        raise _unfit(at, expected, value)
    wanted = list(annotations) or [Any] * len(value)
    return [
        fitted(item, annotation, f"{at}[{index}]")
        for index, (item, annotation) in enumerate(zip(value, wanted, strict=True))
    ]


def _one_of(value: object, alternatives: tuple[Any, ...], at: str) -> Any:  # noqa: ANN401
    """Fit the first alternative that admits the value; a whole number stays one if it may be."""
    if type(value) in alternatives and type(value) in _NUMBERS:
        return value
    closest: UnfitError | None = None
    # A class says what its map must hold; a bare map would take anything in its place.
    for annotation in sorted(alternatives, key=_looseness):
        try:
            return fitted(value, annotation, at)
        except UnfitError as error:
            same_kind = isinstance(value, dict | list) and _container(annotation) is type(value)
            closest = error if same_kind and closest is None else closest
            if same_kind and isinstance(value, dict):
                break
    if closest is not None:
        raise closest
    raise _unfit(at, " or ".join(described(a) for a in alternatives), value)


def _container(annotation: object) -> type | None:
    """Return whether an annotation is written as a list or as a map; None for anything else."""
    plain = typing.get_origin(annotation) or annotation
    if plain in _LISTS or plain is tuple:
        return list
    if not isinstance(plain, type) or plain in _NUMBERS or plain is types.NoneType:
        return None
    return dict


def _looseness(annotation: object) -> int:
    plain = typing.get_origin(annotation) or annotation
    return 2 if plain in _ANYTHING else 1 if plain in _MAPS else 0


def _made(value: object, wanted: type, at: str) -> Any:  # noqa: ANN401
    """Make an object of a class, such as a `LayerSkipConfig`, from a map of its parameters."""
    pass

    if not isinstance(value, Mapping):
        raise _unfit(at, described(wanted), value)
    signature = signature_of(wanted)
    for key in value:
        if key not in signature.parameters and not signature.is_open:
            near = did_you_mean(key, signature.parameters)
            raise UnfitError(f"{_place(at)}{wanted.__name__} has no parameter '{key}'.{near}")
    missing = [name for name in signature.required if name not in value]
    if missing:
        raise UnfitError(f"{_place(at)}{wanted.__name__} needs '{missing[0]}'")
    arguments = {
        key: fitted(item, signature.annotation(key), f"{at}.{key}") for key, item in value.items()
    }
    try:
        return wanted(**arguments)
    except (Exception, SystemExit) as error:
        raise UnfitError(f"{_place(at)}{wanted.__name__} refuses it: {told_by(error)}") from error


def told_by(error: BaseException) -> str:
    """Return on one line what somebody else's code says as it fails, or that it ends Python."""
    if isinstance(error, SystemExit):
        return f"it ends the program (SystemExit: {error.code})"
    return " ".join(str(error).split())


def described(annotation: object) -> str:
    """Return an annotation in words: "a number", "a list, each a whole number", "text or nothing".

    Args:
        annotation: a type, a generic alias or a union.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    plain = origin or annotation
    if origin is typing.Annotated:
        return described(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(described, arguments)))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if plain in (None, types.NoneType):
        return "nothing"
    if plain in _ANYTHING or not isinstance(plain, type):
        return "anything"
    if plain in _NUMBERS:
        return _NUMBERS[plain]
    if plain in _LISTS or plain is tuple:
        each = f", each {described(arguments[0])}" if arguments else ""
        return f"a list{each}"
    return "a map" if plain in _MAPS else f"a map of {plain.__name__}'s parameters"


def _unfit(at: str, expected: str, value: object) -> UnfitError:
    # At the top, the message of the file's place and value stands around this one.
    got = f" (got {value!r:.80})" if at or isinstance(value, dict | list) else ""
    return UnfitError(f"{_place(at)}expected {expected}{got}")


def _place(at: str) -> str:
    return f"{at.removeprefix('.')}: " if at else ""


# --------------------
# What a callable of somebody else takes, as the parameters of a method in a benchmark file.


SCALE = "guidance_scale"
REQUIRED = inspect.Parameter.empty
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Signature:
    """The parameters of a callable that can be given by name.

    Attributes:
        name: of the callable, for messages.
        parameters: by name, in order.
        annotations: those that could be resolved, by name.
        is_open: whether it takes any other name too (`**kwargs`).
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
        """Return what a parameter must be; `Any` where that is not said."""
        return self.annotations.get(name, Any)

    def arguments(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Return stated values as what the annotations ask for.

        Raises:
            UnfitError: one does not fit.
        """
        return {name: fitted(value, self.annotation(name)) for name, value in stated.items()}


def signature_of(call: Callable[..., Any], given: int = 0) -> Signature:
    """Return what a function or a class's constructor takes by name.

    A constructor with `**kwargs` also takes what the constructors that it overrides take, since
    that is where it passes them on to.

    Args:
        call: a function, a class, or an object that can be called.
        given: how many leading parameters are given by the product itself.
    """
    if not isinstance(call, type):
        own, is_open = _by_name(call, given)
        return Signature(_name(call), own, _annotations(call), is_open)
    parameters: dict[str, inspect.Parameter] = {}
    annotations: dict[str, object] = {}
    is_open = False
    for parent in (c for c in call.__mro__ if c is not object and "__init__" in vars(c)):
        own, is_open = _by_name(vars(parent)["__init__"], 1)
        annotations = _annotations(vars(parent)["__init__"]) | annotations
        parameters |= {name: p for name, p in own.items() if name not in parameters}
        if not is_open:
            break
    return Signature(call.__name__, parameters, annotations, is_open)


def _name(call: object) -> str:
    return getattr(call, "__name__", type(call).__name__)


def _by_name(call: Callable[..., Any], given: int) -> tuple[dict[str, inspect.Parameter], bool]:
    found = list(inspect.signature(call).parameters.values())
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
    return {p.name: p for p in found[given:] if p.kind in _NAMED}, is_open


def _annotations(call: Callable[..., Any]) -> dict[str, object]:
    """Return the annotations; those that name what is imported for type checking alone are lost."""
    call = inspect.unwrap(call)
    if not hasattr(call, "__annotations__"):  # an object that can be called
        call = type(call).__call__
    try:
        return typing.get_type_hints(call)
    except (Exception, SystemExit):  # whatever evaluating a stranger's text raises
        return {name: a for name in call.__annotations__ if (a := _evaluated(call, name))}


def _evaluated(call: Callable[..., Any], name: str) -> object:
    stated = call.__annotations__[name]
    if not isinstance(stated, str):
        return stated
    try:
        one = type("_One", (), {"__annotations__": {name: stated}})
        return typing.get_type_hints(one, getattr(call, "__globals__", {}))[name]
    except (Exception, SystemExit):  # any code: one that fails leaves its value unchecked
        return None


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
    """Parameters that a callable's signature declares; values stay plain data."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=False)
    _signature: ClassVar[Signature]
    _attempt: ClassVar[Callable[[dict[str, Any]], object] | None] = None

    @model_validator(mode="after")
    def _is_accepted(self) -> Self:
        """Call the constructor, which may know more of its values than its annotations say."""
        attempt = type(self)._attempt
        if attempt is None:
            return self
        arguments = self.arguments()
        if SCALE in self._signature.required:
            arguments.setdefault(SCALE, 1.0)
        try:
            attempt(arguments)
        except (Exception, SystemExit) as error:
            told = told_by(error).rstrip(".") or type(error).__name__
            raise ValueError(f"{self._signature.name} refuses these values: {told}") from error
        return self

    def stated(self) -> dict[str, Any]:
        """Return the values that are not left to the callable's defaults, as plain data."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def arguments(self) -> dict[str, Any]:
        """Return the values to call it with; what is not stated is left to its defaults."""
        return self._signature.arguments(self.stated())

    def with_model_defaults(self, guidance_scale: float) -> MethodParameters:
        """Give a parameter called `guidance_scale` the model's, where it is not stated."""
        if SCALE not in type(self).model_fields or SCALE in self.model_fields_set:
            return self
        try:
            scale = fitted(guidance_scale, self._signature.annotation(SCALE))
        except UnfitError:
            return self
        return self.model_copy(update={SCALE: scale})


class _OpenParameters(CallParameters):
    """Parameters of a callable that takes any name."""

    model_config = ConfigDict(extra="allow")


def parameters_model(
    signature: Signature, attempt: Callable[[dict[str, Any]], object] | None = None
) -> type[CallParameters]:
    """Return the parameters of a callable as a model that a benchmark file is validated with.

    Args:
        signature: of the callable.
        attempt: is called with the arguments, to find out whether it accepts them; None if that
            is not to be tried.

    Raises:
        UsageError: it needs a parameter whose name cannot be used.
    """
    fields: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name.startswith("_") or hasattr(CallParameters, name):
            if parameter.default is REQUIRED:
                raise UsageError(
                    f"{signature.name} needs a parameter called '{name}', which is a name that "
                    "cannot be used in a benchmark file. Rename it."
                )
            continue
        fields[name] = (
            Annotated[Any, BeforeValidator(_check(signature.annotation(name)))],
            _default(name, parameter),
        )
    base = _OpenParameters if signature.is_open else CallParameters
    model = create_model(f"{signature.name}Parameters", __base__=base, **fields)
    model._signature, model._attempt = signature, attempt
    return model


def _check(annotation: object) -> Callable[[object], object]:
    def check(value: object) -> object:
        made = fitted(value, annotation)
        # 5 and 5.0 are one setting where a number is wanted.
        return made if isinstance(made, float) else value

    return check


def _default(name: str, parameter: inspect.Parameter) -> Any:  # noqa: ANN401
    if parameter.default is REQUIRED:
        return None if name == SCALE else ...
    plain = parameter.default
    if isinstance(plain, tuple):
        plain = list(plain)
    return Field(default=json.loads(json.dumps(plain)) if is_plain(plain) else None)
