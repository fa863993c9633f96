"""What a callable of somebody else takes, as the parameters of a method in a benchmark file."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator

from autolora_eval.errors import UsageError
from autolora_eval.guidance.plain import UnfitError, fitted, is_plain, told_by
from autolora_eval.guidance.registry import MethodParameters

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


class CallParameters(MethodParameters):
    """Parameters that a callable's signature declares; values stay plain data."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
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
