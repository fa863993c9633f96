"""A guider class or instance, with its parameters and what it claims, made ready for the laws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from diffusers.guiders import BaseGuidance

from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.guidance.laws.declaration import LawDeclaration, ModelName
from autolora_eval.guidance.laws.drive import silence
from autolora_eval.guidance.laws.subject import Subject
from autolora_eval.guidance.laws.tiny import tiny_model
from autolora_eval.guidance.upstream import upstream_guider

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
        config = {k: v for k, v in guider.config.items() if not k.startswith("_")}
        parameters = {**config, **parameters}
    with silence():
        subject = Subject(cls, dict(parameters), laws or _declared(cls), tiny_model(model))
        _require_parameters(subject)
    return subject


def _require_parameters(subject: Subject) -> None:
    unknown = [name for name in subject.parameters if name not in subject.signature]
    if unknown:
        near = did_you_mean(unknown[0], subject.signature)
        raise UsageError(f"{subject.cls.__name__} has no parameter '{unknown[0]}'.{near}")
    try:
        subject.build()
    except Exception as error:
        raise UsageError(
            f"{subject.cls.__name__} cannot be made from these parameters: "
            f"{type(error).__name__}: {error}"
        ) from error


def _declared(cls: type[BaseGuidance]) -> LawDeclaration:
    """Return what a guider claims: its attribute, or what is known of diffusers' own."""
    stated = getattr(cls, "laws", None)
    if isinstance(stated, LawDeclaration):
        return stated
    known = upstream_guider(f"{cls.__module__}.{cls.__name__}")
    return LawDeclaration() if known is None else replace(known.laws, passes=known.predictions)
