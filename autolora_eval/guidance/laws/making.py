"""A guider class or instance, with its parameters and what it claims, made ready for the laws."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from diffusers.guiders import BaseGuidance

from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.guidance.laws.claims import claims_of
from autolora_eval.guidance.laws.declaration import LawDeclaration, ModelName
from autolora_eval.guidance.laws.drive import silence
from autolora_eval.guidance.laws.subject import Subject
from autolora_eval.guidance.laws.tiny import tiny_model
from autolora_eval.guidance.signatures import signature_of

_MODELS: tuple[ModelName, ...] = get_args(ModelName)


def subject_of(
    guider: type[BaseGuidance] | BaseGuidance,
    *,
    model: ModelName,
    laws: LawDeclaration | None,
    parameters: Mapping[str, Any],
) -> Subject:
    """Return the guider under test, for trying laws one by one.

    Args:
        guider: a class, or an instance, of which fresh ones are made from its config.
        model: the family of the tiny model that it is tried on.
        laws: what the guider claims; None: its attribute `laws`, or what is known of it.
        parameters: of the constructor.

    Raises:
        UsageError: it is no guider, or cannot be made from these parameters.
    """
    if model not in _MODELS:
        raise UsageError(f"no tiny model '{model}'.{did_you_mean(model, _MODELS)}")
    cls = guider if isinstance(guider, type) else type(guider)
    if not issubclass(cls, BaseGuidance):
        raise UsageError(
            f"{cls.__module__}.{cls.__qualname__} is no guider: it does not inherit from "
            "diffusers.guiders.BaseGuidance."
        )
    if not isinstance(guider, type):
        parameters = {**_config(guider), **parameters}
    with silence():
        claims = claims_of(cls, laws, signature_of(cls))
        subject = Subject(cls, dict(parameters), claims, tiny_model(model))
        _require_parameters(subject)
    return subject


def _config(guider: BaseGuidance) -> dict[str, Any]:
    if getattr(guider, "_internal_dict", None) is None:
        raise UsageError(
            f"this {type(guider).__name__} does not say what it was made from. Decorate its "
            "__init__ with @register_to_config; or give the class, and its parameters by name."
        )
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


def _require_parameters(subject: Subject) -> None:
    name, call = subject.cls.__name__, subject.call
    unknown = [one for one in subject.parameters if one not in call.parameters]
    if unknown and not call.is_open:
        near = did_you_mean(unknown[0], call.parameters)
        raise UsageError(f"{name} has no parameter '{unknown[0]}'.{near}")
    if inspect.isabstract(subject.cls) or subject.cls is BaseGuidance:
        raise UsageError(f"{name} is abstract: give a guider that inherits from it.")
    missing = [one for one in call.required if one not in subject.parameters]
    if missing:
        raise UsageError(
            f"{name} needs '{missing[0]}'. Give it: check_guider({name}, {missing[0]}=…), or on "
            f"the command line --parameter {missing[0]}=…"
        )
    try:
        subject.build()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{name} cannot be made from these parameters: {type(error).__name__}: {error}"
        ) from error
