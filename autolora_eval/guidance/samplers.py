"""Methods that are no guiders: a callable (prompt, seed, model) → image of somebody else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from autolora_eval.errors import UsageError
from autolora_eval.guidance.code import code_of, dotted, paper_of, summary_of
from autolora_eval.guidance.guiders import what_is
from autolora_eval.guidance.registry import Rule
from autolora_eval.guidance.signatures import (
    CallParameters,
    parameters_model,
    signature_of,
)

GIVEN = ("prompt", "seed", "model")


@dataclass(frozen=True, kw_only=True)
class SamplerMethod(Rule):
    """A sampler: how a callable of its is had for the images of a cell.

    Attributes:
        prepare: parameters → (prompt, seed, model) → image. A class is made once for a cell.
    """

    prepare: Callable[[Any], Callable[..., Any]]


def sampler_method(name: str, sampler: object, source: str = "") -> SamplerMethod:
    """Return a sampler as a method.

    Args:
        name: the word or dotted path for it in a benchmark file.
        sampler: a function, whose further parameters are the method's; an object that can be
            called; or a class of such, whose constructor's parameters are the method's.
        source: where from, such as "my-package 1.2"; the distribution's name where not given.

    Raises:
        UsageError: it is none of these.
    """
    if not callable(sampler):
        raise UsageError(f"'{name}' is {what_is(sampler)}, and nothing that can be called.")
    is_class = isinstance(sampler, type)
    if is_class and "__call__" not in dir(sampler):
        raise UsageError(f"the class '{name}' has no __call__(self, prompt, seed, model).")
    _refuse_other_arguments(name, sampler.__call__ if is_class else sampler, skip=int(is_class))
    signature = signature_of(sampler, given=0 if is_class else len(GIVEN))
    code = code_of(sampler)
    origin = source or code.get("distribution", "") or f"{dotted(sampler).split('.')[0]}.py"
    return SamplerMethod(
        name=name,
        display_name=dotted(sampler).rpartition(".")[2],
        summary=summary_of(sampler),
        source="; ".join(text for text in (paper_of(sampler), origin) if text),
        parameters=parameters_model(signature),
        code={"class": dotted(sampler), **code},
        prepare=partial(_prepare, sampler, is_class),
    )


def _prepare(
    sampler: Callable[..., Any], is_class: bool, parameters: CallParameters
) -> Callable[..., Any]:
    arguments = parameters.arguments()
    if is_class:
        made: Callable[..., Any] = sampler(**arguments)
        return made
    return partial(sampler, **arguments)


def _refuse_other_arguments(name: str, call: Callable[..., Any], skip: int) -> None:
    """Refuse what cannot be called as (prompt, seed, model)."""
    taken = list(inspect.signature(call).parameters)[skip:][: len(GIVEN)]
    if tuple(taken) != GIVEN:
        raise UsageError(
            f"the sampler '{name}' takes ({', '.join(taken) or 'nothing'}); its first three "
            f"arguments must be ({', '.join(GIVEN)})."
        )
