"""What a guider claims, held against its constructor: a misspelt claim would never be tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import get_args

from diffusers.guiders import BaseGuidance

from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.guidance.laws.declaration import LawDeclaration, Unguided
from autolora_eval.guidance.signatures import Signature
from autolora_eval.guidance.upstream import upstream_guider


def claims_of(
    cls: type[BaseGuidance], given: LawDeclaration | None, call: Signature
) -> LawDeclaration:
    """Return what is claimed of a guider: as given, its attribute `laws`, or what is known of it.

    Args:
        cls: the guider.
        given: what the caller claims of it.
        call: what its constructor takes.

    Raises:
        UsageError: it names a parameter that there is not, or is no declaration.
    """
    stated: object = getattr(cls, "laws", None) if given is None else given
    if stated is None:
        known = upstream_guider(f"{cls.__module__}.{cls.__name__}")
        return LawDeclaration() if known is None else replace(known.laws, passes=known.predictions)
    if not isinstance(stated, LawDeclaration):
        raise UsageError(
            f"the laws of {cls.__name__} are a {type(stated).__name__}. Write them as "
            "LawDeclaration(neutral={…}), from autolora_eval.testing."
        )
    if stated.unguided not in get_args(Unguided):
        near = did_you_mean(stated.unguided, get_args(Unguided))
        raise UsageError(f"LawDeclaration.unguided of {cls.__name__}: '{stated.unguided}'.{near}")
    for where, name in _names(stated):
        if name not in call.parameters and not call.is_open:
            near = did_you_mean(name, call.parameters)
            raise UsageError(
                f"LawDeclaration.{where} of {cls.__name__} names '{name}', which is no parameter "
                f"of its constructor.{near}"
            )
    return stated


def _names(stated: LawDeclaration) -> Iterator[tuple[str, str]]:
    lists: Mapping[str, tuple[str, ...]] = {
        "neutral": tuple(stated.neutral or ()),
        "linear": stated.linear,
        "acting": stated.acting or (),
    }
    for where, names in lists.items():
        yield from ((where, name) for name in names)
    for window in stated.windows or ():
        for name in (window.start, window.stop, *(window.outside or ())):
            yield "windows", name
